// The decompressed form of MLA, for many rows: per chunk of the cache the latent rows are prepared
// once, then each head's keys and values are made from them by the matmul kernels and used for all
// queries while they are in the cache of one core; those of the first chunks are kept for the
// sequence's next step where there is room (kept_keys.h). Rounds otherwise than the absorbed form
// (weights meet latent rows instead of queries), so the model chooses; within this form results do
// not depend on the cut. Source: arXiv:2405.04434 section 2.1.
#include <cstring>
#include <limits>

#include "backend/cpu/cpu_backend.h"
#include "base/errors.h"
#include "quant/q8_0.h"

namespace moesaic::backend::cpu {
namespace {

using kernels::kAttentionChunk;

constexpr const char* kOp = "attention_decompressed";
constexpr float kNothingSeen = -std::numeric_limits<float>::infinity();

// One of the two matrices that decompress: how its kernel takes the latent rows of a chunk.
struct Decompressor {
  const CpuWeight* weight = nullptr;
  const kernels::MatmulKernel* kernel = nullptr;
  std::size_t act_bytes = 0;
  std::uint8_t* acts = nullptr;   // (kAttentionChunk) prepared latent rows
  std::uint8_t* packs = nullptr;  // one pack for each block of columns
  std::size_t pack_bytes = 0;
  bool is_shared = false;  // acts and packs are the other one's
};

bool packs_from(const Decompressor& d, std::int64_t n_cols) {
  return d.kernel->many != nullptr && n_cols >= d.kernel->many_from;
}

// out (n_tokens rows, out_stride floats apart) = head's matrix times the chunk's latent rows.
void decompress(const Decompressor& d, std::int64_t head, std::int64_t n_tokens, float* out,
                std::int64_t out_stride, std::uint8_t* scratch) {
  const std::uint8_t* acts[kBlockCols];
  float* outs[kBlockCols];
  kernels::MatmulJob job;
  job.weight = d.weight->expert(head);
  job.weight_row_bytes = d.weight->row_bytes();
  job.n_rows = d.weight->rows();
  job.k = d.weight->cols();
  job.acts = acts;
  job.outs = outs;
  job.scratch = scratch;
  for (std::int64_t begin = 0; begin < n_tokens; begin += kBlockCols) {
    job.n_cols = std::min(kBlockCols, n_tokens - begin);
    for (std::int64_t c = 0; c < job.n_cols; ++c) {
      acts[c] = d.acts + static_cast<std::size_t>(begin + c) * d.act_bytes;
      outs[c] = out + (begin + c) * out_stride;
    }
    if (packs_from(d, job.n_cols)) {
      d.kernel->many(
          job, {d.packs + static_cast<std::size_t>(begin / kBlockCols) * d.pack_bytes, job.n_cols});
    } else {
      d.kernel->few(job);
    }
    const float scale = d.weight->scale(head);
    if (scale == 1.0F) continue;
    for (std::int64_t c = 0; c < job.n_cols; ++c) {
      for (std::int64_t r = 0; r < job.n_rows; ++r) outs[c][r] *= scale;
    }
  }
}

}  // namespace

// One call: shared scratch, then sequence by sequence, chunk by chunk.
class DecompressedRun {
 public:
  DecompressedRun(CpuBackend& backend, const AttentionCall& call, const CpuWeight& w_k,
                  const CpuWeight& w_v);
  void run(std::int64_t sequence);

