// How a step is cut for the pipeline: pieces of its sequences in row order, so many rows at a time;
// decode rows into one group for each stage. Pure arithmetic.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "model/runner.h"

namespace moesaic::cluster {

// Rows [offset, offset + n_rows) of a sequence of a step.
struct Piece {
  std::size_t sequence = 0;
  std::int64_t offset = 0;
  std::int64_t n_rows = 0;
};
using MicroBatch = std::vector<Piece>;

// How long a micro-batch takes at a stage, in units of a row that sees no cached position.
struct BatchCost {
  double fixed = 0;         // whatever its rows: weights are read and unpacked
  double per_position = 0;  // for each position up to its last row: MLA decompresses them
  double per_key = 0;       // for each row and position that it sees: attention
};

struct CutOptions {
  std::int64_t max_rows = 0;  // of a micro-batch
  std::int64_t n_stages = 1;
  BatchCost cost{};
  // What each sequence of the step takes of a frame beside its rows, and what there is of it: a
  // micro-batch whose sequences take more is cut between two of them. Empty: nothing.
  std::span<const std::size_t> field_bytes{};
  std::size_t most_field_bytes = SIZE_MAX;
};

// Each of at most max_rows rows, and of fewer when the step is short.
std::vector<MicroBatch> cut_step(const model::Step& step, const CutOptions& options);

}  // namespace moesaic::cluster
