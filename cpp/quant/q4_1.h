// Q4_1: 32 elements in 20 bytes, 5 bits each. x[i] = d * q[i] + m. Source: ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes  0..1   d      f16
// bytes  2..3   m      f16
// bytes  4..19  qs[j]  low nibble: q[j], high nibble: q[j + 16]
#pragma pack(push, 1)
struct BlockQ4_1 {
  std::uint16_t d;
  std::uint16_t m;
  std::uint8_t qs[16];
};
#pragma pack(pop)
static_assert(sizeof(BlockQ4_1) == 20);

// blocks: n_blocks * 20 bytes; out: n_blocks * 32 floats.
void decode_q4_1(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);
void encode_q4_1(const float* in, std::int64_t n_blocks, std::uint8_t* blocks);

}  // namespace moesaic::quant
