// IQ3_XXS: 256 elements in 98 bytes, 3.0625 bits each. Four elements are a point of kIq3xxsGrid
// with signs; with s = i / 32: x[i] = ((d * (0.5 + scale[s])) * 0.5) * point * sign. Source: ggml's
// file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes  0..1   d         f16
// bytes  2..65  qs[g]     grid index of elements 4 g .. 4 g + 3
// bytes 66..97  signs[s]  u32: bits [7k, 7k + 7): kIq2xsSigns index of elements 32 s + 8 k .. + 7;
// bits 28..31: scale[s]
#pragma pack(push, 1)
struct BlockIQ3_XXS {
  std::uint16_t d;
  std::uint8_t qs[64];
  std::uint32_t signs[8];
};
#pragma pack(pop)
static_assert(sizeof(BlockIQ3_XXS) == 98);

// blocks: n_blocks * 98 bytes; out: n_blocks * 256 floats.
void decode_iq3_xxs(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);

}  // namespace moesaic::quant