 private:
  // What a member needs beside attention's own scratch.
  struct Member {
    AttentionMember attention;
    float* keys;    // (kAttentionChunk, d_k) of one head
    float* values;  // (kAttentionChunk, d_v)
    float* row;     // one latent row with its rotated part
    std::uint8_t* scratch;
  };
  // The part of a chunk of a sequence's cache that a call looks at.
  struct Chunk {
    std::int64_t index = 0;
    std::int64_t from = 0;      // rows before it are kept from earlier steps
    std::int64_t n_tokens = 0;  // of the chunk
    bool is_kept = false;
    std::int64_t n_new() const { return n_tokens - from; }
  };
  Chunk chunk_at(std::int64_t index, std::int64_t end, std::int64_t n_known) const;
  Member member_of(int index);
  // Whether n_cols columns are packed in a part's format: a shared one serves both kernels.
  bool packs(const Decompressor& part, std::int64_t n_cols) const {
    return packs_from(part, n_cols) || (parts_[1].is_shared && packs_from(parts_[1], n_cols));
  }
  // New cached rows [block * kBlockCols, +kBlockCols) of a chunk, as the matmul kernels take them.
  void prepare_block(const SequenceRows& sequence, const Chunk& chunk, std::int64_t block,
                     float* row) const;
  // One head's keys and values of a chunk's new rows, from what was prepared.
  void make_keys(const Chunk& chunk, std::int64_t head, Member& member) const;
  // One head of all the sequence's rows against one chunk.
  void attend_head(const AttentionItem& item, const Chunk& chunk, Member& member) const;
  void finish_share(const SequenceRows& sequence, int index, int n_members) const;

