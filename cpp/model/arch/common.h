// What families share: sizes that every one has, and the usual groups of tensors. A family's file
// names the groups it is made of.
#pragma once

#include "model/arch/registry.h"
#include "model/config.h"
#include "model/layers/rope.h"

namespace moesaic::model::arch {

// --- keys
// Name, layers, width, training length, norm epsilon, heads, dense FFN, vocabulary. The layer list
// is made with the defaults of LayerConfig.
Config read_base(const Keys& keys);
// Head sizes of grouped attention and the attention scale: key_length and value_length, else
// d_model / n_heads.
void read_grouped_heads(const Keys& keys, Config& config);
// Rotary embedding over rope.dimension_count (default: the whole key head).
void read_grouped_rope(const Keys& keys, Config& config, const RopeOptions& options);

struct MoeDefaults {
  backend::RouterFunction function = backend::RouterFunction::kSoftmax;
  bool normalize = false;
};
// Experts, router and shared experts; expert_gating_func, expert_weights_norm and _scale override
// the defaults. Layers from leading_dense_block_count on become MoE.
void read_moe(const Keys& keys, Config& config, const MoeDefaults& defaults);

// --- tensors
// attn_norm, attn_{q,k,v,output} and their biases where the file has them.
void list_grouped_attention(TensorList& list, const Config& config);
// attn_q_norm and attn_k_norm, one head long.
void list_qk_norms(TensorList& list, const Config& config);
// The norm before the FFN, which some files call post_attention_norm.
void list_ffn_norm(TensorList& list, const Config& config, const char* name = "ffn_norm.weight");
// Dense, or router with experts and shared experts, as the layer is.
void list_ffn(TensorList& list, const Config& config);

}  // namespace moesaic::model::arch
