// Bytes and operations of a model from its tensor directory.
#include "cluster/cost.h"

#include "backend/backend.h"
#include "model/scratch.h"

namespace moesaic::cluster {
namespace {

bool is_routed(const model::TensorSpec& spec) {
  using L = model::LayerWeights;
  return spec.slot == &L::gate_exps || spec.slot == &L::up_exps || spec.slot == &L::down_exps ||
         spec.slot == &L::gate_exps_bias || spec.slot == &L::up_exps_bias ||
         spec.slot == &L::down_exps_bias;
}

double bytes_of(const model::TensorSpec& spec) {
  return static_cast<double>(spec.mapped_bytes() + spec.derived_bytes());
}

// Operations of x (1, cols) -> y (1, rows), per expert.
double ops_of(const model::TensorSpec& spec) {
  return spec.rows > 1 ? 2.0 * static_cast<double>(spec.rows) * static_cast<double>(spec.cols)
                       : 0.0;
}

double attention_ops_per_key(const model::Config& c) {
  if (c.mla.kv_lora >
      0) {  // absorbed: scores over the latent row and its rotated part, values over the latent row
    return 2.0 * static_cast<double>(c.n_heads) *
           static_cast<double>(2 * c.mla.kv_lora + c.mla.d_rope);
  }
  return 2.0 * static_cast<double>(c.n_heads) * static_cast<double>(c.d_head_k + c.d_head_v);
}

}  // namespace

ModelCost model_cost(const model::ModelFile& model, const model::LoadOptions& options) {
  const model::Config& c = model.config;
  ModelCost cost;
  cost.name = c.name.empty() ? c.arch : c.name;
  cost.d_model = c.d_model;
  cost.vocab = c.vocab;
  cost.n_experts = c.moe.n_experts;
  cost.n_active = c.moe.n_active;
  cost.n_ctx_train = c.n_ctx_train;
  cost.embed.weights_bytes = bytes_of(model.token_embd);
  cost.embed.dense_bytes = cost.embed.weights_bytes / static_cast<double>(c.vocab);
  cost.head.weights_bytes = bytes_of(model.output) + bytes_of(model.output_norm);
  cost.head.dense_bytes = cost.head.weights_bytes;
  cost.head.ops_per_row = ops_of(model.output);

  const double kv_value_bytes = options.kv_type == backend::KvType::kF32 ? 4 : 2;
  for (const std::vector<model::TensorSpec>& specs : model.layers) {
    LayerCost layer;
    for (const model::TensorSpec& spec : specs) {
      // The decompressed form's key weights are held besides, and used instead of the absorbed
      // ones.
      const bool second_form = spec.slot == &model::LayerWeights::attn_w_k;
      if (second_form && options.deterministic) continue;
      layer.weights_bytes += bytes_of(spec);
      if (second_form) continue;
      if (is_routed(spec)) {
        layer.expert_bytes += bytes_of(spec) / static_cast<double>(spec.n_experts);
        layer.ops_per_row += static_cast<double>(c.moe.n_active) * ops_of(spec);
      } else {
        layer.dense_bytes += bytes_of(spec);
        layer.ops_per_row += static_cast<double>(spec.n_experts) * ops_of(spec);
      }
    }
    layer.attention_ops_per_key = attention_ops_per_key(c);
    layer.kv_bytes_per_token =
        static_cast<double>(c.kv_k_width() + c.kv_v_width()) * kv_value_bytes;
    cost.layers.push_back(layer);
  }

  // Scratch grows with the rows of a step in straight lines but for rounding: two points give the
  // line.
  const auto backend = backend::make_backend("cpu", {.n_threads = 1});
  const auto scratch = [&](std::int64_t rows) {
    model::LoadOptions with_rows = options;
    with_rows.max_step_rows = rows;
    return static_cast<double>(
        model::memory_need(model, model::Slice::whole(c), with_rows, *backend).scratch_bytes);
  };
  constexpr std::int64_t kFew = 64;
  constexpr std::int64_t kMany = 512;
  if (options.n_ctx >= kMany) {
    cost.scratch_bytes_per_row =
        (scratch(kMany) - scratch(kFew)) / static_cast<double>(kMany - kFew);
    cost.scratch_bytes_fixed = scratch(kFew) - cost.scratch_bytes_per_row * kFew;
  } else {
    cost.scratch_bytes_fixed = scratch(kMany);
  }
  return cost;
}

}  // namespace moesaic::cluster
