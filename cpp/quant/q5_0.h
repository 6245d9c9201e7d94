// Q5_0: 32 elements in 22 bytes, 5.5 bits each. x[i] = d * (q[i] - 16). Source: ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes  0..1   d      f16
// bytes  2..5   qh     bit i: bit 4 of q[i]
// bytes  6..21  qs[j]  low nibble: bits 0..3 of q[j], high nibble: of q[j + 16]
#pragma pack(push, 1)
struct BlockQ5_0 {
  std::uint16_t d;
  std::uint32_t qh;
  std::uint8_t qs[16];
};
#pragma pack(pop)
static_assert(sizeof(BlockQ5_0) == 22);

// blocks: n_blocks * 22 bytes; out: n_blocks * 32 floats.
void decode_q5_0(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);
void encode_q5_0(const float* in, std::int64_t n_blocks, std::uint8_t* blocks);

}  // namespace moesaic::quant
