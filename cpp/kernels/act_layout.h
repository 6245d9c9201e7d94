// How a prepared row of activations lies in memory; table.h names the formats. Written by prepare,
// read by every matmul kernel and by pack. One layout serves both integer formats: they differ only
// in how many values share a float scale. The functions here are always inlined: no copy compiled
// for one ISA may be what other code is linked with.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/table.h"

namespace moesaic::kernels {

inline constexpr std::int64_t kChunk = 256;  // values of one super-block
inline constexpr std::int64_t kSumGroup = 16;

// Scratch of the many-column kernels: the largest panel has 32 rows of bytes and, per block of 32,
// three floats a row beside them.
inline constexpr std::int64_t kPanelBytesPerK = 44;

// k values rounded up to whole chunks: rows are padded with zeros, so that a kernel may read (and
// multiply by nothing) to the end of the last chunk.
[[gnu::always_inline]] constexpr std::int64_t padded_k(std::int64_t k) {
  return (k + kChunk - 1) / kChunk * kChunk;
}

// A row of kQ8x32 or kQ8x256, with kp = padded_k(k), at a 64-byte boundary:
//   int8  q[kp]          value i is about scale[i / scale_group] * q[i]
//   int16 sum[kp / 16]   sum of q over each 16
//   float scale[kp / scale_group]
struct ActRow {
  const std::int8_t* q;
  const std::int16_t* sum;
  const float* scale;
};

[[gnu::always_inline]] constexpr std::int64_t scale_group(ActFormat format) {
  return format == ActFormat::kQ8x32 ? 32 : kChunk;
}

[[gnu::always_inline]] inline ActRow act_row(const std::uint8_t* row, std::int64_t kp) {
  const std::uint8_t* sum = row + kp;
  return {reinterpret_cast<const std::int8_t*>(row), reinterpret_cast<const std::int16_t*>(sum),
          reinterpret_cast<const float*>(sum + kp / kSumGroup * 2)};
}

}  // namespace moesaic::kernels
