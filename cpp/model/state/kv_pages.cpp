// Reference counts of KV pages; see kv_pages.h.
#include "model/state/kv_pages.h"

#include <algorithm>

#include "base/errors.h"

namespace moesaic::model {

KvPages::KvPages(std::int64_t n_pages, std::int64_t page_tokens)
    : page_tokens_(page_tokens),
      references_(static_cast<std::size_t>(n_pages), 0),
      free_(static_cast<std::size_t>(n_pages)) {
  for (std::int64_t i = 0; i < n_pages; ++i) {
    free_[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(n_pages - 1 - i);
  }
}

KvPages::Sequence& KvPages::find(SequenceId sequence) {
  return const_cast<Sequence&>(std::as_const(*this).find(sequence));
}

const KvPages::Sequence& KvPages::find(SequenceId sequence) const {
  const auto found = sequences_.find(sequence);
  if (found == sequences_.end()) {
    fail<ArgumentError>("[run] sequence ", sequence, ": not open, or closed before");
  }
  return found->second;
}

SequenceId KvPages::open() {
  const SequenceId id = next_++;
  sequences_.emplace(id, Sequence{});
  return id;
}

void KvPages::close(SequenceId sequence, std::vector<std::int32_t>& released) {
  drop_from(find(sequence), 0, &released);
  sequences_.erase(sequence);
}

std::int64_t KvPages::length(SequenceId sequence) const { return find(sequence).length; }

std::span<const std::int32_t> KvPages::pages(SequenceId sequence) const {
  return find(sequence).pages;
}

void KvPages::truncate(SequenceId sequence, std::int64_t n_tokens,
                       std::vector<std::int32_t>& released) {
  Sequence& s = find(sequence);
  if (n_tokens < 0 || n_tokens > s.length) {
    fail<ArgumentError>("[run] truncate: got ", n_tokens, " tokens, need 0 to ", s.length,
                        ", the cached ones");
  }
  s.length = n_tokens;
  drop_from(s, pages_for(n_tokens), &released);
}

SequenceId KvPages::fork(SequenceId sequence, std::int64_t n_tokens) {
  const Sequence& from = find(sequence);
  if (n_tokens < 0 || n_tokens > from.length) {
    fail<ArgumentError>("[run] fork: got ", n_tokens, " tokens, need 0 to ", from.length,
                        ", the cached ones");
  }
  Sequence copy;
  copy.length = n_tokens;
  copy.pages.assign(from.pages.begin(), from.pages.begin() + pages_for(n_tokens));
  for (const std::int32_t page : copy.pages) ++references_[static_cast<std::size_t>(page)];
  const SequenceId id = next_++;
  sequences_.emplace(id, std::move(copy));
  return id;
}

void KvPages::drop_from(Sequence& sequence, std::int64_t n_pages,
                        std::vector<std::int32_t>* released) {
  while (static_cast<std::int64_t>(sequence.pages.size()) > n_pages) {
    const std::int32_t page = sequence.pages.back();
    sequence.pages.pop_back();
    if (--references_[static_cast<std::size_t>(page)] > 0) continue;
    free_.push_back(page);
    if (released != nullptr) released->push_back(page);
  }
}

std::int32_t KvPages::take() {
  const std::int32_t page = free_.back();
  free_.pop_back();
  references_[static_cast<std::size_t>(page)] = 1;
  return page;
}

std::int64_t KvPages::pages_needed(std::span<const Write> writes) const {
  // Of a page that r sequences share and k of them write to, min(k, r - 1) copies are made: the
  // last holder keeps it.
  std::unordered_map<std::int32_t, std::int32_t> writers;
  std::int64_t needed = 0;
  for (const Write& write : writes) {
    const Sequence& s = find(write.sequence);
    const std::int64_t kept = pages_for(write.start);
    needed += std::max<std::int64_t>(0, pages_for(write.start + write.n_rows) - kept);
    if (write.n_rows == 0 || write.start % page_tokens_ == 0) continue;
    const std::int32_t page = s.pages[static_cast<std::size_t>(kept - 1)];
    const std::int32_t references = references_[static_cast<std::size_t>(page)];
    if (references > 1 && ++writers[page] < references) ++needed;
  }
  return needed;
}

std::int64_t KvPages::pages_freed(SequenceId sequence, std::int64_t n_tokens) const {
  const Sequence& s = find(sequence);
  std::int64_t freed = 0;
  for (auto i = static_cast<std::size_t>(pages_for(n_tokens)); i < s.pages.size(); ++i) {
    if (references_[static_cast<std::size_t>(s.pages[i])] == 1) ++freed;
  }
  return freed;
}

std::int64_t KvPages::pages_added(const Write& write) const {
  return std::max<std::int64_t>(
      0, pages_needed(std::span(&write, 1)) - pages_freed(write.sequence, write.start));
}

void KvPages::prepare(std::span<const Write> writes, std::uint64_t page_bytes,
                      std::vector<Copy>& copies) {
  for (const Write& write : writes) {
    if (find(write.sequence).length != write.start) {
      fail<InternalError>("[KvPages.prepare] sequence ", write.sequence, ": got start ",
                          write.start, ", need its length ", length(write.sequence));
    }
  }
  const std::int64_t needed = pages_needed(writes);
  if (needed > n_free()) {
    const auto bytes = [&](std::int64_t n) { return static_cast<std::uint64_t>(n) * page_bytes; };
    throw OutOfMemoryError(strcat("[run] KV cache: need ", needed, " more pages of ", page_tokens_,
                                  " tokens, free ", n_free(), " of ", n_pages(),
                                  "; close sessions, or load the model with a larger kv_tokens"),
                           bytes(needed), bytes(n_free()));
  }
  for (const Write& write : writes) {
    Sequence& s = find(write.sequence);
    drop_from(s, pages_for(write.start), nullptr);
    if (write.start % page_tokens_ != 0) {
      std::int32_t& last = s.pages.back();
      std::int32_t& references = references_[static_cast<std::size_t>(last)];
      if (references > 1) {
        --references;
        const std::int32_t own = take();
        copies.push_back({last, own});
        last = own;
      }
    }
    const std::int64_t total = pages_for(write.start + write.n_rows);
    while (static_cast<std::int64_t>(s.pages.size()) < total) s.pages.push_back(take());
  }
}

void KvPages::commit(const Write& write) {
  find(write.sequence).length = write.start + write.n_rows;
}

}  // namespace moesaic::model
