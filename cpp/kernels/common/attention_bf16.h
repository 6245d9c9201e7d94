// How attention with bf16 products lays out its scratch; plain sizes, no instructions. The kernel
// itself is avx512vnni/attention_bf16.cpp.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/table.h"

namespace moesaic::kernels {

inline constexpr std::int64_t kLanes = 16;        // queries side by side in a register
inline constexpr std::int64_t kQueryGroup = 64;   // queries that share the conversion of a row
inline constexpr std::int64_t kKeyTile = 16;      // keys whose scores are in registers at once
inline constexpr std::int64_t kKeySpan = 128;     // keys between two looks at the maximum
inline constexpr std::int64_t kPieceDims = 32;    // dimensions of a register of bf16
inline constexpr std::int64_t kGroupVectors = 4;  // value registers of sixteen dimensions at once

// Bytes of each part, each a multiple of 64.
struct Bf16Layout {
  Bf16Layout(std::int64_t d_k, std::int64_t d_v)
      : n_pieces((d_k + kPieceDims - 1) / kPieceDims),
        n_groups((d_v + kLanes * kGroupVectors - 1) / (kLanes * kGroupVectors)) {}

  std::int64_t n_pieces;  // of a key
  std::int64_t n_groups;  // of a value

  // (kQueryGroup / kLanes, d_k / 2, kLanes) pairs of neighbouring dimensions
  std::size_t query_block_bytes() const { return bytes(n_pieces * kPieceDims / 2 * kLanes * 4); }
  std::size_t queries_bytes() const { return query_block_bytes() * (kQueryGroup / kLanes); }
  // (n_pieces, kKeyTile, kPieceDims)
  std::size_t keys_bytes() const { return bytes(n_pieces * kKeyTile * kPieceDims * 2); }
  // (n_groups, kKeySpan / 2, kGroupVectors, kLanes) pairs of neighbouring positions; a line more
  // for each group, so that they do not all fall into the same sets of the cache
  std::size_t value_group_bytes() const {
    return bytes(kKeySpan / 2 * kGroupVectors * kLanes * 4 + 64);
  }
  std::size_t values_bytes() const {
    return value_group_bytes() * static_cast<std::size_t>(n_groups);
  }
  // (kKeySpan, kLanes) floats for each block of queries
  static std::size_t score_block_bytes() { return bytes(kKeySpan * kLanes * 4); }
  static std::size_t scores_bytes() { return score_block_bytes() * (kQueryGroup / kLanes); }
  // (kKeySpan / 2, kLanes) pairs of weights
  static std::size_t weights_bytes() { return bytes(kKeySpan / 2 * kLanes * 4); }

  std::size_t total() const {
    return queries_bytes() + keys_bytes() + values_bytes() + scores_bytes() + weights_bytes();
  }

 private:
  static std::size_t bytes(std::int64_t n) { return static_cast<std::size_t>(n + 63) / 64 * 64; }
};

}  // namespace moesaic::kernels
