// The KV cache of a slice of layers: whose rows lie in which pages (KvPages) and the bytes
// themselves (the backend's KvStore), kept in step. Used by whoever runs a slice: the whole model
// here, or a cluster's worker. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "model/state/kv_pages.h"

namespace moesaic::model {

class KvCache {
 public:
  // The backend must outlive it.
  KvCache(backend::Backend& backend, const backend::KvSpec& spec);

  const KvPages& pages() const { return pages_; }
  backend::KvStore& store() { return *store_; }
  std::size_t row_bytes() const { return backend_.kv_row_bytes(store_->spec()); }  // of one layer

  SequenceId open() { return pages_.open(); }
  void close(SequenceId sequence);
  void truncate(SequenceId sequence, std::int64_t n_tokens);
  SequenceId fork(SequenceId sequence, std::int64_t n_tokens) {
    return pages_.fork(sequence, n_tokens);
  }
  // Pages that `n_rows` rows from `start` on would take from the pool.
  std::int64_t pages_needed(SequenceId sequence, std::int64_t start, std::int64_t n_rows) const;

  // Drops what lies past each start and makes the pages of the rows each sequence's own. Lengths
  // stay `start` until commit. Throws OutOfMemoryError.
  void claim(std::span<const KvPages::Write> writes);
  void commit(std::span<const KvPages::Write> writes);

  // Cached rows [begin, end) of one layer of the slice (0 is its first) as stored.
  void read(SequenceId sequence, std::int64_t layer, std::int64_t begin, std::int64_t end,
            std::uint8_t* out) const;
  // Into rows that were claimed.
  void restore(SequenceId sequence, std::int64_t layer, std::int64_t begin, std::int64_t end,
               const std::uint8_t* in);

 private:
  void release(const std::vector<std::int32_t>& pages);

  backend::Backend& backend_;
  std::unique_ptr<backend::KvStore> store_;
  KvPages pages_;
};

}  // namespace moesaic::model
