// Q2_K: 256 elements in 84 bytes, 2.625 bits each. With s = i / 16: x[i] = (d * scale[s]) * q[i] -
// dmin * min[s]. Source: ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes  0..15  scales[s]  low nibble: scale[s], high nibble: min[s]
// bytes 16..79  qs[b]      bits [2k, 2k + 2): q[128 * (b / 32) + 32 * k + b % 32]
// bytes 80..81  d          f16
// bytes 82..83  dmin       f16
#pragma pack(push, 1)
struct BlockQ2_K {
  std::uint8_t scales[16];
  std::uint8_t qs[64];
  std::uint16_t d;
  std::uint16_t dmin;
};
#pragma pack(pop)
static_assert(sizeof(BlockQ2_K) == 84);

// blocks: n_blocks * 84 bytes; out: n_blocks * 256 floats.
void decode_q2_k(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);
void encode_q2_k(const float* in, std::int64_t n_blocks, std::uint8_t* blocks);

}  // namespace moesaic::quant
