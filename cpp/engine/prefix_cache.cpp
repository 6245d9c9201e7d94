// A short list searched from end to end: some tens of entries, compared token by token. Not a tree:
// it would save nothing at this size.
#include "engine/prefix_cache.h"

#include <algorithm>
#include <utility>

namespace moesaic::engine {

std::int64_t common_prefix(std::span<const std::int32_t> a, std::span<const std::int32_t> b) {
  const auto end = std::mismatch(a.begin(), a.end(), b.begin(), b.end()).first;
  return end - a.begin();
}

std::optional<PrefixCache::Match> PrefixCache::find(std::span<const std::int32_t> tokens) {
  std::int64_t longest = 0;
  std::size_t at = 0;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    const std::int64_t n = common_prefix(entries_[i].tokens, tokens);
    if (n > longest) {
      longest = n;
      at = i;
    }
  }
  if (longest == 0) return std::nullopt;
  std::rotate(entries_.begin() + static_cast<std::ptrdiff_t>(at),
              entries_.begin() + static_cast<std::ptrdiff_t>(at) + 1, entries_.end());
  return Match{entries_.back().sequence, longest};
}

std::vector<model::SequenceId> PrefixCache::insert(model::SequenceId sequence,
                                                   std::vector<std::int32_t> tokens) {
  const auto n = static_cast<std::int64_t>(tokens.size());
  for (const Entry& entry : entries_) {
    if (n == 0 || common_prefix(entry.tokens, tokens) == n) return {sequence};
  }
  if (n == 0 || max_entries_ == 0) return {sequence};
  std::vector<model::SequenceId> closed;
  closed.reserve(entries_.size() + 1);  // so that memory at its end changes nothing
  entries_.reserve(entries_.size() + 1);
  std::erase_if(entries_, [&](const Entry& entry) {
    const bool covered =
        common_prefix(entry.tokens, tokens) == static_cast<std::int64_t>(entry.tokens.size());
    if (covered) closed.push_back(entry.sequence);
    return covered;
  });
  entries_.push_back({sequence, std::move(tokens)});
  while (entries_.size() > max_entries_) closed.push_back(*evict());
  return closed;
}

std::optional<model::SequenceId> PrefixCache::evict(std::optional<model::SequenceId> keep) {
  for (auto it = entries_.begin(); it != entries_.end(); ++it) {
    if (keep && it->sequence == *keep) continue;
    const model::SequenceId sequence = it->sequence;
    entries_.erase(it);
    return sequence;
  }
  return std::nullopt;
}

}  // namespace moesaic::engine
