// glm4moe: GLM-4.5 and its like. Grouped attention with partial rotary halves, q and k norms where
// the file has them, leading dense layers, then a sigmoid router with bias and a shared expert.
// Trailing nextn blocks (multi-token prediction) are skipped.
#include "model/arch/common.h"

namespace moesaic::model::arch {
namespace {

Config read(const Keys& keys) {
  Config config = read_base(keys);
  read_grouped_heads(keys, config);
  read_grouped_rope(keys, config, {});
  read_moe(keys, config, {.function = backend::RouterFunction::kSigmoid, .normalize = true});
  return config;
}

void list_layer(TensorList& list, const Config& config) {
  list_grouped_attention(list, config);
  if (list.has("attn_q_norm.weight")) list_qk_norms(list, config);
  list_ffn_norm(list, config, "post_attention_norm.weight");
  list_ffn(list, config);
}

}  // namespace

const Family kGlm4Moe{"glm4moe", read, list_layer};

}  // namespace moesaic::model::arch
