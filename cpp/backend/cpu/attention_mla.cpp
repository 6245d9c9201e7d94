// The decompressed form of MLA, for many rows: per chunk of the cache the latent rows are prepared
// once, then each head's keys and values are made from them by the matmul kernels and used for all
// queries while they are in the cache of one core. Rounds otherwise than the absorbed form (weights
// meet latent rows instead of queries), so the model chooses; within this form results do not
// depend on the cut. Source: arXiv:2405.04434 section 2.1.
#include <cstring>
#include <limits>

#include "backend/cpu/cpu_backend.h"
#include "base/errors.h"

namespace moesaic::backend::cpu {
namespace {

using kernels::kAttentionChunk;

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
  }
}

}  // namespace

void CpuBackend::attention_decompressed(const KvStore& kv, std::int64_t layer,
                                        const AttentionSpec& spec,
                                        std::span<const SequenceRows> sequences, const Weight& w_k,
                                        const Weight& w_v, const Mat& q, const Mat& out) {
  const char* op = "attention_decompressed";
  const CpuKv& cache = kv_of(kv, op);
  check_layer(cache, layer, op);
  check_sequences(cache, sequences, q.rows, op);
  const CpuWeight& keys_of = weight_of(&w_k, op, "w_k");
  const CpuWeight& values_of = weight_of(&w_v, op, "w_v");
  const std::int64_t n_heads = spec.n_heads;
  const std::int64_t kv_lora = keys_of.cols();
  const std::int64_t d_nope = keys_of.rows();
  const std::int64_t d_rope = spec.d_k - d_nope;
  if (n_heads < 1 || keys_of.n_experts() != n_heads || values_of.n_experts() != n_heads ||
      values_of.cols() != kv_lora || values_of.rows() != spec.d_v || d_rope < 0 ||
      spec.window < 0 || cache.spec().v_width != 0 || cache.spec().k_width != kv_lora + d_rope) {
    fail<InternalError>("[cpu.attention_decompressed] ", n_heads, " heads of ", spec.d_k, " and ",
                        spec.d_v, ", w_k (", keys_of.n_experts(), ", ", d_nope, ", ", kv_lora,
                        "), w_v (", values_of.n_experts(), ", ", values_of.rows(), ", ",
                        values_of.cols(), "), cache of widths ", cache.spec().k_width, " and ",
                        cache.spec().v_width);
  }
  AttentionSpec per_head = spec;
  per_head.n_kv_heads = n_heads;  // decompressed: every head has keys of its own
  AttentionCall call;
  call.kv = &cache;
  call.layer = layer;
  call.spec = &per_head;
  call.sequences = sequences;
  call.q = view(q, q.rows, n_heads * spec.d_k, op, "q");
  call.out = view(out, q.rows, n_heads * spec.d_v, op, "out");
  if (spec.sinks != nullptr) call.sinks = vector_of(spec.sinks, n_heads, op, "sinks");

  Arena shared = shared_arena(op);
  const std::int64_t n_running = call.q.rows * n_heads;
  float* running_maximum = shared.take<float>(n_running);
  float* running_sum = shared.take<float>(n_running);
  float* rotated = shared.take<float>(kAttentionChunk * std::max<std::int64_t>(d_rope, 1));
  const std::int64_t n_blocks = kAttentionChunk / kBlockCols;
  Decompressor parts[2];
  for (Decompressor& part : parts) {
    part.weight = &part == parts ? &keys_of : &values_of;
    part.kernel = &table_.matmul[static_cast<std::size_t>(part.weight->type())];
  }
  parts[1].is_shared = parts[1].kernel->act == parts[0].kernel->act;
  // Whether n_cols columns are packed in part's format: a shared one serves both kernels.
  const auto packs = [&parts](const Decompressor& part, std::int64_t n_cols) {
    return packs_from(part, n_cols) || (parts[1].is_shared && packs_from(parts[1], n_cols));
  };
  for (Decompressor& part : parts) {
    if (part.is_shared) continue;
    part.act_bytes = kernels::act_row_bytes(part.kernel->act, kv_lora);
    part.acts =
        shared.take<std::uint8_t>(kAttentionChunk * static_cast<std::int64_t>(part.act_bytes));
    if (!packs(part, kBlockCols)) continue;
    part.pack_bytes = aligned(table_.packed_bytes(part.kernel->act, kBlockCols, kv_lora));
    part.packs = shared.take<std::uint8_t>(n_blocks * static_cast<std::int64_t>(part.pack_bytes));
  }
  if (parts[1].is_shared) {
    parts[1].act_bytes = parts[0].act_bytes;
    parts[1].acts = parts[0].acts;
    parts[1].packs = parts[0].packs;
    parts[1].pack_bytes = parts[0].pack_bytes;
  }

  const auto prepare_block = [&](const AttentionItem& whole, std::int64_t chunk, std::int64_t block,
                                 std::int64_t n_tokens, float* row) {
    const SequenceRows& sequence = sequences[static_cast<std::size_t>(whole.sequence)];
    const std::int64_t page_tokens = cache.spec().page_tokens;
    const std::int64_t begin = block * kBlockCols;
    const std::int64_t end = std::min(begin + kBlockCols, n_tokens);
    for (std::int64_t t = begin; t < end; ++t) {
      const std::int64_t position = chunk * kAttentionChunk + t;
      const std::uint8_t* stored =
          cache.k_page(layer, sequence.pages[static_cast<std::size_t>(position / page_tokens)]) +
          static_cast<std::size_t>(position % page_tokens) * cache.k_row_bytes();
      const float* latent = row;
      if (cache.spec().type == KvType::kF16) {
        table_.from_f16(reinterpret_cast<const std::uint16_t*>(stored), kv_lora + d_rope, row);
      } else {
        latent = reinterpret_cast<const float*>(stored);
      }
      for (const Decompressor& part : parts) {
        if (part.is_shared) continue;
        table_.prepare(part.kernel->act, latent, kv_lora, 1, kv_lora,
                       part.acts + static_cast<std::size_t>(t) * part.act_bytes);
      }
      std::memcpy(rotated + t * d_rope, latent + kv_lora,
                  static_cast<std::size_t>(d_rope) * sizeof(float));
    }
    const std::uint8_t* acts[kBlockCols];
    for (const Decompressor& part : parts) {
      if (part.is_shared || !packs(part, end - begin)) continue;
      for (std::int64_t t = begin; t < end; ++t) {
        acts[t - begin] = part.acts + static_cast<std::size_t>(t) * part.act_bytes;
      }
      table_.pack(part.kernel->act, acts, end - begin, kv_lora,
                  part.packs + static_cast<std::size_t>(block) * part.pack_bytes);
    }
  };

  for (std::size_t s = 0; s < sequences.size(); ++s) {
    const SequenceRows& sequence = sequences[s];
    if (sequence.n_rows == 0) continue;
    const std::int64_t end = sequence.start + sequence.n_rows;
    AttentionItem whole;
    whole.sequence = static_cast<std::int64_t>(s);
    whole.n_heads = 1;
    whole.n_rows = sequence.n_rows;
    whole.chunk_begin = call.first_key(sequence.start) / kAttentionChunk;
    whole.chunk_end = (end + kAttentionChunk - 1) / kAttentionChunk;
    std::fill_n(running_maximum + sequence.row_begin * n_heads, sequence.n_rows * n_heads,
                kNothingSeen);
    std::fill_n(running_sum + sequence.row_begin * n_heads, sequence.n_rows * n_heads, 0.0F);
    reset_claims();
    parallel(true, [&](int index, int n_members) {
      Arena arena = member_arena(index, op);
      AttentionMember member(arena, spec.d_k, spec.d_v);
      float* keys = arena.take<float>(kAttentionChunk * spec.d_k);
      float* values = arena.take<float>(kAttentionChunk * spec.d_v);
      float* row = arena.take<float>(kv_lora + d_rope);
      std::uint8_t* scratch = arena.take<std::uint8_t>(
          static_cast<std::int64_t>(kernels::matmul_scratch_bytes(kv_lora)));
      const AttentionKeys layout{kernels::KvType::kF32, static_cast<std::size_t>(spec.d_k) * 4,
                                 static_cast<std::size_t>(spec.d_v) * 4, kAttentionChunk};
      for (std::int64_t chunk = whole.chunk_begin; chunk < whole.chunk_end; ++chunk) {
        const std::int64_t n_tokens = std::min(kAttentionChunk, end - chunk * kAttentionChunk);
        if (chunk > whole.chunk_begin) barrier(n_members);  // the latent rows are free now
        for (std::int64_t block = index; block * kBlockCols < n_tokens; block += n_members) {
          check_cancel();
          prepare_block(whole, chunk, block, n_tokens, row);
        }
        barrier(n_members);
        const std::int64_t claim_end = (chunk - whole.chunk_begin + 1) * n_heads;
        for (std::int64_t i = claim(claim_end); i >= 0; i = claim(claim_end)) {
          check_cancel();
          AttentionItem item = whole;
          item.kv_head = i % n_heads;
          item.head_begin = item.kv_head;
          decompress(parts[0], item.kv_head, n_tokens, keys, spec.d_k, scratch);
          check_cancel();
          decompress(parts[1], item.kv_head, n_tokens, values, spec.d_v, scratch);
          for (std::int64_t t = 0; t < n_tokens; ++t) {
            std::memcpy(keys + t * spec.d_k + d_nope, rotated + t * d_rope,
                        static_cast<std::size_t>(d_rope) * sizeof(float));
          }
          member.k_pages[0] = reinterpret_cast<const std::uint8_t*>(keys);
          member.v_pages[0] = reinterpret_cast<const std::uint8_t*>(values);
          for (std::int64_t r = 0; r < sequence.n_rows; r += kTileQueries) {
            const std::int64_t n_rows = std::min(kTileQueries, sequence.n_rows - r);
            check_cancel();
            if (!attend(table_, call, item, layout, chunk, r, n_rows, member, member.partial)) {
              continue;
            }
            for (std::int64_t t = 0; t < n_rows; ++t) {
              const std::int64_t to = sequence.row_begin + r + t;
              const std::int64_t at = to * n_heads + item.kv_head;
              join(table_, running_maximum[at], running_sum[at],
                   call.out.row(to) + item.kv_head * spec.d_v, member.partial.maximum[t],
                   member.partial.sum[t], member.partial.out + t * spec.d_v, spec.d_v);
            }
          }
        }
      }
      barrier(n_members);
      const std::int64_t last = n_heads * sequence.n_rows * (index + 1) / n_members;
      for (std::int64_t i = n_heads * sequence.n_rows * index / n_members; i < last; ++i) {
        const std::int64_t to = sequence.row_begin + i / n_heads;
        const std::int64_t head = i % n_heads;
        const std::int64_t at = to * n_heads + head;
        finish(table_, running_maximum[at], running_sum[at], call.out.row(to) + head * spec.d_v,
               spec.d_v, call.sinks == nullptr ? nullptr : call.sinks + head);
      }
    });
  }
}

}  // namespace moesaic::backend::cpu
