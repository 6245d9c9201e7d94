// Keys and values that the decompressed form of MLA has made of a sequence's first cached rows,
// kept for the sequence's next steps: a prompt comes in several, and making them anew for all that
// is cached costs a short step more than its attention. For one sequence at a time; whoever changes
// a page of the cache says so here. A cache of what can be made again: nothing depends on it but
// time.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/aligned_buffer.h"

namespace moesaic::backend::cpu {

class KeptKeys {
 public:
  // No memory is touched before it is used. `bf16`: elements of two bytes, else floats.
  KeptKeys(const KvSpec& spec, bool bf16);
  static std::size_t bytes_per_layer(const KvSpec& spec, bool bf16);

  bool bf16() const { return bf16_; }
  // Positions that there is room for, a multiple of kernels::kAttentionChunk.
  std::int64_t n_tokens() const { return n_tokens_; }
  // Makes a layer's memory that of the sequence with these pages, of which positions [0, n_written)
  // have been written; returns how many of its first positions are here already.
  std::int64_t claim(std::int64_t layer, std::span<const std::int32_t> pages,
                     std::int64_t n_written);
  // The first n positions of the layer's sequence are here now.
  void set_known(std::int64_t layer, std::int64_t n);
  // Rows of a page change, from its row in_page on; of one layer, or of all.
  void forget(std::int64_t layer, std::int32_t page, std::int64_t in_page);
  void forget_all_layers(std::int32_t page);

  // Row 0 of a chunk for one head: (kAttentionChunk, d_k + d_v) elements.
  std::uint8_t* chunk(std::int64_t layer, std::int64_t chunk, std::int64_t head) {
    return layers_[static_cast<std::size_t>(layer)].memory.data() +
           static_cast<std::size_t>(chunk * n_heads_ + head) * chunk_bytes_;
  }
  std::size_t row_bytes() const { return row_bytes_; }
  // From a row's key to its value.
  std::size_t value_offset() const { return value_offset_; }

 private:
  struct Layer {
    AlignedBuffer memory;             // (chunk, head, token, d_k + d_v)
    std::vector<std::int32_t> pages;  // whose rows these are, in order
    std::int64_t n_known = 0;
  };

  bool bf16_;
  std::int64_t n_tokens_;
  std::int64_t n_heads_;
  std::int64_t page_tokens_;
  std::size_t value_offset_;
  std::size_t row_bytes_;
  std::size_t chunk_bytes_;
  std::vector<Layer> layers_;
};

}  // namespace moesaic::backend::cpu
