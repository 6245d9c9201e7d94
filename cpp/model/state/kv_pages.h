// Who owns which page of the KV cache: sequences as lists of reference-counted pages. A fork shares
// pages; the first to write into a shared page gets a copy of it; truncation drops pages. Only
// numbers: the bytes lie in the backend's KvStore. Not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "model/runner.h"

namespace moesaic::model {

class KvPages {
 public:
  KvPages(std::int64_t n_pages, std::int64_t page_tokens);

  std::int64_t page_tokens() const { return page_tokens_; }
  std::int64_t n_pages() const { return static_cast<std::int64_t>(references_.size()); }
  std::int64_t n_free() const { return static_cast<std::int64_t>(free_.size()); }

  SequenceId open();
  // Pages that nobody uses any more are appended to `released`, here and below.
  void close(SequenceId sequence, std::vector<std::int32_t>& released);
  std::int64_t length(SequenceId sequence) const;  // rows
  void truncate(SequenceId sequence, std::int64_t n_tokens, std::vector<std::int32_t>& released);
  SequenceId fork(SequenceId sequence, std::int64_t n_tokens);
  std::span<const std::int32_t> pages(SequenceId sequence) const;

  // A sequence's next rows.
  struct Write {
    SequenceId sequence = 0;
    std::int64_t start = 0;  // at most its length
    std::int64_t n_rows = 0;
  };
  // Pages that the writes together would take from the pool: new ones, and copies of shared ones.
  std::int64_t pages_needed(std::span<const Write> writes) const;

  // The same of one write, less what it gives back by dropping the rows past its start.
  std::int64_t pages_added(const Write& write) const;

  // Pages that truncating a sequence to n_tokens would give back to the pool.
  std::int64_t pages_freed(SequenceId sequence, std::int64_t n_tokens) const;

  struct Copy {
    std::int32_t from = 0;
    std::int32_t to = 0;
  };
  // Makes rows [start, start + n_rows) of each sequence its own, after it was truncated to start.
  // Its length stays `start` until commit. Appends the copies that must be made before writing, in
  // order. Throws OutOfMemoryError (in bytes of pages: page_bytes each) before anything changed.
  void prepare(std::span<const Write> writes, std::uint64_t page_bytes, std::vector<Copy>& copies);
  void commit(const Write& write);

 private:
  struct Sequence {
    std::int64_t length = 0;
    std::vector<std::int32_t> pages;
  };
  Sequence& find(SequenceId sequence);
  const Sequence& find(SequenceId sequence) const;
  std::int64_t pages_for(std::int64_t n_tokens) const {
    return (n_tokens + page_tokens_ - 1) / page_tokens_;
  }
  void drop_from(Sequence& sequence, std::int64_t n_pages, std::vector<std::int32_t>* released);
  std::int32_t take();

  std::int64_t page_tokens_;
  std::vector<std::int32_t> references_;  // (n_pages)
  std::vector<std::int32_t> free_;        // a stack, lowest number on top at first
  std::unordered_map<SequenceId, Sequence> sequences_;
  SequenceId next_ = 1;
};

}  // namespace moesaic::model
