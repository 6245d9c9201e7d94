// IQ3_S: 256 elements in 110 bytes, 3.4375 bits each. Four elements are a point of kIq3sGrid with
// free signs; with s = i / 32: x[i] = (d * (1 + 2 * scale[s])) * point * sign. Source: ggml's file
// format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes   0..1    d          f16
// bytes   2..65   qs[g]      bits 0..7 of the grid index of elements 4 g .. 4 g + 3
// bytes  66..73   qh[s]      bit k: bit 8 of the grid index of group 8 s + k
// bytes  74..105  signs[b]   bit j: element 8 b + j is negative
// bytes 106..109  scales[b]  low nibble: scale[2 b], high nibble: scale[2 b + 1]
#pragma pack(push, 1)
struct BlockIQ3_S {
  std::uint16_t d;
  std::uint8_t qs[64];
  std::uint8_t qh[8];
  std::uint8_t signs[32];
  std::uint8_t scales[4];
};
#pragma pack(pop)
static_assert(sizeof(BlockIQ3_S) == 110);

// blocks: n_blocks * 110 bytes; out: n_blocks * 256 floats.
void decode_iq3_s(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);

}  // namespace moesaic::quant
