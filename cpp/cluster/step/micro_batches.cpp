// See micro_batches.h.
#include "cluster/step/micro_batches.h"

#include <algorithm>
#include <utility>

namespace moesaic::cluster {
namespace {

// A short step in fewer rows at a time, or most stages would never work at once; not so few that
// reading the weights takes all the time.
std::int64_t most_rows(std::int64_t n_rows, const CutOptions& options) {
  constexpr std::int64_t kLeast = 128;
  if (options.n_stages < 2) return options.max_rows;
  const std::int64_t for_all = (n_rows + 2 * options.n_stages - 1) / (2 * options.n_stages);
  return std::min(options.max_rows, std::max(kLeast, for_all));
}

std::vector<std::int64_t> even_sizes(std::int64_t n_rows, std::int64_t n) {
  std::vector<std::int64_t> sizes;
  for (std::int64_t i = 0; i < n; ++i) sizes.push_back(n_rows * (i + 1) / n - n_rows * i / n);
  return sizes;
}

// The position of each of the step's rows. (n_rows)
std::vector<std::int64_t> positions_of(const model::Step& step) {
  std::vector<std::int64_t> positions;
  for (const model::SequenceStep& sequence : step.sequences) {
    for (std::size_t i = 0; i < sequence.tokens.size(); ++i) {
      positions.push_back(sequence.start + static_cast<std::int64_t>(i));
    }
  }
  return positions;
}

// What rows cost up to and with each, were a row's cost 1 and per_key for each position before it.
std::vector<double> summed_costs(const std::vector<std::int64_t>& positions, double per_key) {
  std::vector<double> sums;
  double sum = 0;
  for (const std::int64_t position : positions) {
    sum += 1.0 + per_key * static_cast<double>(position);
    sums.push_back(sum);
  }
  return sums;
}

// n parts of equal cost; none is empty.
std::vector<std::int64_t> equal_parts(const std::vector<double>& sums, std::int64_t n) {
  const auto n_rows = static_cast<std::int64_t>(sums.size());
  std::vector<std::int64_t> sizes;
  std::int64_t begin = 0;
  for (std::int64_t i = 1; i <= n; ++i) {
    const double until = sums.back() * static_cast<double>(i) / static_cast<double>(n);
    const auto nearest = std::upper_bound(sums.begin(), sums.end(), until) - sums.begin();
    const std::int64_t end =
        i == n ? n_rows : std::clamp<std::int64_t>(nearest, begin + 1, n_rows - (n - i));
    sizes.push_back(end - begin);
    begin = end;
  }
  return sizes;
}

// A pipeline of equal stages takes the time of all its parts at one of them, and that of the
// longest once more at each of the others. In units of a row; for one stage.
double pipeline_cost(const std::vector<std::int64_t>& positions,
                     const std::vector<std::int64_t>& sizes, const CutOptions& options) {
  double all = 0;
  double longest = 0;
  auto position = positions.begin();
  for (const std::int64_t size : sizes) {
    double cost = options.cost.fixed + static_cast<double>(size);
    for (std::int64_t i = 0; i < size; ++i, ++position) {
      cost += options.cost.per_key * static_cast<double>(*position);
    }
    cost += options.cost.per_position * static_cast<double>(*(position - 1));
    all += cost;
    longest = std::max(longest, cost);
  }
  return all + static_cast<double>(options.n_stages - 1) * longest;
}

// Row counts of the parts. Smaller first and last ones would gain nothing (see pipeline_cost), but
// equally long ones do: deep in a prompt a row takes longer, so fewer go together. That needs more
// parts, each of which reads the weights anew; how far to go is what costs least.
std::vector<std::int64_t> batch_sizes(const model::Step& step, std::int64_t n_rows,
                                      const CutOptions& options) {
  const std::int64_t most = most_rows(n_rows, options);
  const std::int64_t fewest = (n_rows + most - 1) / most;
  std::vector<std::int64_t> best = even_sizes(n_rows, fewest);
  if (fewest == 1 || options.n_stages < 2 || !(options.cost.per_key > 0)) return best;
  const std::vector<std::int64_t> positions = positions_of(step);
  double least = pipeline_cost(positions, best, options);
  for (const double share : {0.25, 0.5, 0.75, 1.0}) {
    const std::vector<double> sums = summed_costs(positions, share * options.cost.per_key);
    // Twice as many parts read the weights twice as often: nothing is worth more than that. Below
    // it there are at least as many rows as parts.
    for (std::int64_t n = fewest; n < std::min(2 * fewest, n_rows); n += 1 + n / 16) {
      std::vector<std::int64_t> sizes = equal_parts(sums, n);
      if (*std::max_element(sizes.begin(), sizes.end()) > most) continue;
      const double cost = pipeline_cost(positions, sizes, options);
      if (cost < least) {
        least = cost;
        best = std::move(sizes);
      }
      break;
    }
  }
  return best;
}

// Sequences of one frame at most: the tokens that go back to the first stage are one small frame.
constexpr std::size_t kMostPieces = 8192;

// Micro-batches whose fields fit a frame, each sequence's with it alone.
std::vector<MicroBatch> cut_to_frames(std::vector<MicroBatch> batches, const CutOptions& options) {
  std::vector<MicroBatch> fitting;
  for (MicroBatch& batch : batches) {
    MicroBatch now;
    std::size_t n_bytes = 0;
    for (const Piece& piece : batch) {
      const std::size_t more =
          options.field_bytes.empty() ? 0 : options.field_bytes[piece.sequence];
      if (!now.empty() &&
          (now.size() == kMostPieces || n_bytes + more > options.most_field_bytes)) {
        fitting.push_back(std::exchange(now, {}));
        n_bytes = 0;
      }
      n_bytes += more;
      now.push_back(piece);
    }
    fitting.push_back(std::move(now));
  }
  return fitting;
}

}  // namespace

std::vector<MicroBatch> cut_step(const model::Step& step, const CutOptions& options) {
  const auto n_sequences = static_cast<std::int64_t>(step.sequences.size());
  std::int64_t n_rows = 0;
  for (const model::SequenceStep& sequence : step.sequences) {
    n_rows += static_cast<std::int64_t>(sequence.tokens.size());
  }
  std::vector<std::int64_t> sizes;
  if (n_rows == n_sequences) {
    sizes = even_sizes(n_rows, std::max(std::min(options.n_stages, n_sequences),
                                        (n_sequences + options.max_rows - 1) / options.max_rows));
  } else {
    sizes = batch_sizes(step, n_rows, options);
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
  return cut_to_frames(std::move(batches), options);
}

}  // namespace moesaic::cluster
