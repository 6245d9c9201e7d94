// Scratch memory of the CPU backend: one block, planned once from the largest step, carved anew by
// each operation. A shared part, then one part per member of the team. Nothing here allocates after
// plan time: an operation that needs more than was planned is a bug and says so.
#pragma once

#include <cstddef>
#include <cstdint>

#include "backend/backend.h"
#include "base/aligned_buffer.h"
#include "base/errors.h"
#include "kernels/table.h"

namespace moesaic::backend::cpu {

inline constexpr std::size_t kAlign = 64;
inline std::size_t aligned(std::size_t n_bytes) { return (n_bytes + kAlign - 1) / kAlign * kAlign; }

// Columns of one packed block: enough to pay for unpacking a panel of weights, few enough to stay
// in L2 (KERNELS.md).
inline constexpr std::int64_t kBlockCols = 128;
// Queries of one attention job. More heads than this in a KV group are cut.
inline constexpr std::int64_t kTileQueries = 64;
// Tiles that share the pass over a chunk of the cache.
inline constexpr std::int64_t kTilesPerItem = 4;

// Takes aligned pieces off a span of memory.
class Arena {
 public:
  Arena(std::uint8_t* data, std::size_t n_bytes, const char* op)
      : data_(data), left_(n_bytes), op_(op) {}
  template <typename T>
  T* take(std::int64_t count) {
    const std::size_t need = aligned(static_cast<std::size_t>(count) * sizeof(T));
    if (need > left_) {
      fail<InternalError>("[cpu.", op_, "] scratch: need ", need, " bytes, ", left_,
                          " of the plan are left; reserve() was told of smaller steps");
    }
    T* piece = reinterpret_cast<T*>(data_);
    data_ += need;
    left_ -= need;
    return piece;
  }
  std::size_t left() const { return left_; }

 private:
  std::uint8_t* data_;
  std::size_t left_;
  const char* op_;
};

struct ScratchPlan {
  std::size_t acts_bytes = 0;       // prepared activation rows
  std::size_t packs_bytes = 0;      // packed columns of one wave
  std::size_t attention_bytes = 0;  // shared part of attention
  std::size_t shared_bytes = 0;     // the larger of matmul's and attention's need
  std::size_t member_bytes = 0;     // of each member
  std::int64_t partial_units = 0;   // (item, chunk) results held at once when chunks are split
  std::int64_t rope_floats = 0;     // cos and sin of a step
  std::size_t total(int n_threads) const {
    return shared_bytes + member_bytes * static_cast<std::size_t>(n_threads);
  }
};

ScratchPlan plan_scratch(const Backend::ScratchSpec& spec, const kernels::Table& table,
                         int n_threads);

// One result of attention before it is finished: floats of (maximum, sum, out) for a tile.
inline std::int64_t partial_floats(std::int64_t d_v) { return kTileQueries * (d_v + 2); }

}  // namespace moesaic::backend::cpu
