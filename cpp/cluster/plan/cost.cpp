// Bytes and operations of a model from its tensor directory.
#include "cluster/plan/cost.h"

#include <algorithm>
#include <memory>

#include "backend/backend.h"
#include "model/layers/scratch.h"

namespace moesaic::cluster {
namespace {

bool is_routed(const model::TensorSpec& spec) {
  using L = model::LayerWeights;
  return spec.slot == &L::gate_exps || spec.slot == &L::up_exps || spec.slot == &L::down_exps ||
         spec.slot == &L::gate_exps_bias || spec.slot == &L::up_exps_bias ||
         spec.slot == &L::down_exps_bias;
}

bool is_grid(quant::Qtype type) {
  using quant::Qtype;
  return type == Qtype::kIQ1_S || type == Qtype::kIQ1_M || type == Qtype::kIQ2_XXS ||
         type == Qtype::kIQ2_XS || type == Qtype::kIQ2_S || type == Qtype::kIQ3_XXS ||
         type == Qtype::kIQ3_S || type == Qtype::kTQ1_0;
}

double held_bytes(const model::TensorSpec& spec) {
  return static_cast<double>(spec.origin == model::Origin::kMapped ? spec.mapped_bytes()
                                                                   : spec.derived_bytes());
}

bool is_matrix(const model::TensorSpec& spec) { return !spec.is_vector && spec.rows > 1; }

// Operations of x (1, cols) -> y (1, rows) with one of the spec's matrices; vectors are no matmul.
double ops_of(const model::TensorSpec& spec) {
  if (!is_matrix(spec)) return 0;
  return 2.0 * static_cast<double>(spec.rows) * static_cast<double>(spec.cols) *
         (quant::is_float(spec.tensor->type) ? kFloatOpCost : 1.0);
}

// Of one of the spec's matrices.
double unpack_ops_of(const model::TensorSpec& spec) {
  if (!is_matrix(spec) || !is_grid(spec.tensor->type)) return 0;
  return kGridUnpackOps * static_cast<double>(spec.rows) * static_cast<double>(spec.cols);
}

// Floats that this matmul reads and writes, in bytes.
double row_bytes_of(const model::TensorSpec& spec) {
  return is_matrix(spec) ? 4.0 * static_cast<double>(spec.rows + spec.cols) : 0.0;
}

AttentionCost attention_cost(const model::Config& c, const model::LayerConfig& layer,
                             const model::LoadOptions& options) {
  const auto heads = static_cast<double>(c.n_heads);
  AttentionCost cost;
  cost.window = layer.window;
  if (layer.attention == model::AttentionKind::kGrouped) {
    const double ops = 2 * heads * static_cast<double>(c.d_head_k + c.d_head_v);
    cost.ops_per_key = ops * kFloatOpCost;
    cost.ops_per_key_of_few = ops * kOneRowOpCost;
    return cost;
  }
  const bool exact = options.deterministic || options.kv_type == backend::KvType::kF32;
  const double op_cost = exact ? kFloatOpCost : kShortOpCost;
  const model::MlaConfig& mla = c.mla;
  const double absorbed = 2 * heads * static_cast<double>(2 * mla.kv_lora + mla.d_rope);
  cost.ops_per_key = absorbed * op_cost;
  cost.ops_per_key_of_few = absorbed * kFloatOpCost;
  if (options.deterministic) return cost;  // one form for any number of rows
  cost.decompressed_ops_per_key =
      2 * heads * static_cast<double>(mla.d_nope + mla.d_rope + mla.d_v) * op_cost;
  cost.decompress_ops_per_key =
      2 * heads * static_cast<double>((mla.d_nope + mla.d_v) * mla.kv_lora);
  return cost;
}

LayerCost layer_cost(const std::vector<model::TensorSpec>& specs, const model::LayerConfig& layer,
                     const model::LoadOptions& options) {
  LayerCost cost;
  cost.n_active = layer.n_active;
  for (const model::TensorSpec& spec : specs) {
    // The decompressed form's key weights are held besides, and used instead of the absorbed ones.
    const bool second_form = spec.slot == &model::LayerWeights::attn_w_k;
    if (second_form && options.deterministic) continue;
    cost.weights_bytes += held_bytes(spec);
    if (second_form) continue;
    const auto n = static_cast<double>(spec.n_experts);  // experts, or heads
    if (is_routed(spec)) {
      cost.expert_bytes += held_bytes(spec) / n;
      cost.expert_ops_per_row += ops_of(spec);
      cost.expert_unpack_ops += unpack_ops_of(spec);
      cost.row_bytes += static_cast<double>(layer.n_active) * row_bytes_of(spec);
    } else {
      cost.dense_bytes += held_bytes(spec);
      cost.dense_ops_per_row += n * ops_of(spec);
      cost.dense_unpack_ops += n * unpack_ops_of(spec);
      cost.row_bytes += n * row_bytes_of(spec);
    }
  }
  return cost;
}

model::LoadOptions with_n_ctx(model::LoadOptions options, std::int64_t n_ctx) {
  options.n_ctx = n_ctx;
  options.progress = nullptr;
  options.cancel = nullptr;
  return options;
}

// The loader's own arithmetic, on a backend of the asked number of threads.
std::function<double(const ScratchQuery&)> scratch_of(std::shared_ptr<const model::ModelFile> model,
                                                      const model::LoadOptions& options) {
  return [model, options](const ScratchQuery& query) {
    const auto backend = backend::make_backend("cpu", {.n_threads = query.threads});
    model::LoadOptions asked = with_n_ctx(options, query.n_ctx);
    asked.max_step_rows = query.rows;
    asked.kv_tokens = query.n_ctx;
    asked.kept_tokens = 0;
    const model::Slice slice{.layer_begin = query.layer_begin,
                             .layer_end = query.layer_end,
                             .embed = query.layer_begin == 0,
                             .head = query.head};
    return static_cast<double>(model::memory_need(*model, slice, asked, *backend).scratch_bytes);
  };
}

std::function<double(std::int64_t)> kept_of(std::shared_ptr<const model::ModelFile> model,
                                            std::shared_ptr<const backend::Backend> backend,
                                            const model::LoadOptions& options) {
  return [model, backend, options](std::int64_t n_ctx) {
    backend::KvSpec layer;
    layer.n_layers = 1;
    layer.kept = model::kept_keys(*model, with_n_ctx(options, n_ctx), *backend);
    return static_cast<double>(backend->kv_kept_bytes(layer));
  };
}

}  // namespace

ModelCost model_cost(const model::ModelFile& model, const model::LoadOptions& options) {
  const model::Config& c = model.config;
  ModelCost cost;
  cost.name = c.name.empty() ? c.arch : c.name;
  cost.d_model = c.d_model;
  cost.vocab = c.vocab;
  cost.n_experts = c.moe.n_experts;
  cost.n_ctx_train = c.n_ctx_train;
  cost.page_tokens = options.page_tokens;
  cost.tied_head = model.tied_output;
  cost.embed.weights_bytes = held_bytes(model.token_embd);
  cost.head.weights_bytes = held_bytes(model.output) + held_bytes(model.output_norm);
  cost.head.dense_bytes = cost.head.weights_bytes;
  cost.head.dense_ops_per_row = ops_of(model.output);
  cost.head.dense_unpack_ops = unpack_ops_of(model.output);
  cost.head.row_bytes = row_bytes_of(model.output);
  const auto shared = std::make_shared<const model::ModelFile>(model);
  const std::shared_ptr<const backend::Backend> backend =
      backend::make_backend("cpu", {.n_threads = 1});
  const auto kv_row_bytes = static_cast<double>(
      backend->kv_row_bytes(model::kv_spec(c, model::Slice::whole(c), options, 1)));
  // For a plan of any n_ctx: no prompt is longer.
  const std::int64_t n_ctx = std::max(options.n_ctx, c.n_ctx_train);
  const auto kept_tokens =
      static_cast<double>(model::kept_keys(model, with_n_ctx(options, n_ctx), *backend).n_tokens);
  for (std::size_t l = 0; l < model.layers.size(); ++l) {
    LayerCost layer = layer_cost(model.layers[l], c.layers[l], options);
    layer.attention = attention_cost(c, c.layers[l], options);
    layer.attention.kept_tokens = kept_tokens;
    layer.kv_bytes_per_token = kv_row_bytes;
    cost.layers.push_back(layer);
  }
  cost.scratch_bytes = scratch_of(shared, options);
  cost.kept_bytes = kept_of(shared, backend, options);
  return cost;
}

}  // namespace moesaic::cluster
