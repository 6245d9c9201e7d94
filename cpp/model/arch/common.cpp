// Keys and tensor groups that families share; see common.h. Names: FACTS.md section 3.
#include "model/arch/common.h"

#include <cmath>

namespace moesaic::model::arch {
namespace {

std::int64_t read_vocab(const Keys& keys) {
  const gguf::TensorInfo* table = keys.tensor("token_embd.weight");
  if (table == nullptr || table->ne.size() < 2) {
    fail<FormatError>("[model] ", keys.path(),
                      ": tensor token_embd.weight: missing or without rows, need (d_model, vocab)");
  }
  const std::uint64_t vocab = table->ne[1];
  if (vocab < 1 || vocab > static_cast<std::uint64_t>(Keys::kMaxCount)) {
    fail<FormatError>("[model] ", keys.path(), ": tensor token_embd.weight: got ", vocab,
                      " rows, need 1 to 2147483647");
  }
  const auto rows = static_cast<std::int64_t>(vocab);
  const std::int64_t said = keys.count_or("vocab_size", rows);
  if (said != rows) {
    keys.bad("vocab_size", said, strcat(rows, ", the rows of token_embd.weight"));
  }
  const gguf::Value* tokens = keys.file()->find("tokenizer.ggml.tokens");
  if (tokens != nullptr && tokens->type() == gguf::ValueType::kArray &&
      tokens->as_array().count() > vocab) {
    fail<FormatError>("[model] ", keys.path(), ": key tokenizer.ggml.tokens: got ",
                      tokens->as_array().count(), " tokens, need at most ", rows,
                      ", the rows of token_embd.weight");
  }
  return rows;
}

std::int64_t read_layers(const Keys& keys) {
  const std::int64_t all = keys.count("block_count");
  // Every layer has tensors, so a count beyond them is a lie; nothing is allocated from it.
  const std::size_t n_tensors = keys.file()->tensors().size();
  if (static_cast<std::uint64_t>(all) > n_tensors) {
    keys.bad("block_count", all, strcat("at most the number of tensors in the file, ", n_tensors));
  }
  const std::int64_t skipped = keys.count_or("nextn_predict_layers", 0);
  if (skipped >= all) {
    keys.bad("nextn_predict_layers", skipped, strcat("fewer than block_count, ", all));
  }
  return all - skipped;
}

}  // namespace

Config read_base(const Keys& keys) {
  Config config;
  config.arch = keys.arch();
  const gguf::Value* name = keys.file()->find("general.name");
  if (name != nullptr && name->type() == gguf::ValueType::kString) {
    config.name = std::string(name->as_string());
  }
  config.n_layers = read_layers(keys);
  config.layers.resize(static_cast<std::size_t>(config.n_layers));
  config.d_model = keys.count("embedding_length");
  config.n_ctx_train = keys.count("context_length");
  config.n_heads = keys.count("attention.head_count");
  config.n_kv_heads =
      keys.has("attention.head_count_kv") ? keys.count("attention.head_count_kv") : config.n_heads;
  config.norm_eps = static_cast<float>(keys.positive("attention.layer_norm_rms_epsilon"));
  if (!(config.norm_eps > 0.0F && config.norm_eps < 1.0F)) {
    keys.bad("attention.layer_norm_rms_epsilon", config.norm_eps, "a number between 0 and 1");
  }
  const std::vector<std::int64_t> widths = keys.per_layer("feed_forward_length", config.n_layers);
  for (std::size_t i = 0; i < widths.size(); ++i) {
    config.layers[i].d_ff = widths[i];
    config.d_ff = std::max(config.d_ff, widths[i]);
  }
  config.vocab = read_vocab(keys);
  return config;
}

void read_grouped_heads(const Keys& keys, Config& config) {
  if (config.n_heads % config.n_kv_heads != 0) {
    keys.bad("attention.head_count_kv", config.n_kv_heads,
             strcat("a divisor of head_count, ", config.n_heads));
  }
  std::int64_t d_head = 0;
  if (!keys.has("attention.key_length") || !keys.has("attention.value_length")) {
    d_head = config.d_model / config.n_heads;
    if (d_head * config.n_heads != config.d_model) {
      keys.bad("attention.head_count", config.n_heads,
               strcat("a divisor of embedding_length, ", config.d_model,
                      ", or attention.key_length and value_length"));
    }
  }
  config.d_head_k = keys.has("attention.key_length") ? keys.count("attention.key_length") : d_head;
  config.d_head_v =
      keys.has("attention.value_length") ? keys.count("attention.value_length") : d_head;
  config.attention_scale = static_cast<float>(
      keys.positive_or("attention.scale", 1.0 / std::sqrt(static_cast<double>(config.d_head_k))));
}

void read_grouped_rope(const Keys& keys, Config& config, const RopeOptions& options) {
  const std::int64_t n_rot =
      keys.has("rope.dimension_count") ? keys.count("rope.dimension_count") : config.d_head_k;
  config.rope = read_rope(keys, n_rot, config.d_head_k, options).spec;
}

namespace {

// How many experts a token goes to, which layers may differ in; an array's values for dense layers
// do not count.
void read_active(const Keys& keys, Config& config) {
  constexpr const char* kName = "expert_used_count";
  MoeConfig& moe = config.moe;
  if (!keys.has(kName)) keys.count(kName);  // says what is missing
  const std::vector<std::int64_t> counts = keys.per_layer(kName, config.n_layers);
  const std::int64_t reachable = moe.n_experts / moe.n_groups * moe.n_groups_used;
  for (std::size_t i = 0; i < counts.size(); ++i) {
    LayerConfig& layer = config.layers[i];
    if (layer.ffn != FfnKind::kMoe) continue;
    if (counts[i] < 1 || counts[i] > moe.n_experts) {
      keys.bad(kName, strcat(counts[i], " for layer ", i),
               strcat("1 to expert_count, ", moe.n_experts));
    }
    if (counts[i] > reachable) {
      keys.bad(kName, strcat(counts[i], " for layer ", i),
               strcat("at most ", reachable, ", the experts of the groups used"));
    }
    layer.n_active = counts[i];
    moe.n_active = std::max(moe.n_active, counts[i]);
  }
}

}  // namespace

void read_moe(const Keys& keys, Config& config, const MoeDefaults& defaults) {
  MoeConfig& moe = config.moe;
  moe.n_experts = keys.count("expert_count");
  moe.d_ff_expert = keys.count(keys.has("expert_feed_forward_length") ? "expert_feed_forward_length"
                                                                      : "feed_forward_length");
  moe.n_shared = keys.count_or("expert_shared_count", 0);

  const std::int64_t function = keys.count_or("expert_gating_func", 0);
  switch (function) {
    case 0:
      moe.function = defaults.function;
      break;
    case 1:
      moe.function = backend::RouterFunction::kSoftmax;
      break;
    case 2:
      moe.function = backend::RouterFunction::kSigmoid;
      break;
    case 3:
      moe.function = backend::RouterFunction::kSoftmaxSelected;
      break;
    default:
      keys.bad("expert_gating_func", function, "1 (softmax), 2 (sigmoid) or 3 (softmax of chosen)");
  }
  moe.normalize = keys.flag_or("expert_weights_norm", defaults.normalize);
  const double scale = keys.number_or("expert_weights_scale", 0.0);
  moe.scale = scale == 0.0 ? 1.0F : static_cast<float>(scale);  // 0 stands for none in old files

  moe.n_groups = std::max<std::int64_t>(1, keys.count_or("expert_group_count", 1));
  moe.n_groups_used = std::max<std::int64_t>(1, keys.count_or("expert_group_used_count", 1));
  if (moe.n_experts % moe.n_groups != 0) {
    keys.bad("expert_group_count", moe.n_groups,
             strcat("a divisor of expert_count, ", moe.n_experts));
  }
  if (moe.n_groups_used > moe.n_groups) {
    keys.bad("expert_group_used_count", moe.n_groups_used,
             strcat("at most expert_group_count, ", moe.n_groups));
  }
  // DeepSeek-V2 (softmax) scores a group by its best expert, V3 (sigmoid) by the sum of its best
  // two.
  moe.group_score_top2 = moe.function == backend::RouterFunction::kSigmoid;

  const std::int64_t n_dense = keys.count_or("leading_dense_block_count", 0);
  for (std::int64_t i = n_dense; i < config.n_layers; ++i) {
    config.layers[static_cast<std::size_t>(i)].ffn = FfnKind::kMoe;
  }
  read_active(keys, config);
}

void list_grouped_attention(TensorList& list, const Config& config) {
  using W = LayerWeights;
  const std::int64_t d = config.d_model;
  const std::int64_t q = config.n_heads * config.d_head_k;
  const std::int64_t k = config.n_kv_heads * config.d_head_k;
  const std::int64_t v = config.n_kv_heads * config.d_head_v;
  list.vector(&W::attn_norm, "attn_norm.weight", d);
  if (list.has("attn_qkv.weight")) {  // one tensor: rows of q, then k, then v
    const Shape qkv{1, q + k + v, d};
    list.rows_of(&W::attn_q, "attn_qkv.weight", qkv, 0, q);
    list.rows_of(&W::attn_k, "attn_qkv.weight", qkv, q, k);
    list.rows_of(&W::attn_v, "attn_qkv.weight", qkv, q + k, v);
    list.optional_part(&W::attn_q_bias, "attn_qkv.bias", qkv.rows, 0, q);
    list.optional_part(&W::attn_k_bias, "attn_qkv.bias", qkv.rows, q, k);
    list.optional_part(&W::attn_v_bias, "attn_qkv.bias", qkv.rows, q + k, v);
  } else {
    list.matrix(&W::attn_q, "attn_q.weight", {1, q, d});
    list.matrix(&W::attn_k, "attn_k.weight", {1, k, d});
    list.matrix(&W::attn_v, "attn_v.weight", {1, v, d});
    list.optional_vector(&W::attn_q_bias, "attn_q.bias", q);
    list.optional_vector(&W::attn_k_bias, "attn_k.bias", k);
    list.optional_vector(&W::attn_v_bias, "attn_v.bias", v);
  }
  list.matrix(&W::attn_output, "attn_output.weight", {1, d, config.n_heads * config.d_head_v});
  list.optional_vector(&W::attn_output_bias, "attn_output.bias", d);
}

void list_qk_norms(TensorList& list, const Config& config) {
  list.vector(&LayerWeights::attn_q_norm, "attn_q_norm.weight", config.d_head_k);
  list.vector(&LayerWeights::attn_k_norm, "attn_k_norm.weight", config.d_head_k);
}

void list_ffn_norm(TensorList& list, const Config& config, const char* name) {
  list.vector(&LayerWeights::ffn_norm, name, config.d_model);
}

namespace {

// One of the two matrices that a gated feed-forward part begins with.
struct GateOrUp {
  LayerSlot weight;
  LayerSlot bias;  // null: the part has none
  const char* name;
};

// Gate and up as two tensors, or as one in which each matrix has gate's rows first.
void list_gate_up(TensorList& list, const Shape& shape, const GateOrUp& gate, const GateOrUp& up,
                  const char* fused) {
  const std::int64_t f = shape.rows;
  if (const std::string name = strcat(fused, ".weight"); list.has(name)) {
    const Shape both{shape.n_experts, 2 * f, shape.cols};
    const std::string bias = strcat(fused, ".bias");
    list.rows_of(gate.weight, name, both, 0, f);
    list.rows_of(up.weight, name, both, f, f);
    if (gate.bias == nullptr) return;
    list.optional_part(gate.bias, bias, 2 * f, 0, f, shape.n_experts);
    list.optional_part(up.bias, bias, 2 * f, f, f, shape.n_experts);
    return;
  }
  for (const GateOrUp& one : {gate, up}) {
    list.matrix(one.weight, strcat(one.name, ".weight"), shape);
    if (one.bias == nullptr) continue;
    list.optional_vector(one.bias, strcat(one.name, ".bias"), f, shape.n_experts);
  }
}

void list_dense(TensorList& list, const Config& config) {
  using W = LayerWeights;
  const std::int64_t d = config.d_model;
  const std::int64_t f = config.layers[static_cast<std::size_t>(list.layer())].d_ff;
  if (f == 0) list.keys().bad("feed_forward_length", "nothing", "the width of the dense layers");
  list_gate_up(list, {1, f, d}, {&W::ffn_gate, &W::ffn_gate_bias, "ffn_gate"},
               {&W::ffn_up, &W::ffn_up_bias, "ffn_up"}, "ffn_gate_up");
  list.matrix(&W::ffn_down, "ffn_down.weight", {1, d, f});
  list.optional_vector(&W::ffn_down_bias, "ffn_down.bias", d);
}

void list_experts(TensorList& list, const Config& config) {
  using W = LayerWeights;
  const std::int64_t d = config.d_model;
  const std::int64_t f = config.moe.d_ff_expert;
  const std::int64_t e = config.moe.n_experts;
  list.matrix(&W::router, "ffn_gate_inp.weight", {1, e, d});
  list.optional_vector(&W::router_bias, "ffn_gate_inp.bias", e);
  list.optional_vector(&W::selection_bias, "exp_probs_b.bias", e);
  list_gate_up(list, {e, f, d}, {&W::gate_exps, &W::gate_exps_bias, "ffn_gate_exps"},
               {&W::up_exps, &W::up_exps_bias, "ffn_up_exps"}, "ffn_gate_up_exps");
  list.matrix(&W::down_exps, "ffn_down_exps.weight", {e, d, f});
  list.optional_vector(&W::down_exps_bias, "ffn_down_exps.bias", d, e);
}

void list_shared_experts(TensorList& list, const Config& config) {
  using W = LayerWeights;
  const std::int64_t d = config.d_model;
  const std::int64_t f = config.moe.n_shared * config.moe.d_ff_expert;
  list_gate_up(list, {1, f, d}, {&W::gate_shexp, nullptr, "ffn_gate_shexp"},
               {&W::up_shexp, nullptr, "ffn_up_shexp"}, "ffn_gate_up_shexp");
  list.matrix(&W::down_shexp, "ffn_down_shexp.weight", {1, d, f});
}

}  // namespace

void list_ffn(TensorList& list, const Config& config) {
  const LayerConfig& layer = config.layers[static_cast<std::size_t>(list.layer())];
  if (layer.ffn == FfnKind::kDense) {
    list_dense(list, config);
    return;
  }
  list_experts(list, config);
  if (config.moe.n_shared > 0) list_shared_experts(list, config);
}

}  // namespace moesaic::model::arch
