// See micro_batches.h.
#include "cluster/micro_batches.h"

#include <algorithm>

namespace moesaic::cluster {
namespace {

// Row counts that sum to n_rows.
std::vector<std::int64_t> batch_sizes(std::int64_t n_rows, std::int64_t max_rows,
                                      std::int64_t n_stages) {
  std::vector<std::int64_t> sizes;
  // Below this the weights are read for too few rows.
  constexpr std::int64_t kLeast = 32;
  const std::int64_t ramp = max_rows / 2 + max_rows / 4;
  if (n_stages < 2 || max_rows < 4 * kLeast || n_rows < 2 * ramp + 2 * max_rows) {
    const std::int64_t n = (n_rows + max_rows - 1) / max_rows;
    for (std::int64_t i = 0; i < n; ++i) {
      sizes.push_back(n_rows * (i + 1) / n - n_rows * i / n);
    }
    return sizes;
  }
  sizes = {max_rows / 4, max_rows / 2};
  const std::int64_t middle = n_rows - 2 * ramp;
  const std::int64_t n = (middle + max_rows - 1) / max_rows;
  for (std::int64_t i = 0; i < n; ++i) {
    sizes.push_back(middle * (i + 1) / n - middle * i / n);
  }
  sizes.push_back(max_rows / 2);
  sizes.push_back(max_rows / 4);
  return sizes;
}

}  // namespace

std::vector<MicroBatch> cut_step(const model::Step& step, std::int64_t max_rows,
                                 std::int64_t n_stages) {
  const auto n_sequences = static_cast<std::int64_t>(step.sequences.size());
  std::int64_t n_rows = 0;
  for (const model::SequenceStep& sequence : step.sequences) {
    n_rows += static_cast<std::int64_t>(sequence.tokens.size());
  }
  std::vector<std::int64_t> sizes;
  if (n_rows == n_sequences) {
    const std::int64_t groups =
        std::max(std::min(n_stages, n_sequences), (n_sequences + max_rows - 1) / max_rows);
    for (std::int64_t i = 0; i < groups; ++i) {
      sizes.push_back(n_rows * (i + 1) / groups - n_rows * i / groups);
    }
  } else {
    sizes = batch_sizes(n_rows, max_rows, n_stages);
  }
  std::vector<MicroBatch> batches;
  std::size_t sequence = 0;
  std::int64_t offset = 0;
  for (std::int64_t left : sizes) {
    MicroBatch batch;
    while (left > 0) {
      const auto n = static_cast<std::int64_t>(step.sequences[sequence].tokens.size());
      const std::int64_t taken = std::min(left, n - offset);
      batch.push_back({sequence, offset, taken});
      left -= taken;
      offset += taken;
      if (offset == n) {
        ++sequence;
        offset = 0;
      }
    }
    batches.push_back(std::move(batch));
  }
  return batches;
}

}  // namespace moesaic::cluster
