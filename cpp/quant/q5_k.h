// Q5_K: 256 elements in 176 bytes, 5.5 bits each. With s = i / 32: x[i] = (d * scale[s]) * q[i] -
// dmin * min[s]. Source: ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes  0..1    d       f16
// bytes  2..3    dmin    f16
// bytes  4..15   scales  eight six-bit scales and mins: k_scales.h
// bytes 16..47   qh[b]   bit s: bit 4 of q[32 * s + b]
// bytes 48..175  qs[b]   low nibble: bits 0..3 of q[64 * (b / 32) + b % 32], high nibble: of the
// element 32 after it
#pragma pack(push, 1)
struct BlockQ5_K {
  std::uint16_t d;
  std::uint16_t dmin;
  std::uint8_t scales[12];
  std::uint8_t qh[32];
  std::uint8_t qs[128];
};
#pragma pack(pop)
static_assert(sizeof(BlockQ5_K) == 176);

// blocks: n_blocks * 176 bytes; out: n_blocks * 256 floats.
void decode_q5_k(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);
void encode_q5_k(const float* in, std::int64_t n_blocks, std::uint8_t* blocks);

}  // namespace moesaic::quant
