// Finished sequences whose KV is still there, found again by their tokens. Least recently used ones
// go first. Holds ids only: closing a sequence is the caller's business. Not thread-safe.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "model/runner.h"

namespace moesaic::engine {

// Length of the longest common beginning.
std::int64_t common_prefix(std::span<const std::int32_t> a, std::span<const std::int32_t> b);

class PrefixCache {
 public:
  explicit PrefixCache(std::size_t max_entries) : max_entries_(max_entries) {}

  struct Match {
    model::SequenceId sequence = 0;
    std::int64_t n_tokens = 0;
  };
  // The entry with the longest beginning in common with tokens (and marks it as used); nullopt when
  // nothing is.
  std::optional<Match> find(std::span<const std::int32_t> tokens);

  // Takes a finished sequence. Returns the sequences to close: entries that are beginnings of it,
  // what is over the limit, or the sequence itself when an entry already begins with it.
  std::vector<model::SequenceId> insert(model::SequenceId sequence,
                                        std::vector<std::int32_t> tokens);

  // Removes the least recently used entry, other than `keep`; nullopt when there is none.
  std::optional<model::SequenceId> evict(std::optional<model::SequenceId> keep = std::nullopt);

  std::size_t size() const { return entries_.size(); }

 private:
  struct Entry {
    model::SequenceId sequence = 0;
    std::vector<std::int32_t> tokens;
  };
  std::size_t max_entries_;
  std::vector<Entry> entries_;  // least recently used first
};

}  // namespace moesaic::engine
