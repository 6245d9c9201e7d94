// What a model is, as data: read from a file's keys and tensors by its family (arch/<family>.cpp)
// and checked once; the layers are a list. Not for weights, and not for how a layer is computed.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "backend/backend.h"

namespace moesaic::model {

enum class AttentionKind { kGrouped, kMla };
enum class FfnKind { kDense, kMoe };

// One layer's choices. Everything a layer needs beyond tensors is here, so that layer code is
// shared by all families.
struct LayerConfig {
  AttentionKind attention = AttentionKind::kGrouped;
  FfnKind ffn = FfnKind::kDense;
  std::int64_t window = 0;    // sliding window in tokens, 0: none
  std::int64_t d_ff = 0;      // of a dense layer
  std::int64_t n_active = 0;  // experts a token, of a MoE layer
};

struct MoeConfig {
  std::int64_t n_experts = 0;
  std::int64_t n_active = 0;  // the most of any layer
  std::int64_t n_shared = 0;
  std::int64_t d_ff_expert = 0;
  backend::RouterFunction function = backend::RouterFunction::kSoftmax;
  std::int64_t n_groups = 1;
  std::int64_t n_groups_used = 1;
  bool group_score_top2 = true;
  bool normalize = false;
  float scale = 1.0F;
};

struct MlaConfig {
  std::int64_t q_lora = 0;  // 0: q is one projection
  std::int64_t kv_lora = 0;
  std::int64_t d_nope = 0;
  std::int64_t d_rope = 0;
  std::int64_t d_v = 0;
};

struct Config {
  std::string arch;  // general.architecture
  std::string name;  // general.name, may be empty
  std::int64_t n_layers = 0;
  std::int64_t d_model = 0;
  std::int64_t n_heads = 0;
  std::int64_t n_kv_heads = 0;
  std::int64_t d_head_k = 0;
  std::int64_t d_head_v = 0;
  std::int64_t d_ff = 0;  // of dense layers the most, 0 when there are none
  std::int64_t vocab = 0;
  std::int64_t n_ctx_train = 0;
  float norm_eps = 0.0F;
  float attention_scale = 0.0F;
  MlaConfig mla;  // kv_lora 0: no MLA
  MoeConfig moe;  // n_experts 0: dense
  backend::ActivationSpec activation;
  backend::RopeSpec rope;           // frequencies with all scaling applied
  std::vector<LayerConfig> layers;  // (n_layers)

  // Width of a cached row per layer.
  std::int64_t kv_k_width() const {
    return mla.kv_lora > 0 ? mla.kv_lora + mla.d_rope : n_kv_heads * d_head_k;
  }
  std::int64_t kv_v_width() const { return mla.kv_lora > 0 ? 0 : n_kv_heads * d_head_v; }
};

}  // namespace moesaic::model
