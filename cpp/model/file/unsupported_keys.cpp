// See unsupported_keys.h. Names and neutral values: the GGUF specification and llama.cpp's reader,
// where 0 stands for "not used" in every scale and cap.
#include "model/file/unsupported_keys.h"

#include <algorithm>
#include <array>
#include <string_view>

namespace moesaic::model {
namespace {

struct Number {
  std::string_view name;
  double neutral;  // changes nothing, as 0 does
  std::string_view what;
};
constexpr std::array<Number, 8> kNumbers{{
    {"attention.clamp_kqv", 0.0, "queries, keys and values are cut off at it"},
    {"attention.max_alibi_bias", 0.0, "scores are biased by distance (ALiBi)"},
    {"attn_logit_softcapping", 0.0, "scores of attention are capped"},
    {"router_logit_softcapping", 0.0, "logits of the router are capped"},
    {"final_logit_softcapping", 0.0, "logits are capped"},
    {"logit_scale", 1.0, "logits are scaled"},
    {"residual_scale", 1.0, "what a layer adds is scaled"},
    {"embedding_scale", 1.0, "embedded tokens are scaled"},
}};

struct Flag {
  std::string_view name;
  bool neutral;
  std::string_view what;
};
constexpr std::array<Flag, 3> kFlags{{
    {"attention.causal", true, "tokens attend to those behind them too"},
    {"use_parallel_residual", false, "attention and feed-forward part read the same input"},
    {"swin_norm", false, "norms come after each part"},
}};

constexpr std::string_view kWindow = "attention.sliding_window";

template <typename T>
[[noreturn]] void refuse(const Keys& keys, std::string_view name, T got, std::string_view what) {
  fail<FormatError>("[model] ", keys.path(), ": key ", keys.full(name), " is ", got, ": ", what,
                    ", which is not implemented for '", keys.arch(),
                    "'; the numbers would be others than the model's");
}

}  // namespace

void refuse_unsupported_keys(const Keys& keys, const Config& config) {
  for (const Number& number : kNumbers) {
    const double got = keys.number_or(number.name, 0.0);
    if (got == 0.0 || got == number.neutral) continue;
    refuse(keys, number.name, got, number.what);
  }
  for (const Flag& flag : kFlags) {
    if (keys.flag_or(flag.name, flag.neutral) == flag.neutral) continue;
    refuse(keys, flag.name, flag.neutral ? "false" : "true", flag.what);
  }
  // A family that reads the window has set it for some layer. Files with MLA carry the key of a
  // vision part, and their decoder attends to all.
  const bool is_read = std::any_of(config.layers.begin(), config.layers.end(),
                                   [](const LayerConfig& layer) { return layer.window > 0; });
  const std::int64_t window = is_read ? 0 : keys.count_or(kWindow, 0);
  if (window != 0 && config.mla.kv_lora == 0 && window < keys.count_or("context_length", 0)) {
    refuse(keys, kWindow, window, "each token attends to so many others at most");
  }
}

}  // namespace moesaic::model