  CpuBackend& backend_;
  const AttentionCall& call_;
  std::int64_t n_heads_;
  std::int64_t kv_lora_;
  std::int64_t d_nope_;
  std::int64_t d_rope_;
  KeptKeys* kept_ = nullptr;  // null: none, or not of this call's numbers
  Decompressor parts_[2];     // keys, values
  float* rotated_;            // (kAttentionChunk, d_rope): the keys' shared part
  float* maximum_;            // (n, n_heads), running
  float* sum_;                // (n, n_heads)
};

DecompressedRun::DecompressedRun(CpuBackend& backend, const AttentionCall& call,
                                 const CpuWeight& w_k, const CpuWeight& w_v)
    : backend_(backend),
      call_(call),
      n_heads_(call.spec->n_heads),
      kv_lora_(w_k.cols()),
      d_nope_(w_k.rows()),
      d_rope_(call.spec->d_k - w_k.rows()) {
  KeptKeys& kept = call.kv->kept();
  if (kept.n_tokens() > 0 && kept.bf16() == call.bf16 && call.spec->window == 0) kept_ = &kept;
  Arena shared = backend.shared_arena(kOp);
  maximum_ = shared.take<float>(call.q.rows * n_heads_);
  sum_ = shared.take<float>(call.q.rows * n_heads_);
  std::fill_n(maximum_, call.q.rows * n_heads_, kNothingSeen);
  std::fill_n(sum_, call.q.rows * n_heads_, 0.0F);
  rotated_ = shared.take<float>(kAttentionChunk * std::max<std::int64_t>(d_rope_, 1));
  parts_[0].weight = &w_k;
  parts_[1].weight = &w_v;
  for (Decompressor& part : parts_) {
    part.kernel = &backend.table_.matmul[static_cast<std::size_t>(part.weight->type())];
  }
  parts_[1].is_shared = parts_[1].kernel->act == parts_[0].kernel->act;
  for (Decompressor& part : parts_) {
    if (part.is_shared) continue;
    part.act_bytes = kernels::act_row_bytes(part.kernel->act, kv_lora_);
    part.acts =
        shared.take<std::uint8_t>(kAttentionChunk * static_cast<std::int64_t>(part.act_bytes));
    if (!packs(part, kBlockCols)) continue;
    part.pack_bytes = aligned(backend.table_.packed_bytes(part.kernel->act, kBlockCols, kv_lora_));
    part.packs = shared.take<std::uint8_t>(kAttentionChunk / kBlockCols *
                                           static_cast<std::int64_t>(part.pack_bytes));
  }
  if (parts_[1].is_shared) {
    parts_[1].act_bytes = parts_[0].act_bytes;
    parts_[1].acts = parts_[0].acts;
    parts_[1].packs = parts_[0].packs;
    parts_[1].pack_bytes = parts_[0].pack_bytes;
  }
}

DecompressedRun::Member DecompressedRun::member_of(int index) {
  const AttentionSpec& spec = *call_.spec;
  Arena arena = backend_.member_arena(index, kOp);
  AttentionMember attention(arena, spec.d_k, spec.d_v);
  float* keys = arena.take<float>(kAttentionChunk * spec.d_k);
  float* values = arena.take<float>(kAttentionChunk * spec.d_v);
  float* row = arena.take<float>(kv_lora_ + d_rope_);
  return {
      attention, keys, values, row,
      arena.take<std::uint8_t>(static_cast<std::int64_t>(kernels::matmul_scratch_bytes(kv_lora_)))};
}

DecompressedRun::Chunk DecompressedRun::chunk_at(std::int64_t index, std::int64_t end,
                                                 std::int64_t n_known) const {
  Chunk chunk;
  chunk.index = index;
  chunk.n_tokens = std::min(kAttentionChunk, end - index * kAttentionChunk);
  chunk.is_kept = kept_ != nullptr && index < kept_->n_tokens() / kAttentionChunk;
  if (chunk.is_kept) {
    chunk.from = std::clamp<std::int64_t>(n_known - index * kAttentionChunk, 0, chunk.n_tokens);
  }
  return chunk;
}

void DecompressedRun::prepare_block(const SequenceRows& sequence, const Chunk& chunk,
                                    std::int64_t block, float* row) const {
  const kernels::Table& table = backend_.table_;
  const CpuKv& cache = *call_.kv;
  const std::int64_t page_tokens = cache.spec().page_tokens;
  const std::int64_t begin = block * kBlockCols;
  const std::int64_t end = std::min(begin + kBlockCols, chunk.n_new());
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int64_t position = chunk.index * kAttentionChunk + chunk.from + t;
    const std::int32_t page = sequence.pages[static_cast<std::size_t>(position / page_tokens)];
    const std::uint8_t* stored =
        cache.k_page(call_.layer, page) +
        static_cast<std::size_t>(position % page_tokens) * cache.k_row_bytes();
    const float* latent = row;
    switch (cache.spec().type) {
      case KvType::kF32:
        latent = reinterpret_cast<const float*>(stored);
        break;
      case KvType::kF16:
        table.from_f16(reinterpret_cast<const std::uint16_t*>(stored), kv_lora_ + d_rope_, row);
        break;
      case KvType::kQ8_0:
        quant::decode_q8_0(stored, (kv_lora_ + d_rope_) / 32, row);
        break;
    }
    for (const Decompressor& part : parts_) {
      if (part.is_shared) continue;
      table.prepare(part.kernel->act, latent, kv_lora_, 1, kv_lora_,
                    part.acts + static_cast<std::size_t>(t) * part.act_bytes);
    }
    std::memcpy(rotated_ + t * d_rope_, latent + kv_lora_,
                static_cast<std::size_t>(d_rope_) * sizeof(float));
  }
  const std::uint8_t* acts[kBlockCols];
  for (const Decompressor& part : parts_) {
    if (part.is_shared || !packs(part, end - begin)) continue;
    for (std::int64_t t = begin; t < end; ++t) {
      acts[t - begin] = part.acts + static_cast<std::size_t>(t) * part.act_bytes;
    }
    table.pack(part.kernel->act, acts, end - begin, kv_lora_,
               part.packs + static_cast<std::size_t>(block) * part.pack_bytes);
  }
}

void DecompressedRun::make_keys(const Chunk& chunk, std::int64_t head, Member& member) const {
  const AttentionSpec& spec = *call_.spec;
  const std::int64_t n = chunk.n_new();
  backend_.check_cancel();
  decompress(parts_[0], head, n, member.keys, spec.d_k, member.scratch);
  backend_.check_cancel();
  decompress(parts_[1], head, n, member.values, spec.d_v, member.scratch);
  for (std::int64_t t = 0; t < n; ++t) {
    std::memcpy(member.keys + t * spec.d_k + d_nope_, rotated_ + t * d_rope_,
                static_cast<std::size_t>(d_rope_) * sizeof(float));
  }
  if (!chunk.is_kept) return;
  const auto keep = [&](const float* x, std::int64_t width, std::uint8_t* out) {
    if (kept_->bf16()) {
      backend_.table_.to_bf16(x, width, reinterpret_cast<std::uint16_t*>(out));
    } else {
      std::memcpy(out, x, static_cast<std::size_t>(width) * sizeof(float));
    }
  };
  std::uint8_t* row = kept_->chunk(call_.layer, chunk.index, head) +
                      static_cast<std::size_t>(chunk.from) * kept_->row_bytes();
  for (std::int64_t t = 0; t < n; ++t, row += kept_->row_bytes()) {
    keep(member.keys + t * spec.d_k, spec.d_k, row);
    keep(member.values + t * spec.d_v, spec.d_v, row + kept_->value_offset());
  }
}

