// Q1_0: 128 elements in 18 bytes, 1.125 bits each. x[i] = d or -d. Source: ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes 0.. 1  d      f16
// bytes 2..17  qs[b]  bit i: element 8 * b + i is d where it is set, -d where it is clear
#pragma pack(push, 1)
struct BlockQ1_0 {
  std::uint16_t d;
  std::uint8_t qs[16];
};
#pragma pack(pop)
static_assert(sizeof(BlockQ1_0) == 18);

// blocks: n_blocks * 18 bytes; out: n_blocks * 128 floats.
void decode_q1_0(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);

}  // namespace moesaic::quant
