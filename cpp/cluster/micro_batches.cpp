// See micro_batches.h.
#include "cluster/micro_batches.h"

#include <algorithm>

namespace moesaic::cluster {
namespace {

// Row counts that sum to n_rows, even: a small batch reads nearly as many experts as a large one,
// so that smaller first and last ones cost more than the sooner full pipeline gives.
std::vector<std::int64_t> batch_sizes(std::int64_t n_rows, std::int64_t max_rows,
                                      std::int64_t n_stages) {
  // A short step in fewer rows at a time, or most stages would never work at once; not so few that
  // reading the weights takes all the time.
  constexpr std::int64_t kLeast = 128;
  const std::int64_t for_all = (n_rows + 2 * n_stages - 1) / (2 * n_stages);
  const std::int64_t most = n_stages < 2 ? max_rows : std::min(max_rows, std::max(kLeast, for_all));
  const std::int64_t n = (n_rows + most - 1) / most;
  std::vector<std::int64_t> sizes;
  for (std::int64_t i = 0; i < n; ++i) sizes.push_back(n_rows * (i + 1) / n - n_rows * i / n);
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