void DecompressedRun::attend_head(const AttentionItem& item, const Chunk& chunk,
                                  Member& member) const {
  const AttentionSpec& spec = *call_.spec;
  const std::int64_t head = item.head_begin;
  if (chunk.n_new() > 0) make_keys(chunk, head, member);
  AttentionKeys layout{kernels::KvType::kF32, static_cast<std::size_t>(spec.d_k) * 4,
                       static_cast<std::size_t>(spec.d_v) * 4, kAttentionChunk};
  const AttentionPartial& result = member.attention.partial;
  if (chunk.is_kept) {
    if (kept_->bf16()) layout.type = kernels::KvType::kBF16;
    layout.k_row_bytes = layout.v_row_bytes = kept_->row_bytes();
    member.attention.k_pages[0] = kept_->chunk(call_.layer, chunk.index, head);
    member.attention.v_pages[0] = member.attention.k_pages[0] + kept_->value_offset();
  } else {
    member.attention.k_pages[0] = reinterpret_cast<const std::uint8_t*>(member.keys);
    member.attention.v_pages[0] = reinterpret_cast<const std::uint8_t*>(member.values);
  }
  for (std::int64_t r = 0; r < item.n_rows; r += kTileQueries) {
    const std::int64_t n_rows = std::min(kTileQueries, item.n_rows - r);
    backend_.check_cancel();
    if (!attend(backend_.table_, call_, item, layout, chunk.index, r, n_rows, member.attention,
                result)) {
      continue;
    }
    const std::int64_t row = call_.sequences[static_cast<std::size_t>(item.sequence)].row_begin + r;
    for (std::int64_t t = 0; t < n_rows; ++t) {
      const std::int64_t at = (row + t) * n_heads_ + head;
      join(backend_.table_, maximum_[at], sum_[at], call_.out.row(row + t) + head * spec.d_v,
           result.maximum[t], result.sum[t], result.out + t * spec.d_v, spec.d_v);
    }
  }
}

void DecompressedRun::finish_share(const SequenceRows& sequence, int index, int n_members) const {
  const std::int64_t d_v = call_.spec->d_v;
  const std::int64_t end = n_heads_ * sequence.n_rows * (index + 1) / n_members;
  for (std::int64_t i = n_heads_ * sequence.n_rows * index / n_members; i < end; ++i) {
    const std::int64_t row = sequence.row_begin + i / n_heads_;
    const std::int64_t head = i % n_heads_;
    const std::int64_t at = row * n_heads_ + head;
    finish(backend_.table_, maximum_[at], sum_[at], call_.out.row(row) + head * d_v, d_v,
           call_.sinks == nullptr ? nullptr : call_.sinks + head);
  }
}

