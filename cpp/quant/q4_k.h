// Q4_K: 256 elements in 144 bytes, 4.5 bits each. With s = i / 32: x[i] = (d * scale[s]) * q[i] -
// dmin * min[s]. Source: ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes  0..1    d       f16
// bytes  2..3    dmin    f16
// bytes  4..15   scales  eight six-bit scales and mins: k_scales.h
// bytes 16..143  qs[b]   low nibble: q[64 * (b / 32) + b % 32], high nibble: the element 32 after
// it
#pragma pack(push, 1)
struct BlockQ4_K {
  std::uint16_t d;
  std::uint16_t dmin;
  std::uint8_t scales[12];
  std::uint8_t qs[128];
};
#pragma pack(pop)
static_assert(sizeof(BlockQ4_K) == 144);

// blocks: n_blocks * 144 bytes; out: n_blocks * 256 floats.
void decode_q4_k(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);
void encode_q4_k(const float* in, std::int64_t n_blocks, std::uint8_t* blocks);

}  // namespace moesaic::quant
