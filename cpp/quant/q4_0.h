// Q4_0: 32 elements in 18 bytes, 4.5 bits each. x[i] = d * (q[i] - 8). Source: ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes  0..1   d      f16
// bytes  2..17  qs[j]  low nibble: q[j], high nibble: q[j + 16]
#pragma pack(push, 1)
struct BlockQ4_0 {
  std::uint16_t d;
  std::uint8_t qs[16];
};
#pragma pack(pop)
static_assert(sizeof(BlockQ4_0) == 18);

// blocks: n_blocks * 18 bytes; out: n_blocks * 32 floats.
void decode_q4_0(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);
void encode_q4_0(const float* in, std::int64_t n_blocks, std::uint8_t* blocks);

}  // namespace moesaic::quant
