// The pieces that both forms of attention are made of: an item of work, the scratch of a member,
// one tile against one chunk of the cache, and the joining of chunks. The order in which a query's
// chunks are joined is that of the positions, whoever computed them: results do not depend on how
// the work was cut.
#pragma once

#include <cstdint>
#include <span>

#include "backend/cpu/scratch.h"
#include "backend/cpu/storage.h"
#include "kernels/table.h"

namespace moesaic::backend::cpu {

struct AttentionCall {
  const CpuKv* kv = nullptr;
  std::int64_t layer = 0;
  const AttentionSpec* spec = nullptr;
  const float* sinks = nullptr;  // (n_heads), or null
  std::span<const SequenceRows> sequences;
  View q;    // (n, n_heads * d_k)
  View out;  // (n, n_heads * d_v)
  // Products of bf16. Chosen by the model's shape and the CPU, never by the number of rows.
  bool bf16 = false;

  std::int64_t group() const { return spec->n_heads / spec->n_kv_heads; }
  // The keys [first, last) that the query at `position` sees.
  std::int64_t first_key(std::int64_t position) const {
    return spec->window > 0 ? std::max<std::int64_t>(0, position - spec->window + 1) : 0;
  }
};

// Heads [head_begin, +n_heads) of one KV head, for rows [row_begin, +n_rows) of one sequence (rows
// counted in the sequence), over chunks [chunk_begin, chunk_end) of its cache.
struct AttentionItem {
  std::int64_t sequence = 0;
  std::int64_t kv_head = 0;
  std::int64_t head_begin = 0;
  std::int64_t n_heads = 0;
  std::int64_t row_begin = 0;
  std::int64_t n_rows = 0;
  std::int64_t chunk_begin = 0;
  std::int64_t chunk_end = 0;
  std::int64_t unit_begin = 0;  // number of its first (item, chunk)
};

// Unnormalised results of the queries of a tile: query i of row r and head h is r * n_heads + h.
struct AttentionPartial {
  float* maximum = nullptr;  // (kTileQueries)
  float* sum = nullptr;      // (kTileQueries)
  float* out = nullptr;      // (kTileQueries, d_v)
};
AttentionPartial partial_at(float* memory);

// What one member needs for one job.
struct AttentionMember {
  AttentionMember(Arena& arena, std::int64_t d_k, std::int64_t d_v);
  const std::uint8_t** k_pages;  // of one chunk
  const std::uint8_t** v_pages;
  std::int64_t* first;  // (kTileQueries)
  std::int64_t* last;
  float* q;  // (kTileQueries, d_k): queries gathered where they do not lie at one distance
  AttentionPartial partial;
  float* running_maximum;  // (kTileQueries * kTilesPerItem)
  float* running_sum;
  std::uint8_t* scratch;
};

// Points member's pages at chunk `chunk` of an item's cache.
void set_pages(const AttentionCall& call, const AttentionItem& item, std::int64_t chunk,
               AttentionMember& member);

// Where the keys and values of a chunk lie, when they are not in the cache's pages.
struct AttentionKeys {
  kernels::KvType type = kernels::KvType::kF16;
  std::size_t k_row_bytes = 0;
  std::size_t v_row_bytes = 0;
  std::int64_t page_tokens = 0;
};

// Rows [row_begin, +n_rows) of an item (counted in the sequence) against one chunk, whose pages
// member points at. False when none of them sees a key of the chunk; `result` is untouched then.
bool attend(const kernels::Table& table, const AttentionCall& call, const AttentionItem& item,
            const AttentionKeys& keys, std::int64_t chunk, std::int64_t row_begin,
            std::int64_t n_rows, AttentionMember& member, const AttentionPartial& result);

// Joins the next chunk's result of one query into the running one (first chunk: running maximum
// -inf).
void join(const kernels::Table& table, float& maximum, float& sum, float* out, float next_maximum,
          float next_sum, const float* next_out, std::int64_t d_v);
// Divides by the sum; a query that saw nothing gets zeros.
void finish(const kernels::Table& table, float maximum, float sum, float* out, std::int64_t d_v,
            const float* sink);

}  // namespace moesaic::backend::cpu
