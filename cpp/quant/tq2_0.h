// TQ2_0: 256 elements in 66 bytes, 2.0625 bits each. x[i] = d * (q[i] - 1). Source: ggml's file
// format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes  0..63  qs[b]  bits [2k, 2k + 2): q[128 * (b / 32) + 32 * k + b % 32]
// bytes 64..65  d      f16
#pragma pack(push, 1)
struct BlockTQ2_0 {
  std::uint8_t qs[64];
  std::uint16_t d;
};
#pragma pack(pop)
static_assert(sizeof(BlockTQ2_0) == 66);

// blocks: n_blocks * 66 bytes; out: n_blocks * 256 floats.
void decode_tq2_0(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);

}  // namespace moesaic::quant
