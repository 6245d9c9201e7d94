// gpt-oss: grouped attention with a sink per head, every other layer over a sliding window, biases
// everywhere, experts chosen by logit with softmax over the chosen, clamped SwiGLU. YaRN's ramp
// keeps its bounds unrounded. FACTS.md section 3.
#include "model/arch/common.h"

namespace moesaic::model::arch {
namespace {

// Layers slide by period 2, the first one sliding, unless the file says otherwise: by another
// period, or layer by layer whether it slides.
void read_windows(const Keys& keys, Config& config) {
  const std::int64_t window = keys.count("attention.sliding_window");
  constexpr const char* kPattern = "attention.sliding_window_pattern";
  const gguf::Value* pattern = keys.find(kPattern);
  if (pattern != nullptr && pattern->type() == gguf::ValueType::kArray) {
    const std::vector<std::int64_t> slides = keys.per_layer(kPattern, config.n_layers);
    for (std::size_t i = 0; i < slides.size(); ++i) {
      if (slides[i] > 1) keys.bad(kPattern, slides[i], "true or false for each layer");
      config.layers[i].window = slides[i] == 1 ? window : 0;
    }
    return;
  }
  const std::int64_t period = keys.count_or(kPattern, 2);
  for (std::int64_t i = 0; i < config.n_layers; ++i) {
    const bool slides = period > 0 && i % period < period - 1;
    config.layers[static_cast<std::size_t>(i)].window = slides ? window : 0;
  }
}

Config read(const Keys& keys) {
  Config config = read_base(keys);
  read_grouped_heads(keys, config);
  read_grouped_rope(keys, config, {.round_ramp = false});
  read_windows(keys, config);
  read_moe(keys, config, {.function = backend::RouterFunction::kSoftmaxSelected});
  config.activation = {backend::Activation::kSwigluOai, 1.702F, 7.0F};
  return config;
}

void list_layer(TensorList& list, const Config& config) {
  list_grouped_attention(list, config);
  list.vector(&LayerWeights::attn_sinks, "attn_sinks.weight", config.n_heads);
  list_ffn_norm(list, config, "post_attention_norm.weight");
  list_ffn(list, config);
}

}  // namespace

const Family kGptOss{"gpt-oss", read, list_layer};

}  // namespace moesaic::model::arch
