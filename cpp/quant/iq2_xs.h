// IQ2_XS: 256 elements in 74 bytes, 2.3125 bits each. Eight elements are a point of kIq2xsGrid with
// signs; with s = i / 16: x[i] = ((d * (0.5 + scale[s])) * 0.25) * point * sign. Source: ggml's
// file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes  0..1   d          f16
// bytes  2..65  qs[g]      u16 for elements 8 g .. 8 g + 7: bits 0..8: grid index, bits 9..15:
// kIq2xsSigns index bytes 66..73  scales[b]  low nibble: scale[2 b], high nibble: scale[2 b + 1]
#pragma pack(push, 1)
struct BlockIQ2_XS {
  std::uint16_t d;
  std::uint16_t qs[32];
  std::uint8_t scales[8];
};
#pragma pack(pop)
static_assert(sizeof(BlockIQ2_XS) == 74);

// blocks: n_blocks * 74 bytes; out: n_blocks * 256 floats.
void decode_iq2_xs(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);

}  // namespace moesaic::quant
