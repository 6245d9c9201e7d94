// IQ1_S: 256 elements in 50 bytes, 1.5625 bits each. Eight elements are a point of kIq1sGrid (-1,
// 0, 1), moved by
// +-kIq1Delta; with s = i / 32: x[i] = (d * (2 * scale[s] + 1)) * (point + delta[s]). Source:
// ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes  0..1   d      f16
// bytes  2..33  qs[g]  bits 0..7 of the grid index of elements 8 g .. 8 g + 7
// bytes 34..49  qh[s]  u16: bits [3k, 3k + 3): bits 8..10 of the grid index of group 4 s + k;
//                      bits 12..14: scale[s]; bit 15: delta[s] is negative
#pragma pack(push, 1)
struct BlockIQ1_S {
  std::uint16_t d;
  std::uint8_t qs[32];
  std::uint16_t qh[8];
};
#pragma pack(pop)
static_assert(sizeof(BlockIQ1_S) == 50);

// blocks: n_blocks * 50 bytes; out: n_blocks * 256 floats.
void decode_iq1_s(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);

}  // namespace moesaic::quant
