// llama: Llama, Mistral, SmolLM2 and others of their shape; with experts, Mixtral. Rotary pairs are
// interleaved: converters permute q and k for it.
#include "model/arch/common.h"

namespace moesaic::model::arch {
namespace {

Config read(const Keys& keys) {
  Config config = read_base(keys);
  read_grouped_heads(keys, config);
  read_grouped_rope(keys, config, {.interleaved = true});
  if (keys.count_or("expert_count", 0) > 0) {
    read_moe(keys, config, {.function = backend::RouterFunction::kSoftmax, .normalize = true});
  }
  return config;
}

void list_layer(TensorList& list, const Config& config) {
  list_grouped_attention(list, config);
  list_ffn_norm(list, config);
  list_ffn(list, config);
}

}  // namespace

const Family kLlama{"llama", read, list_layer};

}  // namespace moesaic::model::arch
