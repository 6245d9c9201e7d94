// TQ1_0: 256 elements in 54 bytes, 1.6875 bits each. x[i] = d * t[i], t in -1, 0, 1. Source: ggml's
// file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// A byte holds five base-3 digits as the fraction byte / 256; digit n is the top of (byte * 3^n mod
// 256) * 3 / 256. bytes  0..31  qs[b]  digit n: t[32 * n + b] + 1 bytes 32..47  qs[b]  digit n:
// t[160 + 16 * n + b - 32] + 1 bytes 48..51  qh[b]  digit n < 4: t[240 + 4 * n + b] + 1
// bytes 52..53  d      f16
#pragma pack(push, 1)
struct BlockTQ1_0 {
  std::uint8_t qs[48];
  std::uint8_t qh[4];
  std::uint16_t d;
};
#pragma pack(pop)
static_assert(sizeof(BlockTQ1_0) == 54);

// blocks: n_blocks * 54 bytes; out: n_blocks * 256 floats.
void decode_tq1_0(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);

}  // namespace moesaic::quant
