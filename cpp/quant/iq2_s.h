// IQ2_S: 256 elements in 82 bytes, 2.5625 bits each. Eight elements are a point of kIq2sGrid with
// free signs; with s = i / 16: x[i] = ((d * (0.5 + scale[s])) * 0.25) * point * sign. Source:
// ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes  0..1   d          f16
// bytes  2..33  qs[g]      bits 0..7 of the grid index of elements 8 g .. 8 g + 7
// bytes 34..65  signs[g]   bit j: element 8 g + j is negative
// bytes 66..73  qh[b]      bits [2k, 2k + 2): bits 8..9 of the grid index of group 4 b + k
// bytes 74..81  scales[b]  low nibble: scale[2 b], high nibble: scale[2 b + 1]
#pragma pack(push, 1)
struct BlockIQ2_S {
  std::uint16_t d;
  std::uint8_t qs[32];
  std::uint8_t signs[32];
  std::uint8_t qh[8];
  std::uint8_t scales[8];
};
#pragma pack(pop)
static_assert(sizeof(BlockIQ2_S) == 82);

// blocks: n_blocks * 82 bytes; out: n_blocks * 256 floats.
void decode_iq2_s(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);

}  // namespace moesaic::quant
