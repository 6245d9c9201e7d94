// Q6_K: 256 elements in 210 bytes, 6.5625 bits each. With s = i / 16: x[i] = (d * scale[s]) * (q[i]
// - 32). Source: ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes   0..127  ql[b]      low nibble: bits 0..3 of q[128 * (b / 64) + b % 64], high nibble: of
// the element 64 after it bytes 128..191  qh[b]      bits [2k, 2k + 2): bits 4..5 of q[128 * (b /
// 32) + 32 * k + b % 32] bytes 192..207  scales[s]  scale[s], signed bytes 208..209  d          f16
#pragma pack(push, 1)
struct BlockQ6_K {
  std::uint8_t ql[128];
  std::uint8_t qh[64];
  std::int8_t scales[16];
  std::uint16_t d;
};
#pragma pack(pop)
static_assert(sizeof(BlockQ6_K) == 210);

// blocks: n_blocks * 210 bytes; out: n_blocks * 256 floats.
void decode_q6_k(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);
void encode_q6_k(const float* in, std::int64_t n_blocks, std::uint8_t* blocks);

}  // namespace moesaic::quant
