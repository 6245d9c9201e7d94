// deepseek2: DeepSeek-V2, V2-Lite, V3, Kimi K2 and K2.5. Multi-head latent attention, leading dense
// layers, then experts with shared ones. Keys, names and layouts: FACTS.md sections 2 to 4;
// arXiv:2405.04434, arXiv:2412.19437.
#include <cmath>

#include "model/arch/common.h"

namespace moesaic::model::arch {
namespace {

// Head sizes: the MLA layout gives those of the decompressed heads in key_length_mla and
// value_length_mla, the older one in key_length and value_length.
void read_mla(const Keys& keys, Config& config) {
  MlaConfig& mla = config.mla;
  mla.kv_lora = keys.count("attention.kv_lora_rank");
  mla.q_lora = keys.count_or("attention.q_lora_rank", 0);
  mla.d_rope = keys.count("rope.dimension_count");
  const bool has_mla_keys =
      keys.has("attention.key_length_mla") || keys.has("attention.value_length_mla");
  const char* key_name = has_mla_keys ? "attention.key_length_mla" : "attention.key_length";
  const std::int64_t d_k = keys.count(key_name);
  mla.d_v = keys.count(has_mla_keys ? "attention.value_length_mla" : "attention.value_length");
  if (d_k <= mla.d_rope) {
    keys.bad(key_name, d_k, strcat("more than rope.dimension_count, ", mla.d_rope));
  }
  mla.d_nope = d_k - mla.d_rope;
  config.d_head_k = d_k;
  config.d_head_v = mla.d_v;
  config.n_kv_heads = config.n_heads;  // the file says 1 or n_heads, by its layout

  const Rope rope =
      read_rope(keys, mla.d_rope, mla.d_rope, {.interleaved = true, .magnitude_in_softmax = true});
  config.rope = rope.spec;
  config.attention_scale =
      static_cast<float>(rope.softmax_factor / std::sqrt(static_cast<double>(d_k)));
}

Config read(const Keys& keys) {
  Config config = read_base(keys);
  read_mla(keys, config);
  for (LayerConfig& layer : config.layers) layer.attention = AttentionKind::kMla;
  if (keys.count_or("expert_count", 0) > 0) {
    // Files older than the key are V2's, whose router has no bias.
    const bool has_bias =
        keys.tensor(strcat("blk.", config.n_layers - 1, ".exp_probs_b.bias")) != nullptr;
    read_moe(keys, config,
             {.function = has_bias ? backend::RouterFunction::kSigmoid
                                   : backend::RouterFunction::kSoftmax});
  }
  return config;
}

void list_query(TensorList& list, const Config& config) {
  using W = LayerWeights;
  const std::int64_t heads = config.n_heads * config.d_head_k;
  if (config.mla.q_lora == 0) {
    list.matrix(&W::attn_q, "attn_q.weight", {1, heads, config.d_model});
    return;
  }
  list.matrix(&W::attn_q_a, "attn_q_a.weight", {1, config.mla.q_lora, config.d_model});
  list.vector(&W::attn_q_a_norm, "attn_q_a_norm.weight", config.mla.q_lora);
  list.matrix(&W::attn_q_b, "attn_q_b.weight", {1, heads, config.mla.q_lora});
}

// Keys and values from the latent: attn_k_b (transposed) and attn_v_b, or both in attn_kv_b, per
// head [d_nope | d_v] rows.
void list_latent(TensorList& list, const Config& config) {
  using W = LayerWeights;
  const MlaConfig& mla = config.mla;
  const std::int64_t h = config.n_heads;
  list.matrix(&W::attn_kv_a, "attn_kv_a_mqa.weight", {1, mla.kv_lora + mla.d_rope, config.d_model});
  list.vector(&W::attn_kv_a_norm, "attn_kv_a_norm.weight", mla.kv_lora);
  if (list.has("attn_k_b.weight") && list.has("attn_v_b.weight")) {
    const Shape k_b{h, mla.kv_lora, mla.d_nope};
    list.matrix(&W::attn_k_b, "attn_k_b.weight", k_b);
    list.matrix(&W::attn_v_b, "attn_v_b.weight", {h, mla.d_v, mla.kv_lora});
    list.rows_of(&W::attn_w_k, "attn_k_b.weight", k_b, 0, mla.kv_lora, Origin::kTransposed);
    list.ignore("attn_kv_b.weight");  // some files carry both layouts
    return;
  }
  const Shape kv_b{h, mla.d_nope + mla.d_v, mla.kv_lora};
  list.rows_of(&W::attn_k_b, "attn_kv_b.weight", kv_b, 0, mla.d_nope, Origin::kTransposed);
  list.rows_of(&W::attn_v_b, "attn_kv_b.weight", kv_b, mla.d_nope, mla.d_v);
  list.rows_of(&W::attn_w_k, "attn_kv_b.weight", kv_b, 0, mla.d_nope);
}

void list_layer(TensorList& list, const Config& config) {
  using W = LayerWeights;
  list.vector(&W::attn_norm, "attn_norm.weight", config.d_model);
  list_query(list, config);
  list_latent(list, config);
  list.matrix(&W::attn_output, "attn_output.weight",
              {1, config.d_model, config.n_heads * config.mla.d_v});
  list_ffn_norm(list, config);
  list_ffn(list, config);
}

}  // namespace

const Family kDeepseek2{"deepseek2", read, list_layer};

}  // namespace moesaic::model::arch
