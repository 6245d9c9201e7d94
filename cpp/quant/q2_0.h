// Q2_0: 64 elements in 18 bytes, 2.25 bits each. x[i] = d * (q[i] - 1), q from 0 to 3. Source:
// ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes 0.. 1  d      f16
// bytes 2..17  qs[b]  bits [2k, 2k + 2): q[4 * b + k]
#pragma pack(push, 1)
struct BlockQ2_0 {
  std::uint16_t d;
  std::uint8_t qs[16];
};
#pragma pack(pop)
static_assert(sizeof(BlockQ2_0) == 18);

// blocks: n_blocks * 18 bytes; out: n_blocks * 64 floats.
void decode_q2_0(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);

}  // namespace moesaic::quant
