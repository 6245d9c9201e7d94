// IQ1_M: 256 elements in 56 bytes, 1.75 bits each. Eight elements are a point of kIq1sGrid (-1, 0,
// 1), moved by
// +-kIq1Delta; with s = i / 16, g = i / 8: x[i] = (d * (2 * scale[s] + 1)) * (point + delta[g]).
// Source: ggml's format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes  0..31  qs[g]      bits 0..7 of the grid index of elements 8 g .. 8 g + 7
// bytes 32..47  qh[b]      nibble g % 2 of byte g / 2: bits 0..2: bits 8..10 of the grid index, bit
// 3: delta[g] is negative bytes 48..55  scales[w]  u16: bits [3k, 3k + 3): scale[4 w + k];
// bits 12..15: bits [4w, 4w + 4) of d, an f16
#pragma pack(push, 1)
struct BlockIQ1_M {
  std::uint8_t qs[32];
  std::uint8_t qh[16];
  std::uint16_t scales[4];
};
#pragma pack(pop)
static_assert(sizeof(BlockIQ1_M) == 56);

// blocks: n_blocks * 56 bytes; out: n_blocks * 256 floats.
void decode_iq1_m(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);

}  // namespace moesaic::quant
