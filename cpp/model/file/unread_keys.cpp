// See unread_keys.h. Names and neutral values: the GGUF specification and llama.cpp's reader and
// converters, where 0 stands for "not used" in every scale and cap.
#include "model/file/unread_keys.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace moesaic::model {
namespace {

// Nothing that a forward pass computes depends on them, whatever they say.
constexpr std::array<std::string_view, 10> kHarmless{
    "attention.group_norm_epsilon",  // of norms that no family here has
    "attention.group_norm_groups",
    "attention.layer_norm_epsilon",
    "classifier.output_labels",  // what is made of the last rows
    "classifier.pooling_type",
    "pooling_type",
    "rope.scale_linear",  // beside rope.scaling.factor, which wins
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",  // without YaRN
    "tensor_data_layout",
};
// The same in a model without experts.
constexpr std::array<std::string_view, 10> kOfExperts{
    "expert_feed_forward_length", "expert_gating_func",  "expert_group_count",
    "expert_group_used_count",    "expert_shared_count", "expert_shared_feed_forward_length",
    "expert_used_count",          "expert_weights_norm", "expert_weights_scale",
    "leading_dense_block_count",
};

// The same in a model whose layers all attend to everything.
constexpr std::array<std::string_view, 7> kOfWindows{
    "attention.key_length_mla_swa", "attention.key_length_swa",
    "attention.kv_lora_rank_swa",   "attention.value_length_mla_swa",
    "attention.value_length_swa",   "rope.dimension_count_swa",
    "rope.freq_base_swa",
};

// Those of YaRN: is_harmless_yarn().
constexpr std::array<std::string_view, 5> kOfYarn{
    "rope.scaling.yarn_attn_factor",    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",      "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_log_multiplier",
};
// Those that change nothing with some values and in some models: is_harmless().
constexpr std::array<std::string_view, 5> kWithConditions{
    "attention.sliding_window",     "hidden_activation",
    "rope.dimension_sections",      "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_ext_factor",
};

// A key that changes what is computed, and the values with which it does not. Of an array every
// element must be such a value; true is 1.
struct Setting {
  std::string_view name;
  double neutral = 0.0;
  double or_neutral = 0.0;
  std::string_view what;
};
constexpr std::string_view kOtherLayers = "layers of another kind are needed";
constexpr std::string_view kOtherRope = "another rotary embedding is needed";
constexpr std::array kSettings = std::to_array<Setting>({
    {"activation_sparsity_scale", 0, 0, "small activations are dropped"},
    {"adapters.count", 0, 0, "adapters are switched on by tokens"},
    {"attention.causal", 1, 1, "tokens attend to those behind them too"},
    {"attention.clamp_kqv", 0, 0, "queries, keys and values are cut off at it"},
    {"attention.compress_ratios", 0, 0, "keys and values are compressed"},
    {"attention.indexer.head_count", 0, 0, "each token attends to a selection of the others"},
    {"attention.indexer.top_k", 0, 0, "each token attends to so many others at most"},
    {"attention.kv_lora_rank", 0, 0, "keys and values come from latent rows"},
    {"attention.max_alibi_bias", 0, 0, "scores are biased by distance (ALiBi)"},
    {"attention.output_scale", 0, 1, "what attention adds is scaled"},
    {"attention.q_lora_rank", 0, 0, "queries come from latent rows"},
    {"attention.recurrent_layers", 0, 0, kOtherLayers},
    {"attention.relative_buckets_count", 0, 0, "scores are biased by distance"},
    {"attention.rope_pattern", 1, 1, "some layers do without positions"},
    {"attention.shared_kv_layers", 0, 0, "layers read the keys of others"},
    {"attention.sliding_window_pattern", 0, 1, "some layers attend to a window of tokens"},
    {"attention.temperature_scale", 0, 0,
     "queries are scaled from attention.temperature_length on"},
    {"attention.value_scale", 0, 1, "values are scaled"},
    {"attn_logit_softcapping", 0, 0, "scores of attention are capped"},
    {"decoder_block_count", 0, 0, kOtherLayers},
    {"embedding_length_per_layer_input", 0, 0, "every layer has an embedding of its own"},
    {"embedding_scale", 0, 1, "embedded tokens are scaled"},
    {"expert_count", 0, 0, "the feed-forward part has experts"},
    {"expert_group_scale", 0, 1, "experts are scaled by group"},
    {"expert_latent_length", 0, 0, "experts read latent rows"},
    {"final_logit_softcapping", 0, 0, "logits are capped"},
    {"full_attention_interval", 0, 1, kOtherLayers},
    {"hash_layer_count", 0, 0, "experts are chosen by token"},
    {"hyper_connection.count", 0, 1, "layers are joined in another way"},
    {"interleave_moe_layer_step", 0, 1, "some layers are dense"},
    {"logit_scale", 0, 1, "logits are scaled"},
    {"moe_every_n_layers", 0, 1, "some layers are dense"},
    {"moe_latent_size", 0, 0, "experts read latent rows"},
    {"n_deepstack_layers", 0, 0, "layers read rows of an image"},
    {"num_loops", 0, 1, "layers run several times"},
    {"residual_scale", 0, 1, "what a layer adds is scaled"},
    {"rope.scaling.alpha", 0, 1, kOtherRope},
    {"router_logit_softcapping", 0, 0, "logits of the router are capped"},
    {"swiglu_clamp_exp", 0, 0, "activations of experts are cut off at it"},
    {"swiglu_clamp_shexp", 0, 0, "activations of shared experts are cut off at it"},
    {"swin_norm", 0, 0, "norms come after each part"},
    {"token_shift_count", 0, 0, kOtherLayers},
    {"use_parallel_residual", 0, 0, "attention and feed-forward part read the same input"},
});

bool has_windows(const Config& config) {
  return std::any_of(config.layers.begin(), config.layers.end(),
                     [](const LayerConfig& layer) { return layer.window > 0; });
}

// With those whose neutral value depends on the model.
std::vector<Setting> settings_of(const Keys& keys, const Config& config) {
  const auto number = [](std::int64_t value) { return static_cast<double>(value); };
  const double shared = number(config.moe.n_shared * config.moe.d_ff_expert);
  std::vector<Setting> settings{
      {"embedding_length_out", 0, number(config.d_model), "the last rows have another width"},
      {"expert_shared_feed_forward_length", 0, shared, "shared experts have another width"}};
  if (config.mla.kv_lora > 0) {
    settings.push_back({"attention.scale", 0, config.attention_scale, "scores are scaled"});
  }
  if (has_windows(config)) {
    constexpr std::string_view kWhat = "layers with a window differ from the others";
    const double base = keys.number_or("rope.freq_base", 0);
    settings.push_back({"attention.key_length_swa", 0, number(config.d_head_k), kWhat});
    settings.push_back({"attention.value_length_swa", 0, number(config.d_head_v), kWhat});
    settings.push_back({"rope.dimension_count_swa", 0, number(config.rope.n_rot), kWhat});
    settings.push_back({"rope.freq_base_swa", 0, base, kWhat});
  }
  settings.insert(settings.end(), kSettings.begin(), kSettings.end());
  return settings;
}

std::vector<Setting>::const_iterator find_setting(const std::vector<Setting>& settings,
                                                  std::string_view name) {
  return std::find_if(settings.begin(), settings.end(),
                      [&](const Setting& setting) { return setting.name == name; });
}

// Of an array of texts: whether it is empty.
bool is_neutral(const gguf::Value& value, double neutral, double or_neutral) {
  if (value.type() == gguf::ValueType::kString) return false;
  if (value.type() != gguf::ValueType::kArray) {
    const bool is_flag = value.type() == gguf::ValueType::kBool;
    const double got = is_flag ? (value.as_bool() ? 1.0 : 0.0) : value.as_float();
    return got == neutral || got == or_neutral;
  }
  const gguf::ArrayView array = value.as_array();
  if (array.count() == 0) return true;
  const gguf::ValueType type = array.elem_type();
  if (type == gguf::ValueType::kString || type == gguf::ValueType::kArray) return false;
  for (std::uint64_t i = 0; i < array.count(); ++i) {
    if (!is_neutral(element(value, i), neutral, or_neutral)) return false;
  }
  return true;
}

// YaRN's keys that were not read: all of them without YaRN, else those that nothing here has.
bool is_harmless_yarn(const Keys& keys, std::string_view name, const gguf::Value& value) {
  const std::string kind = keys.text_or("rope.scaling.type", "linear");
  if (kind == "none" || name.starts_with("rope.scaling.yarn_beta_")) return true;
  if (kind == "linear" && keys.number_or("rope.scaling.factor", 1) == 1) return true;
  if (name == "rope.scaling.yarn_attn_factor") return is_neutral(value, 1, 1);
  if (name != "rope.scaling.yarn_ext_factor") return is_neutral(value, 0, 0);
  // A negative one stands for none; a factor turns linear scaling into YaRN.
  const bool is_unset = keys.number_or(name, 0) < 0;
  return is_unset || (kind == "yarn" ? is_neutral(value, 1, 1) : is_neutral(value, 0, 0));
}

template <std::size_t n>
bool contains(const std::array<std::string_view, n>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// Whether a key changes nothing in a model like this one, whatever it says or by what others say.
bool is_harmless(const Keys& keys, const Config& config, std::string_view name,
                 const gguf::Value& value) {
  if (contains(kHarmless, name)) return true;
  if (contains(kOfExperts, name) && config.moe.n_experts == 0) return true;
  if (contains(kOfWindows, name) && !has_windows(config)) return true;
  if (contains(kOfYarn, name)) return is_harmless_yarn(keys, name, value);
  if (name == "attention.key_length" || name == "attention.value_length") {
    if (config.mla.kv_lora == 0) return false;
    keys.count_or(name, 0);  // one for all layers; how wide latent rows are other keys say
    return true;
  }
  if (name == "attention.temperature_length") {
    return keys.number_or("attention.temperature_scale", 0) == 0;
  }
  if (name == "rope.dimension_sections") {  // a text's positions are the same in all of them
    return !config.rope.interleaved || is_neutral(value, 0, 0);
  }
  if (name == "hidden_activation" && value.type() == gguf::ValueType::kString) {
    return config.activation.kind == backend::Activation::kSilu &&
           (value.as_string() == "silu" || value.as_string() == "swish");
  }
  if (name == "attention.sliding_window") {
    // Files with MLA carry the key of a vision part, and their decoder attends to all.
    const std::int64_t window = keys.count_or(name, 0);
    return window == 0 || window >= config.n_ctx_train || config.mla.kv_lora > 0;
  }
  return false;
}

// Of a key that is harmless in some models only.
std::string_view explanation(std::string_view name) {
  if (name.starts_with("rope.")) return kOtherRope;
  if (name == "attention.sliding_window") return "each token attends to so many others at most";
  if (name == "attention.temperature_length") return "queries are scaled by position";
  if (name == "hidden_activation") return "the feed-forward part has another activation";
  return "";
}

[[noreturn]] void refuse(const Keys& keys, const gguf::Value& value, std::string_view what,
                         const std::string& remedy) {
  const std::string key =
      strcat("[model] ", keys.path(), ": key ", value.key(), " is ", text_of(value), ": ");
  if (!what.empty()) {
    fail<FormatError>(key, what, ", which is not implemented for '", keys.arch(),
                      "'; the numbers would be others than the model's", remedy);
  }
  fail<FormatError>(key, "what it changes in a model of '", keys.arch(),
                    "' is not known here, need a newer Moesaic; if it changes nothing, write the "
                    "file without it");
}

// How the model is run as if the key said nothing, which is the caller's to decide.
std::string remedy(std::string_view name, const gguf::Value& value, double neutral) {
  const bool is_flag = value.type() == gguf::ValueType::kBool;
  const std::string text = is_flag ? (neutral == 0 ? "False" : "True") : strcat(neutral);
  return strcat(". Without it all the same: overrides={\"", name, "\": ", text, "}");
}

}  // namespace

void refuse_unread_keys(const Keys& keys, const Config& config) {
  const std::vector<Setting> settings = settings_of(keys, config);
  const std::string prefix = keys.full("");
  const std::set<std::string, std::less<>> read = keys.asked();  // more is asked below
  for (const gguf::Value& value : keys.file()->metadata()) {
    if (!value.key().starts_with(prefix)) continue;
    const std::string_view name = value.key().substr(prefix.size());
    if (read.contains(name) || is_harmless(keys, config, name, value)) continue;
    const auto setting = find_setting(settings, name);
    if (setting == settings.end()) {
      const bool is_window = name == "attention.sliding_window";
      refuse(keys, value, explanation(name), is_window ? remedy(name, value, 0) : "");
    }
    if (is_neutral(value, setting->neutral, setting->or_neutral)) continue;
    refuse(keys, value, setting->what, remedy(name, value, setting->or_neutral));
  }
}

bool is_known_setting(const Keys& keys, const Config& config, std::string_view name) {
  const std::vector<Setting> settings = settings_of(keys, config);
  return find_setting(settings, name) != settings.end() || contains(kWithConditions, name);
}

}  // namespace moesaic::model
