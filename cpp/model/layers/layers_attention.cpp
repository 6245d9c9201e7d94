// Attention of a layer; see layers.h. MLA: section 2.1, arXiv:2405.04434; FACTS.md section 4.
#include <array>
#include <optional>

#include "base/errors.h"
#include "model/layers/layers.h"

namespace moesaic::model {
namespace {

using backend::Mat;
using backend::MatmulTarget;

Mat first(const Mat& mat, std::int64_t n) { return mat.row_range(0, n); }

void project_out(const LayerContext& context, const LayerPlace& place, const Mat& mixed,
                 const Mat& out) {
  const std::array target{
      MatmulTarget{place.weights.attn_output.get(), place.weights.attn_output_bias.get(), out}};
  context.backend.matmul(mixed, target);
}

// Shorter products in attention only where rows are rounded to eight bits anyway, by the projection
// that reads them; an f32 cache asks for float32 as well.
bool exact_attention(const LayerContext& context, const LayerPlace& place) {
  return context.exact || context.kv.spec().type == backend::KvType::kF32 ||
         quant::is_float(place.weights.attn_output->type());
}

// Writes the rows of the step into the cache; throws ArgumentError when a number does not fit.
void cache_rows(const LayerContext& context, const LayerPlace& place, const Mat& k, const Mat* v) {
  const std::optional<backend::KvOverflow> overflow =
      context.backend.kv_write(context.kv, place.kv_layer, context.rows.sequences, k, v);
  if (!overflow) return;
  const bool is_f16 = context.kv.spec().type == backend::KvType::kF16;
  fail<ArgumentError>("[kv] layer ", place.layer, ", position ", overflow->position, ": ",
                      overflow->is_key ? "a key" : "a value", " of ", overflow->number,
                      " overflows the ", is_f16 ? "f16" : "q8_0", " cache, which holds up to ",
                      is_f16 ? "65504" : "8.3e6", ": load the model with kv_type=\"f32\"");
}

void run_grouped(const LayerContext& context, const LayerPlace& place, const Mat& normed,
                 const Mat& out) {
  backend::Backend& backend = context.backend;
  const Config& config = context.config;
  const LayerWeights& w = place.weights;
  const StepRows& rows = context.rows;
  const ScratchPlan& plan = context.scratch.plan();
  const Mat q = first(plan.q, rows.n);
  const Mat k = first(plan.k, rows.n);
  const Mat v = first(plan.v, rows.n);
  const Mat mixed = first(plan.mixed, rows.n);

  const std::array targets{MatmulTarget{w.attn_q.get(), w.attn_q_bias.get(), q},
                           MatmulTarget{w.attn_k.get(), w.attn_k_bias.get(), k},
                           MatmulTarget{w.attn_v.get(), w.attn_v_bias.get(), v}};
  backend.matmul(normed, targets);
  if (w.attn_q_norm) {
    const Mat q_heads = q.split_cols(config.n_heads);
    const Mat k_heads = k.split_cols(config.n_kv_heads);
    backend.rms_norm(q_heads, w.attn_q_norm.get(), config.norm_eps, q_heads);
    backend.rms_norm(k_heads, w.attn_k_norm.get(), config.norm_eps, k_heads);
  }
  backend.rope(q, config.d_head_k, 0, config.rope, rows.positions);
  backend.rope(k, config.d_head_k, 0, config.rope, rows.positions);
  cache_rows(context, place, k, &v);
  backend.attention(context.kv, place.kv_layer,
                    {.n_heads = config.n_heads,
                     .n_kv_heads = config.n_kv_heads,
                     .d_k = config.d_head_k,
                     .d_v = config.d_head_v,
                     .scale = config.attention_scale,
                     .window = place.config.window,
                     .sinks = w.attn_sinks.get(),
                     .exact = exact_attention(context, place)},
                    rows.sequences, q, mixed);
  project_out(context, place, mixed, out);
}

// Queries, per head [d_nope | d_rope turned], and the latent rows [norm(c) | k_pe turned], which go
// to the cache.
void mla_project(const LayerContext& context, const LayerPlace& place, const Mat& normed,
                 const Mat& q) {
  backend::Backend& backend = context.backend;
  const Config& config = context.config;
  const MlaConfig& mla = config.mla;
  const LayerWeights& w = place.weights;
  const StepRows& rows = context.rows;
  const ScratchPlan& plan = context.scratch.plan();
  const Mat latent = first(plan.k, rows.n);

  const MatmulTarget kv_a{w.attn_kv_a.get(), nullptr, latent};
  if (mla.q_lora > 0) {
    const Mat q_lora = first(plan.q_lora, rows.n);
    backend.matmul(normed, std::array{MatmulTarget{w.attn_q_a.get(), nullptr, q_lora}, kv_a});
    backend.rms_norm(q_lora, w.attn_q_a_norm.get(), config.norm_eps, q_lora);
    backend.matmul(q_lora, std::array{MatmulTarget{w.attn_q_b.get(), nullptr, q}});
  } else {
    backend.matmul(normed, std::array{MatmulTarget{w.attn_q.get(), nullptr, q}, kv_a});
  }
  const Mat c = latent.col_range(0, mla.kv_lora);
  backend.rms_norm(c, w.attn_kv_a_norm.get(), config.norm_eps, c);
  backend.rope(q, config.d_head_k, mla.d_nope, config.rope, rows.positions);
  backend.rope(latent, mla.kv_lora + mla.d_rope, mla.kv_lora, config.rope, rows.positions);
  cache_rows(context, place, latent, nullptr);
}

// One latent head that all query heads read: q' = k_b q_nope, o = v_b (softmax(q' c + q_pe k_pe)
// c).
void mla_absorbed(const LayerContext& context, const LayerPlace& place, const MlaRun& run,
                  const Mat& q, const Mat& heads) {
  backend::Backend& backend = context.backend;
  const Config& config = context.config;
  const MlaConfig& mla = config.mla;
  const std::int64_t h = config.n_heads;
  const std::int64_t width = mla.kv_lora + mla.d_rope;
  const Mat q_latent = first(context.scratch.plan().q_latent, run.n_rows);
  const Mat mixed = first(context.scratch.plan().mixed, run.n_rows);

  backend.matmul_heads(q, config.d_head_k, *place.weights.attn_k_b, q_latent, width);
  backend.copy(q.split_cols(h).col_range(mla.d_nope, mla.d_rope),
               q_latent.split_cols(h).col_range(mla.kv_lora, mla.d_rope));
  backend.attention(context.kv, place.kv_layer,
                    {.n_heads = h,
                     .n_kv_heads = 1,
                     .d_k = width,
                     .d_v = mla.kv_lora,
                     .scale = config.attention_scale,
                     .window = place.config.window,
                     .exact = exact_attention(context, place)},
                    run.sequences, q_latent, mixed);
  backend.matmul_heads(mixed, mla.kv_lora, *place.weights.attn_v_b, heads, mla.d_v);
}

void mla_decompressed(const LayerContext& context, const LayerPlace& place, const MlaRun& run,
                      const Mat& q, const Mat& heads) {
  const Config& config = context.config;
  context.backend.attention_decompressed(context.kv, place.kv_layer,
                                         {.n_heads = config.n_heads,
                                          .n_kv_heads = config.n_heads,
                                          .d_k = config.d_head_k,
                                          .d_v = config.mla.d_v,
                                          .scale = config.attention_scale,
                                          .window = place.config.window,
                                          .exact = exact_attention(context, place)},
                                         run.sequences, *place.weights.attn_w_k,
                                         *place.weights.attn_v_b, q, heads);
}

void run_mla(const LayerContext& context, const LayerPlace& place, const Mat& normed,
             const Mat& out) {
  const StepRows& rows = context.rows;
  const Mat q = first(context.scratch.plan().q, rows.n);
  const Mat heads = first(context.scratch.plan().heads, rows.n);
  mla_project(context, place, normed, q);

  for (const MlaRun& run : rows.mla_runs) {
    const Mat run_q = q.row_range(run.row_begin, run.n_rows);
    const Mat run_heads = heads.row_range(run.row_begin, run.n_rows);
    if (run.decompressed) {
      mla_decompressed(context, place, run, run_q, run_heads);
    } else {
      mla_absorbed(context, place, run, run_q, run_heads);
    }
  }
  project_out(context, place, heads, out);
}

}  // namespace

bool prefer_decompressed(const Config& config, std::int64_t n_rows, std::int64_t n_keys,
                         double matmul_cost) {
  constexpr std::int64_t kFewRows = 16;  // below, making keys and values costs more than it counts
  if (n_rows < kFewRows) return false;
  const MlaConfig& mla = config.mla;
  const auto rows = static_cast<double>(n_rows);
  const auto keys = static_cast<double>(n_keys);
  const double per_row = matmul_cost * static_cast<double>(mla.kv_lora * (mla.d_nope + mla.d_v));
  const double absorbed =
      rows * keys * static_cast<double>(2 * mla.kv_lora + mla.d_rope) + rows * per_row;
  const double decompressed =
      rows * keys * static_cast<double>(mla.d_nope + mla.d_rope + mla.d_v) + keys * per_row;
  return decompressed < absorbed;
}

double mla_matmul_cost(quant::Qtype type) { return quant::is_float(type) ? 1.0 : 0.35; }

void run_attention(const LayerContext& context, const LayerPlace& place, const backend::Mat& normed,
                   const backend::Mat& out) {
  if (place.config.attention == AttentionKind::kMla) {
    run_mla(context, place, normed, out);
  } else {
    run_grouped(context, place, normed, out);
  }
}

}  // namespace moesaic::model
