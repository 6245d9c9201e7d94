// How a step is cut for the pipeline: pieces of its sequences in row order, so many rows at a time;
// decode rows into one group for each stage. Pure arithmetic.
#pragma once

#include <cstdint>
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

// Each of at most max_rows rows, and of fewer when the step is short.
std::vector<MicroBatch> cut_step(const model::Step& step, std::int64_t max_rows,
                                 std::int64_t n_stages);

}  // namespace moesaic::cluster
