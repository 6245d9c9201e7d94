// See kept_keys.h.
#include "backend/cpu/kept_keys.h"

#include <algorithm>

#include "kernels/table.h"

namespace moesaic::backend::cpu {
namespace {

using kernels::kAttentionChunk;

std::int64_t whole_chunks(std::int64_t n_tokens) {
  return n_tokens / kAttentionChunk * kAttentionChunk;
}

std::size_t element_bytes(bool bf16) { return bf16 ? sizeof(std::uint16_t) : sizeof(float); }

}  // namespace

std::size_t KeptKeys::bytes_per_layer(const KvSpec& spec, bool bf16) {
  return static_cast<std::size_t>(whole_chunks(spec.kept.n_tokens) * spec.kept.n_heads *
                                  (spec.kept.d_k + spec.kept.d_v)) *
         element_bytes(bf16);
}

KeptKeys::KeptKeys(const KvSpec& spec, bool bf16)
    : bf16_(bf16),
      n_tokens_(whole_chunks(spec.kept.n_tokens)),
      n_heads_(spec.kept.n_heads),
      page_tokens_(spec.page_tokens),
      value_offset_(static_cast<std::size_t>(spec.kept.d_k) * element_bytes(bf16)),
      row_bytes_(value_offset_ + static_cast<std::size_t>(spec.kept.d_v) * element_bytes(bf16)),
      chunk_bytes_(row_bytes_ * static_cast<std::size_t>(kAttentionChunk)) {
  if (n_tokens_ == 0) return;
  for (std::int64_t layer = 0; layer < spec.n_layers; ++layer) {
    layers_.push_back({AlignedBuffer(bytes_per_layer(spec, bf16)), {}, 0});
    layers_.back().pages.reserve(static_cast<std::size_t>(n_tokens_ / page_tokens_));
  }
}

std::int64_t KeptKeys::claim(std::int64_t layer, std::span<const std::int32_t> pages,
                             std::int64_t n_written) {
  Layer& kept = layers_[static_cast<std::size_t>(layer)];
  const std::int64_t n_pages =
      std::min(n_tokens_ / page_tokens_, static_cast<std::int64_t>(pages.size()));
  const std::span<const std::int32_t> first = pages.first(static_cast<std::size_t>(n_pages));
  const auto [mine, its] = std::ranges::mismatch(kept.pages, first);
  const std::int64_t n_same = (mine - kept.pages.begin()) * page_tokens_;
  kept.n_known = std::min({kept.n_known, n_same, n_written});
  kept.pages.assign(first.begin(), first.end());
  return kept.n_known;
}

void KeptKeys::set_known(std::int64_t layer, std::int64_t n) {
  layers_[static_cast<std::size_t>(layer)].n_known = std::min(n, n_tokens_);
}

void KeptKeys::forget(std::int64_t layer, std::int32_t page, std::int64_t in_page) {
  if (layers_.empty()) return;
  Layer& kept = layers_[static_cast<std::size_t>(layer)];
  const auto found = std::ranges::find(kept.pages, page);
  if (found == kept.pages.end()) return;
  kept.n_known = std::min(kept.n_known, (found - kept.pages.begin()) * page_tokens_ + in_page);
}

void KeptKeys::forget_all_layers(std::int32_t page) {
  for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
    forget(static_cast<std::int64_t>(layer), page, 0);
  }
}

}  // namespace moesaic::backend::cpu
