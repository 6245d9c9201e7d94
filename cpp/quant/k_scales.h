// The eight six-bit scales and eight six-bit minima that Q4_K and Q5_K pack into 12 bytes. Source:
// ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

struct KScales {
  std::uint8_t scale[8];
  std::uint8_t min[8];
};

// byte b < 4:       bits 0..5 scale[b],     bits 6..7 bits 4..5 of scale[b + 4]
// byte 4 + b:       bits 0..5 min[b],       bits 6..7 bits 4..5 of min[b + 4]
// byte 8 + b:       bits 0..3 of scale[b + 4] (low nibble) and of min[b + 4] (high nibble)
inline KScales unpack_k_scales(const std::uint8_t* packed) {
  KScales k;
  for (int b = 0; b < 4; ++b) {
    k.scale[b] = packed[b] & 63U;
    k.min[b] = packed[4 + b] & 63U;
    k.scale[b + 4] = static_cast<std::uint8_t>((packed[8 + b] & 15) | ((packed[b] >> 6) << 4));
    k.min[b + 4] = static_cast<std::uint8_t>((packed[8 + b] >> 4) | ((packed[4 + b] >> 6) << 4));
  }
  return k;
}

inline void pack_k_scales(const KScales& k, std::uint8_t* packed) {
  for (int b = 0; b < 4; ++b) {
    packed[b] = static_cast<std::uint8_t>(k.scale[b] | ((k.scale[b + 4] >> 4) << 6));
    packed[4 + b] = static_cast<std::uint8_t>(k.min[b] | ((k.min[b + 4] >> 4) << 6));
    packed[8 + b] = static_cast<std::uint8_t>((k.scale[b + 4] & 15U) | ((k.min[b + 4] & 15U) << 4));
  }
}

}  // namespace moesaic::quant