void DecompressedRun::run(std::int64_t sequence_index) {
  const SequenceRows& sequence = call_.sequences[static_cast<std::size_t>(sequence_index)];
  if (sequence.n_rows == 0) return;
  const std::int64_t end = sequence.start + sequence.n_rows;
  AttentionItem whole;
  whole.sequence = sequence_index;
  whole.n_heads = 1;
  whole.n_rows = sequence.n_rows;
  whole.chunk_begin = call_.first_key(sequence.start) / kAttentionChunk;
  whole.chunk_end = (end + kAttentionChunk - 1) / kAttentionChunk;
  const std::int64_t n_known =
      kept_ == nullptr ? 0 : kept_->claim(call_.layer, sequence.pages, sequence.start);
  // Chunks of which nothing is new: a head goes through all of them in one go. This step's own rows
  // are new, so there is always another chunk.
  const std::int64_t first_new = std::max(whole.chunk_begin, n_known / kAttentionChunk);
  backend_.reset_claims();
  backend_.parallel(true, [&](int index, int n_members) {
    Member member = member_of(index);
    std::int64_t n_claims = 0;
    const auto claim_heads = [&](const auto& work) {
      n_claims += n_heads_;
      for (std::int64_t i = backend_.claim(n_claims); i >= 0; i = backend_.claim(n_claims)) {
        AttentionItem item = whole;
        item.kv_head = i % n_heads_;
        item.head_begin = item.kv_head;
        work(item);
      }
    };
    if (first_new > whole.chunk_begin) {
      claim_heads([&](const AttentionItem& item) {
        for (std::int64_t c = whole.chunk_begin; c < first_new; ++c) {
          attend_head(item, chunk_at(c, end, n_known), member);
        }
      });
    }
    for (std::int64_t c = first_new; c < whole.chunk_end; ++c) {
      const Chunk chunk = chunk_at(c, end, n_known);
      if (c > whole.chunk_begin) backend_.barrier(n_members);  // latent rows are free now
      for (std::int64_t block = index; block * kBlockCols < chunk.n_new(); block += n_members) {
        backend_.check_cancel();
        prepare_block(sequence, chunk, block, member.row);
      }
      backend_.barrier(n_members);
      claim_heads([&](const AttentionItem& item) { attend_head(item, chunk, member); });
    }
    backend_.barrier(n_members);
    finish_share(sequence, index, n_members);
  });
  if (kept_ != nullptr) kept_->set_known(call_.layer, end);
}

void CpuBackend::attention_decompressed(const KvStore& kv, std::int64_t layer,
                                        const AttentionSpec& spec,
                                        std::span<const SequenceRows> sequences, const Weight& w_k,
                                        const Weight& w_v, const Mat& q, const Mat& out) {
  const CpuKv& cache = kv_of(kv, kOp);
  check_layer(cache, layer, kOp);
  check_sequences(cache, sequences, q.rows, kOp);
  const CpuWeight& keys_of = weight_of(&w_k, kOp, "w_k");
  const CpuWeight& values_of = weight_of(&w_v, kOp, "w_v");
  const std::int64_t n_heads = spec.n_heads;
  const std::int64_t d_rope = spec.d_k - keys_of.rows();
  if (n_heads < 1 || keys_of.n_experts() != n_heads || values_of.n_experts() != n_heads ||
      values_of.cols() != keys_of.cols() || values_of.rows() != spec.d_v || d_rope < 0 ||
      spec.window < 0 || cache.spec().v_width != 0 ||
      cache.spec().k_width != keys_of.cols() + d_rope) {
    fail<InternalError>("[cpu.attention_decompressed] ", n_heads, " heads of ", spec.d_k, " and ",
                        spec.d_v, ", w_k (", keys_of.n_experts(), ", ", keys_of.rows(), ", ",
                        keys_of.cols(), "), w_v (", values_of.n_experts(), ", ", values_of.rows(),
                        ", ", values_of.cols(), "), cache of widths ", cache.spec().k_width,
                        " and ", cache.spec().v_width);
  }
  AttentionSpec per_head = spec;
  per_head.n_kv_heads = n_heads;  // decompressed: every head has keys of its own
  AttentionCall call;
  call.kv = &cache;
  call.layer = layer;
  call.spec = &per_head;
  call.sequences = sequences;
  call.q = view(q, q.rows, n_heads * spec.d_k, kOp, "q");
  call.out = view(out, q.rows, n_heads * spec.d_v, kOp, "out");
  call.bf16 = !spec.exact && table_.attention_bf16 != nullptr;
  if (spec.sinks != nullptr) call.sinks = vector_of(spec.sinks, n_heads, kOp, "sinks");
  DecompressedRun run(*this, call, keys_of, values_of);
  for (std::size_t s = 0; s < sequences.size(); ++s) run.run(static_cast<std::int64_t>(s));
}

}  // namespace moesaic::backend::cpu
