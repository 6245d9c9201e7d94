// Q8_0: 32 elements in 34 bytes, 8.5 bits each. x[i] = q[i] * d. Source: ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes  0..1   d      f16
// bytes  2..33  qs[i]  q[i], signed
#pragma pack(push, 1)
struct BlockQ8_0 {
  std::uint16_t d;
  std::int8_t qs[32];
};
#pragma pack(pop)
static_assert(sizeof(BlockQ8_0) == 34);

// blocks: n_blocks * 34 bytes; out: n_blocks * 32 floats.
void decode_q8_0(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);
void encode_q8_0(const float* in, std::int64_t n_blocks, std::uint8_t* blocks);

}  // namespace moesaic::quant
