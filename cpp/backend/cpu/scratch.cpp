// How much scratch the largest step needs. Each term stands beside the operation that takes it.
#include "backend/cpu/scratch.h"

#include <algorithm>

namespace moesaic::backend::cpu {
namespace {

using kernels::ActFormat;

// Above these, matmuls go in several passes (rows of a step) or waves (groups); more memory buys
// nothing.
constexpr std::size_t kMaxActsBytes = std::size_t{64} << 20;
constexpr std::size_t kMaxPacksBytes = std::size_t{32} << 20;

std::int64_t to_block(std::int64_t k) { return (k + 255) / 256 * 256; }

// Prepared bytes of a row in both integer formats (targets of one matmul may differ in type).
std::size_t act_bytes(std::int64_t k) {
  const std::int64_t padded = to_block(std::max<std::int64_t>(k, 1));
  return kernels::act_row_bytes(ActFormat::kQ8x32, padded) +
         kernels::act_row_bytes(ActFormat::kQ8x256, padded);
}

// The largest pack that any of the table's kernels would ask for.
std::size_t pack_bytes(const kernels::Table& table, std::int64_t n_cols, std::int64_t k) {
  const std::int64_t padded = to_block(std::max<std::int64_t>(k, 1));
  std::size_t n_bytes = kAlign;
  for (const kernels::MatmulKernel& kernel : table.matmul) {
    if (kernel.many == nullptr || kernel.many_from > n_cols) continue;
    n_bytes = std::max(n_bytes, table.packed_bytes(kernel.act, n_cols, padded));
  }
  return aligned(n_bytes);
}

}  // namespace

ScratchPlan plan_scratch(const Backend::ScratchSpec& spec, const kernels::Table& table,
                         int n_threads) {
  ScratchPlan plan;
  const std::int64_t rows = std::max<std::int64_t>(spec.max_rows, 1);
  const std::int64_t slots = std::max<std::int64_t>(spec.max_slots, 1);
  const std::int64_t cols = std::max<std::int64_t>(spec.max_cols, 1);
  const std::int64_t slot_cols = spec.max_slot_cols > 0 ? spec.max_slot_cols : cols;
  const std::int64_t heads = std::max<std::int64_t>(spec.n_heads, 1);
  const std::int64_t d_k = std::max<std::int64_t>({spec.d_k, spec.kv_lora, 1});
  const std::int64_t d_v = std::max<std::int64_t>({spec.d_v, spec.kv_lora, 1});

  // matmul: prepared rows (floats take four times the room, so at least a few of those must fit),
  // packs of at least one block in each format
  const std::size_t wanted =
      std::max({static_cast<std::size_t>(rows) * act_bytes(cols),
                static_cast<std::size_t>(slots) * act_bytes(slot_cols),
                // matmul_heads: every head of a row is a prepared row
                static_cast<std::size_t>(rows * heads) * act_bytes(std::max(d_k, d_v))});
  const std::size_t least =
      8 * kernels::act_row_bytes(ActFormat::kF32, to_block(cols)) +
      static_cast<std::size_t>(heads) *
          kernels::act_row_bytes(ActFormat::kF32, to_block(std::max(d_k, d_v)));
  plan.acts_bytes = aligned(std::max(std::min(wanted, kMaxActsBytes), least));
  const std::int64_t most_cols = std::max({rows, slots, rows * heads});
  const std::int64_t n_blocks = (most_cols + kBlockCols - 1) / kBlockCols + 1;
  const std::size_t block = pack_bytes(table, kBlockCols, cols);
  plan.packs_bytes = aligned(
      std::max(std::min(static_cast<std::size_t>(n_blocks) * block, kMaxPacksBytes), 3 * block));
  const std::size_t matmul_shared = plan.acts_bytes + plan.packs_bytes;

  // attention: results of split chunks, running maxima and sums
  plan.partial_units = std::max<std::int64_t>(16, 4 * n_threads);
  const std::size_t partials = static_cast<std::size_t>(plan.partial_units) *
                               aligned(static_cast<std::size_t>(partial_floats(d_v)) * 4);
  const std::size_t running =
      2 * aligned(static_cast<std::size_t>((rows + kTileQueries) * heads) * 4);
  plan.attention_bytes = partials + running + (std::size_t{64} << 10);
  if (spec.kv_lora > 0) {
    // attention_decompressed: a chunk of latent rows, prepared and packed in two formats, and its
    // rotated parts
    const std::int64_t chunk = kernels::kAttentionChunk;
    const std::int64_t lora = to_block(spec.kv_lora);
    plan.attention_bytes +=
        2 * static_cast<std::size_t>(chunk) * kernels::act_row_bytes(ActFormat::kF32, lora) +
        2 * 8 * pack_bytes(table, kBlockCols, lora) +
        aligned(static_cast<std::size_t>(chunk * d_k) * 4) + (std::size_t{64} << 10);
  }
  plan.shared_bytes = std::max(matmul_shared, plan.attention_bytes);

  // members: a kernel's own scratch and the pointers of one job
  const std::size_t pointers = 8 * aligned(static_cast<std::size_t>(kernels::kAttentionChunk) * 8);
  const std::size_t matmul_member = kernels::matmul_scratch_bytes(to_block(cols)) + pointers;
  std::size_t attention_member =
      kernels::attention_scratch_bytes(d_k, d_v) + pointers +
      aligned(static_cast<std::size_t>(kTileQueries * d_k) * 4) +
      aligned(static_cast<std::size_t>(partial_floats(d_v)) * 4) +
      8 * aligned(static_cast<std::size_t>(kTileQueries * kTilesPerItem) * 8);
  if (spec.kv_lora > 0) {
    attention_member +=
        aligned(static_cast<std::size_t>(kernels::kAttentionChunk * (d_k + d_v)) * 4) +
        kernels::matmul_scratch_bytes(to_block(spec.kv_lora)) +
        aligned(static_cast<std::size_t>(spec.kv_lora) * 4) + 4 * kAlign;
  }
  // route: the choice scores of one row
  const std::size_t other_member = std::size_t{64} << 10;
  plan.member_bytes = aligned(std::max({matmul_member, attention_member, other_member}));
  plan.rope_floats = rows * std::max<std::int64_t>({spec.d_k, spec.d_v, 256});
  return plan;
}

}  // namespace moesaic::backend::cpu
