// IQ2_XXS: 256 elements in 66 bytes, 2.0625 bits each. Eight elements are a point of kIq2xxsGrid
// with signs; with s = i / 32: x[i] = ((d * (0.5 + scale[s])) * 0.25) * point * sign. Source:
// ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes 0..1   d   f16
// bytes 2..65  qs  for each of 8 groups of 32 elements 8 bytes: 4 grid indices, then a
// little-endian u32:
//                  bits [7k, 7k + 7): kIq2xsSigns index of point k; bits 28..31: scale
#pragma pack(push, 1)
struct BlockIQ2_XXS {
  std::uint16_t d;
  std::uint16_t qs[32];
};
#pragma pack(pop)
static_assert(sizeof(BlockIQ2_XXS) == 66);

// blocks: n_blocks * 66 bytes; out: n_blocks * 256 floats.
void decode_iq2_xxs(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);

}  // namespace moesaic::quant
