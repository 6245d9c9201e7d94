// qwen2: llama's tensors with biases on q, k and v; rotary halves.
#include "model/arch/common.h"

namespace moesaic::model::arch {
namespace {

Config read(const Keys& keys) {
  Config config = read_base(keys);
  read_grouped_heads(keys, config);
  read_grouped_rope(keys, config, {});
  return config;
}

void list_layer(TensorList& list, const Config& config) {
  list_grouped_attention(list, config);
  list_ffn_norm(list, config);
  list_ffn(list, config);
}

}  // namespace

const Family kQwen2{"qwen2", read, list_layer};

}  // namespace moesaic::model::arch
