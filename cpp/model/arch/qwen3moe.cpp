// qwen3moe: qwen3's attention; experts chosen by softmax, the chosen weights normalised; no shared
// expert.
#include "model/arch/common.h"

namespace moesaic::model::arch {
namespace {

Config read(const Keys& keys) {
  Config config = read_base(keys);
  read_grouped_heads(keys, config);
  read_grouped_rope(keys, config, {});
  read_moe(keys, config, {.function = backend::RouterFunction::kSoftmax, .normalize = true});
  return config;
}

void list_layer(TensorList& list, const Config& config) {
  list_grouped_attention(list, config);
  list_qk_norms(list, config);
  list_ffn_norm(list, config);
  list_ffn(list, config);
}

}  // namespace

const Family kQwen3Moe{"qwen3moe", read, list_layer};

}  // namespace moesaic::model::arch
