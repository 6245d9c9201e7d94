// Attention over the cache. Many rows: members claim items (some tiles of queries of one KV head)
// and walk the chunks of the cache in order. Few rows (decode): the chunks themselves are cut over
// the team and joined afterwards, in the same order, so that both ways give the same bits.
#include "backend/cpu/attention.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "backend/cpu/cpu_backend.h"
#include "base/errors.h"

namespace moesaic::backend::cpu {
namespace {

using kernels::kAttentionChunk;

constexpr float kNothingSeen = -std::numeric_limits<float>::infinity();
// Multiply-adds below which the caller works alone.
constexpr std::int64_t kTeamFromMacs = 128 << 10;
// Heads in a tile below which vector kernels waste lanes. With fewer on a KV head, decoding is no
// faster with bf16; its rows then have the bits of long prompts' in float32.
constexpr std::int64_t kLeastHeads = 16;

std::int64_t div_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

kernels::KvType kernel_type(KvType type) {
  switch (type) {
    case KvType::kF32:
      return kernels::KvType::kF32;
    case KvType::kF16:
      return kernels::KvType::kF16;
    case KvType::kQ8_0:
      return kernels::KvType::kQ8_0;
  }
  fail<InternalError>("[cpu.attention] cache type ", static_cast<int>(type));
}

AttentionKeys cached_keys(const CpuKv& kv) {
  return {kernel_type(kv.spec().type), kv.k_row_bytes(),
          kv.spec().v_width > 0 ? kv.v_row_bytes() : kv.k_row_bytes(), kv.spec().page_tokens};
}

void check_spec(const CpuKv& kv, const AttentionSpec& spec) {
  const KvSpec& cache = kv.spec();
  const bool heads = spec.n_kv_heads >= 1 && spec.n_heads >= 1 && spec.d_k >= 1 && spec.d_v >= 1 &&
                     spec.n_heads % spec.n_kv_heads == 0;
  const bool widths =
      cache.v_width > 0 ? cache.k_width == spec.n_kv_heads * spec.d_k &&
                              cache.v_width == spec.n_kv_heads * spec.d_v
                        : cache.k_width == spec.d_k && spec.n_kv_heads == 1 && spec.d_v <= spec.d_k;
  // A head begins and ends with a block.
  const bool blocks = cache.type != KvType::kQ8_0 || (spec.d_k % 32 == 0 && spec.d_v % 32 == 0);
  if (!heads || !widths || !blocks || spec.window < 0) {
    fail<InternalError>("[cpu.attention] ", spec.n_heads, " heads on ", spec.n_kv_heads,
                        " KV heads of ", spec.d_k, " and ", spec.d_v, ", window ", spec.window,
                        ", over a cache of widths ", cache.k_width, " and ", cache.v_width);
  }
}

// Cuts the call into items: at most `tiles` tiles of queries each, with at most max_heads heads.
// Returns the number of (item, chunk) units.
std::int64_t make_items(const AttentionCall& call, std::int64_t max_heads, std::int64_t tiles,
                        std::vector<AttentionItem>& items) {
  const AttentionSpec& spec = *call.spec;
  items.clear();
  std::int64_t n_units = 0;
  const std::int64_t n_heads = std::min({call.group(), max_heads, kTileQueries});
  const std::int64_t rows_per_item = std::max<std::int64_t>(1, kTileQueries / n_heads) * tiles;
  for (std::size_t s = 0; s < call.sequences.size(); ++s) {
    const SequenceRows& sequence = call.sequences[s];
    for (std::int64_t g = 0; g < spec.n_kv_heads; ++g) {
      for (std::int64_t row = 0; row < sequence.n_rows; row += rows_per_item) {
        for (std::int64_t h = 0; h < call.group(); h += n_heads) {
          AttentionItem item;
          item.sequence = static_cast<std::int64_t>(s);
          item.kv_head = g;
          item.head_begin = g * call.group() + h;
          item.n_heads = std::min(n_heads, call.group() - h);
          item.row_begin = row;
          item.n_rows = std::min(rows_per_item, sequence.n_rows - row);
          const std::int64_t position = sequence.start + row;
          item.chunk_begin = call.first_key(position) / kAttentionChunk;
          item.chunk_end = div_up(position + item.n_rows, kAttentionChunk);
          item.unit_begin = n_units;
          n_units += item.chunk_end - item.chunk_begin;
          items.push_back(item);
        }
      }
    }
  }
  return n_units;
}

std::int64_t macs_of(const AttentionCall& call) {
  std::int64_t n_keys = 0;
  for (const SequenceRows& sequence : call.sequences) {
    const std::int64_t end = sequence.start + sequence.n_rows;
    n_keys += sequence.n_rows * (end - call.first_key(end));
  }
  return n_keys * call.spec->n_heads * (call.spec->d_k + call.spec->d_v);
}

}  // namespace

AttentionPartial partial_at(float* memory) {
  return {memory, memory + kTileQueries, memory + 2 * kTileQueries};
}

AttentionMember::AttentionMember(Arena& arena, std::int64_t d_k, std::int64_t d_v)
    : k_pages(arena.take<const std::uint8_t*>(kAttentionChunk)),
      v_pages(arena.take<const std::uint8_t*>(kAttentionChunk)),
      first(arena.take<std::int64_t>(kTileQueries)),
      last(arena.take<std::int64_t>(kTileQueries)),
      q(arena.take<float>(kTileQueries * d_k)),
      partial(partial_at(arena.take<float>(partial_floats(d_v)))),
      running_maximum(arena.take<float>(kTileQueries * kTilesPerItem)),
      running_sum(arena.take<float>(kTileQueries * kTilesPerItem)),
      scratch(arena.take<std::uint8_t>(
          static_cast<std::int64_t>(kernels::attention_scratch_bytes(d_k, d_v)))) {}

void set_pages(const AttentionCall& call, const AttentionItem& item, std::int64_t chunk,
               AttentionMember& member) {
  const CpuKv& kv = *call.kv;
  const SequenceRows& sequence = call.sequences[static_cast<std::size_t>(item.sequence)];
  const std::size_t k_offset = kv_bytes(kv.spec().type, item.kv_head * call.spec->d_k);
  const std::size_t v_offset = kv_bytes(kv.spec().type, item.kv_head * call.spec->d_v);
  const std::int64_t page_tokens = kv.spec().page_tokens;
  const std::int64_t begin = chunk * kAttentionChunk;
  const std::int64_t end =
      std::min(begin + kAttentionChunk, sequence.start + item.row_begin + item.n_rows);
  const std::int64_t n_pages = div_up(end - begin, page_tokens);
  for (std::int64_t p = 0; p < n_pages; ++p) {
    const std::int32_t page = sequence.pages[static_cast<std::size_t>(begin / page_tokens + p)];
    member.k_pages[p] = kv.k_page(call.layer, page) + k_offset;
    member.v_pages[p] =
        kv.spec().v_width > 0 ? kv.v_page(call.layer, page) + v_offset : member.k_pages[p];
  }
}

bool attend(const kernels::Table& table, const AttentionCall& call, const AttentionItem& item,
            const AttentionKeys& keys, std::int64_t chunk, std::int64_t row_begin,
            std::int64_t n_rows, AttentionMember& member, const AttentionPartial& result) {
  const AttentionSpec& spec = *call.spec;
  const SequenceRows& sequence = call.sequences[static_cast<std::size_t>(item.sequence)];
  // The kernel counts positions from the start of the chunk: its pages are all it knows of.
  const std::int64_t origin = chunk * kAttentionChunk;
  std::int64_t begin = kAttentionChunk;
  std::int64_t end = 0;
  std::int64_t n_q = 0;
  for (std::int64_t r = 0; r < n_rows; ++r) {
    const std::int64_t position = sequence.start + row_begin + r;
    const std::int64_t first =
        std::clamp<std::int64_t>(call.first_key(position) - origin, 0, kAttentionChunk);
    const std::int64_t last = std::clamp<std::int64_t>(position + 1 - origin, 0, kAttentionChunk);
    if (first < last) {
      begin = std::min(begin, first);
      end = std::max(end, last);
    }
    for (std::int64_t h = 0; h < item.n_heads; ++h, ++n_q) {
      member.first[n_q] = first;
      member.last[n_q] = last;
    }
  }
  if (begin >= end) return false;

  const float* q = call.q.row(sequence.row_begin + row_begin) + item.head_begin * spec.d_k;
  std::int64_t q_stride = spec.d_k;
  if (item.n_heads == 1) {
    q_stride = call.q.stride;
  } else if (n_rows > 1 && item.n_heads * spec.d_k != call.q.stride) {
    for (std::int64_t r = 0; r < n_rows; ++r) {
      std::memcpy(member.q + r * item.n_heads * spec.d_k, q + r * call.q.stride,
                  static_cast<std::size_t>(item.n_heads * spec.d_k) * sizeof(float));
    }
    q = member.q;
  }
  kernels::AttentionJob job;
  job.q = q;
  job.q_stride = q_stride;
  job.n_q = n_q;
  job.d_k = spec.d_k;
  job.d_v = spec.d_v;
  job.scale = spec.scale;
  job.kv_type = keys.type;
  job.k_pages = member.k_pages;
  job.v_pages = member.v_pages;
  job.k_row_bytes = keys.k_row_bytes;
  job.v_row_bytes = keys.v_row_bytes;
  job.page_tokens = keys.page_tokens;
  job.begin = begin;
  job.end = end;
  job.first = member.first;
  job.last = member.last;
  job.maximum = result.maximum;
  job.sum = result.sum;
  job.out = result.out;
  job.out_stride = spec.d_v;
  job.scratch = member.scratch;
  (call.bf16 ? table.attention_bf16 : table.attention)(job);
  return true;
}

void join(const kernels::Table& table, float& maximum, float& sum, float* out, float next_maximum,
          float next_sum, const float* next_out, std::int64_t d_v) {
  // Said here and not left to the kernel: a chunk in which a query sees nothing leaves its bits
  // alone, so that the other queries of a tile do not matter.
  if (next_maximum == kNothingSeen) return;
  if (maximum == kNothingSeen) {
    maximum = next_maximum;
    sum = next_sum;
    std::memcpy(out, next_out, static_cast<std::size_t>(d_v) * sizeof(float));
    return;
  }
  table.attention_merge(&maximum, &sum, out, &next_maximum, &next_sum, next_out, d_v);
}

void finish(const kernels::Table& table, float maximum, float sum, float* out, std::int64_t d_v,
            const float* sink) {
  if (maximum == kNothingSeen) {
    std::memset(out, 0, static_cast<std::size_t>(d_v) * sizeof(float));
    return;
  }
  table.attention_finish(&maximum, &sum, out, d_v, sink == nullptr ? kNothingSeen : *sink);
}

void CpuBackend::attention(const KvStore& kv, std::int64_t layer, const AttentionSpec& spec,
                           std::span<const SequenceRows> sequences, const Mat& q, const Mat& out) {
  const char* op = "attention";
  const CpuKv& cache = kv_of(kv, op);
  check_layer(cache, layer, op);
  check_spec(cache, spec);
  check_sequences(cache, sequences, q.rows, op);
  AttentionCall call;
  call.kv = &cache;
  call.layer = layer;
  call.spec = &spec;
  call.sequences = sequences;
  call.q = view(q, q.rows, spec.n_heads * spec.d_k, op, "q");
  call.out = view(out, q.rows, spec.n_heads * spec.d_v, op, "out");
  call.bf16 = !spec.exact && table_.attention_bf16 != nullptr && call.group() >= kLeastHeads;
  if (spec.sinks != nullptr) call.sinks = vector_of(spec.sinks, spec.n_heads, op, "sinks");

  const std::int64_t n_threads = pool_.size();
  const bool whole_team = n_threads > 1 && macs_of(call) >= kTeamFromMacs;
  make_items(call, kTileQueries, kTilesPerItem, items_);
  if (!whole_team || static_cast<std::int64_t>(items_.size()) >= 4 * n_threads) {
    attention_by_items(call, whole_team);
    return;
  }
  // Too few items to keep the team even: cut the chunks too, and the heads when that is not enough.
  const std::int64_t n_units = make_items(call, kTileQueries, 1, items_);
  if (n_units < n_threads && call.group() > kLeastHeads) {
    const std::int64_t wanted =
        div_up(call.group(), div_up(n_threads, std::max<std::int64_t>(n_units, 1)));
    make_items(call, div_up(wanted, kLeastHeads) * kLeastHeads, 1, items_);
  }
  attention_by_chunks(call);
}

void CpuBackend::attention_by_items(const AttentionCall& call, bool whole_team) {
  const AttentionSpec& spec = *call.spec;
  const AttentionKeys keys = cached_keys(*call.kv);
  reset_claims();
  parallel(whole_team, [&](int index, int) {
    Arena arena = member_arena(index, "attention");
    AttentionMember member(arena, spec.d_k, spec.d_v);
    const std::int64_t n_items = static_cast<std::int64_t>(items_.size());
    for (std::int64_t i = claim(n_items); i >= 0; i = claim(n_items)) {
      const AttentionItem& item = items_[static_cast<std::size_t>(i)];
      const SequenceRows& sequence = call.sequences[static_cast<std::size_t>(item.sequence)];
      const std::int64_t n_queries = item.n_rows * item.n_heads;
      const std::int64_t tile_rows = std::max<std::int64_t>(1, kTileQueries / item.n_heads);
      const auto out_of = [&](std::int64_t query) {
        return call.out.row(sequence.row_begin + item.row_begin + query / item.n_heads) +
               (item.head_begin + query % item.n_heads) * spec.d_v;
      };
      std::fill_n(member.running_maximum, n_queries, kNothingSeen);
      std::fill_n(member.running_sum, n_queries, 0.0F);
      for (std::int64_t chunk = item.chunk_begin; chunk < item.chunk_end; ++chunk) {
        set_pages(call, item, chunk, member);
        for (std::int64_t row = 0; row < item.n_rows; row += tile_rows) {
          check_cancel();
          const std::int64_t n_rows = std::min(tile_rows, item.n_rows - row);
          if (!attend(table_, call, item, keys, chunk, item.row_begin + row, n_rows, member,
                      member.partial)) {
            continue;
          }
          for (std::int64_t t = 0; t < n_rows * item.n_heads; ++t) {
            const std::int64_t query = row * item.n_heads + t;
            join(table_, member.running_maximum[query], member.running_sum[query], out_of(query),
                 member.partial.maximum[t], member.partial.sum[t],
                 member.partial.out + t * spec.d_v, spec.d_v);
          }
        }
      }
      for (std::int64_t query = 0; query < n_queries; ++query) {
        const float* sink =
            call.sinks == nullptr ? nullptr : call.sinks + item.head_begin + query % item.n_heads;
        finish(table_, member.running_maximum[query], member.running_sum[query], out_of(query),
               spec.d_v, sink);
      }
    }
  });
}

void CpuBackend::attention_by_chunks(const AttentionCall& call) {
  const AttentionSpec& spec = *call.spec;
  const AttentionKeys keys = cached_keys(*call.kv);
  const std::int64_t n_units = items_.empty() ? 0
                                              : items_.back().unit_begin + items_.back().chunk_end -
                                                    items_.back().chunk_begin;
  Arena shared = shared_arena("attention");
  const std::int64_t unit_floats = static_cast<std::int64_t>(
      aligned(static_cast<std::size_t>(partial_floats(spec.d_v)) * 4) / 4);
  float* partials = shared.take<float>(plan_.partial_units * unit_floats);
  const std::int64_t n_running = call.q.rows * spec.n_heads;
  float* running_maximum = shared.take<float>(n_running);
  float* running_sum = shared.take<float>(n_running);
  std::fill_n(running_maximum, n_running, kNothingSeen);
  std::fill_n(running_sum, n_running, 0.0F);
  const auto item_of = [&](std::int64_t unit) {
    return std::upper_bound(
               items_.begin(), items_.end(), unit,
               [](std::int64_t u, const AttentionItem& item) { return u < item.unit_begin; }) -
           1;
  };
  const auto result_of = [&](std::int64_t unit) {
    return partial_at(partials + unit % plan_.partial_units * unit_floats);
  };

  reset_claims();
  parallel(true, [&](int index, int n_members) {
    Arena arena = member_arena(index, "attention");
    AttentionMember member(arena, spec.d_k, spec.d_v);
    for (std::int64_t wave = 0; wave < n_units; wave += plan_.partial_units) {
      const std::int64_t wave_end = std::min(wave + plan_.partial_units, n_units);
      for (std::int64_t unit = claim(wave_end); unit >= 0; unit = claim(wave_end)) {
        check_cancel();
        const AttentionItem& item = *item_of(unit);
        const std::int64_t chunk = item.chunk_begin + unit - item.unit_begin;
        const AttentionPartial result = result_of(unit);
        set_pages(call, item, chunk, member);
        if (!attend(table_, call, item, keys, chunk, item.row_begin, item.n_rows, member, result)) {
          std::fill_n(result.maximum, item.n_rows * item.n_heads, kNothingSeen);
        }
      }
      barrier(n_members);
      // Join: every member takes a share of each item's queries, chunks in order.
      for (auto at = item_of(wave); at != items_.end() && at->unit_begin < wave_end; ++at) {
        const AttentionItem& item = *at;
        const SequenceRows& sequence = call.sequences[static_cast<std::size_t>(item.sequence)];
        const std::int64_t item_end = item.unit_begin + item.chunk_end - item.chunk_begin;
        const std::int64_t n_queries = item.n_rows * item.n_heads;
        const std::int64_t query_end = n_queries * (index + 1) / n_members;
        for (std::int64_t query = n_queries * index / n_members; query < query_end; ++query) {
          const std::int64_t row = sequence.row_begin + item.row_begin + query / item.n_heads;
          const std::int64_t head = item.head_begin + query % item.n_heads;
          float* out = call.out.row(row) + head * spec.d_v;
          float& maximum = running_maximum[row * spec.n_heads + head];
          float& sum = running_sum[row * spec.n_heads + head];
          for (std::int64_t unit = std::max(wave, item.unit_begin);
               unit < std::min(wave_end, item_end); ++unit) {
            const AttentionPartial result = result_of(unit);
            join(table_, maximum, sum, out, result.maximum[query], result.sum[query],
                 result.out + query * spec.d_v, spec.d_v);
          }
          if (item_end <= wave_end) {
            finish(table_, maximum, sum, out, spec.d_v,
                   call.sinks == nullptr ? nullptr : call.sinks + head);
          }
        }
      }
      if (wave_end < n_units) barrier(n_members);
    }
  });
}

}  // namespace moesaic::backend::cpu
