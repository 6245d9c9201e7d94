// Pages and bytes of a KV cache together; see kv_cache.h.
#include "model/state/kv_cache.h"

namespace moesaic::model {

KvCache::KvCache(backend::Backend& backend, const backend::KvSpec& spec)
    : backend_(backend), store_(backend.make_kv(spec)), pages_(spec.n_pages, spec.page_tokens) {}

void KvCache::release(const std::vector<std::int32_t>& pages) {
  if (!pages.empty()) backend_.kv_release(*store_, pages);
}

void KvCache::close(SequenceId sequence) {
  std::vector<std::int32_t> released;
  pages_.close(sequence, released);
  release(released);
}

void KvCache::truncate(SequenceId sequence, std::int64_t n_tokens) {
  std::vector<std::int32_t> released;
  pages_.truncate(sequence, n_tokens, released);
  release(released);
}

std::int64_t KvCache::pages_needed(SequenceId sequence, std::int64_t start,
                                   std::int64_t n_rows) const {
  return pages_.pages_added({sequence, start, n_rows});
}

void KvCache::claim(std::span<const KvPages::Write> writes) {
  std::vector<std::int32_t> released;
  for (const KvPages::Write& write : writes) {
    pages_.truncate(write.sequence, write.start, released);
  }
  release(released);
  std::vector<KvPages::Copy> copies;
  pages_.prepare(writes, backend_.kv_page_bytes(store_->spec()), copies);
  for (const KvPages::Copy& copy : copies) backend_.kv_copy_page(*store_, copy.from, copy.to);
}

void KvCache::commit(std::span<const KvPages::Write> writes) {
  for (const KvPages::Write& write : writes) pages_.commit(write);
}

void KvCache::read(SequenceId sequence, std::int64_t layer, std::int64_t begin, std::int64_t end,
                   std::uint8_t* out) const {
  backend_.kv_read(*store_, layer, pages_.pages(sequence), begin, end, out);
}

void KvCache::restore(SequenceId sequence, std::int64_t layer, std::int64_t begin, std::int64_t end,
                      const std::uint8_t* in) {
  backend_.kv_restore(*store_, layer, pages_.pages(sequence), begin, end, in);
}

}  // namespace moesaic::model
