// Keys of a file: those that a family reads, those that change nothing, and the rest, which is
// refused by name. Lists: llama.cpp's key names and what its converters write.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <variant>

#include "base/errors.h"
#include "model/arch/model_file.h"
#include "model/arch/registry.h"
#include "model/tiny_model.h"

namespace moesaic::model {
namespace {

using testing::Recipe;
using Value = std::variant<std::int64_t, double, bool, std::string, std::vector<std::int32_t>,
                           std::vector<bool>, std::vector<float>>;
using std::int64_t;

constexpr Recipe (*kFamilies[])(const testing::TinyOptions&) = {
    testing::tiny_llama, testing::tiny_qwen3moe, testing::tiny_gpt_oss, testing::tiny_glm4moe,
    testing::tiny_deepseek2};

std::string refusal(const Recipe& recipe) {
  try {
    understand(testing::build(recipe));
  } catch (const FormatError& error) {
    return error.what();
  }
  return "";
}

void set(Recipe& recipe, const std::string& name, const Value& value) {
  std::visit([&](const auto& v) { recipe.key(name) = v; }, value);
}

struct Case {
  const char* key;
  Value bad;
  std::vector<Value> neutral = {};
};

// Keys that no family here reads.
const Case kUnread[] = {
    {"attention.clamp_kqv", 8.0, {0.0}},
    {"attention.max_alibi_bias", 8.0, {0.0}},
    {"attn_logit_softcapping", 50.0, {0.0}},
    {"router_logit_softcapping", 30.0, {0.0}},
    {"final_logit_softcapping", 30.0, {0.0}},
    {"logit_scale", 0.0625, {0.0, 1.0, int64_t{1}}},
    {"residual_scale", 0.22, {0.0, 1.0}},
    {"embedding_scale", 12.0, {0.0, 1.0}},
    {"attention.causal", false, {true}},
    {"use_parallel_residual", true, {false}},
    {"swin_norm", true, {false}},
    {"attention.output_scale", 0.5, {0.0, 1.0}},
    {"attention.value_scale", 0.5, {0.0, 1.0}},
    {"attention.temperature_scale", 0.1, {0.0}},
    {"attention.shared_kv_layers", int64_t{1}, {int64_t{0}}},
    {"attention.recurrent_layers", std::vector<bool>{true, false}, {std::vector<bool>(2, false)}},
    {"attention.rope_pattern", std::vector<std::int32_t>{1, 0}, {std::vector<std::int32_t>{1, 1}}},
    {"attention.compress_ratios", std::vector<std::int32_t>{0, 4}, {std::vector<std::int32_t>(2)}},
    {"attention.indexer.top_k", int64_t{2048}, {int64_t{0}}},
    {"attention.indexer.kpool", int64_t{2}},
    {"attention.relative_buckets_count", int64_t{32}, {int64_t{0}}},
    {"attention.output_group_count", int64_t{2}},
    {"rope.scaling.alpha", 1000.0, {0.0, 1.0}},
    {"embedding_length_out", int64_t{84}, {int64_t{0}, int64_t{42}}},
    {"embedding_length_per_layer_input", int64_t{8}, {int64_t{0}}},
    {"expert_group_scale", 0.5, {0.0, 1.0}},
    {"expert_latent_length", int64_t{8}, {int64_t{0}}},
    {"moe_latent_size", int64_t{8}, {int64_t{0}}},
    {"experts_per_group", int64_t{2}},
    {"moe_every_n_layers", int64_t{2}, {int64_t{0}, int64_t{1}}},
    {"interleave_moe_layer_step", int64_t{2}, {int64_t{0}, int64_t{1}}},
    {"full_attention_interval", int64_t{4}, {int64_t{0}, int64_t{1}}},
    {"swiglu_clamp_exp", std::vector<float>{0, 7}, {std::vector<float>{0, 0}, 0.0}},
    {"swiglu_clamp_shexp", 7.0, {std::vector<float>{0, 0}}},
    {"activation_sparsity_scale", std::vector<float>{1.6F, 0}, {std::vector<float>{0, 0}}},
    {"hidden_activation", std::string("gelu_pytorch_tanh")},
    {"num_loops", int64_t{2}, {int64_t{1}}},
    {"hash_layer_count", int64_t{3}, {int64_t{0}}},
    {"hyper_connection.count", int64_t{4}, {int64_t{1}}},
    {"hyper_connection.epsilon", 1e-6},
    {"n_deepstack_layers", int64_t{3}, {int64_t{0}}},
    {"token_shift_count", int64_t{2}, {int64_t{0}}},
    {"ssm.conv_kernel", int64_t{4}},
    {"kda.head_dim", int64_t{128}},
    {"wkv.head_size", int64_t{64}},
    {"adapters.count", int64_t{2}, {int64_t{0}}},
    {"activation.situ_beta", 1.0},
    {"a_key_of_tomorrow", int64_t{1}},
    {"rope.a_key_of_tomorrow", std::string("helix")},
    {"attention.a_key_of_tomorrow", std::vector<bool>{true}},
};

TEST(Keys, WhatNoFamilyReadsIsRefusedByNameUnlessNeutral) {
  for (const auto make : kFamilies) {
    for (const Case& each : kUnread) {
      Recipe recipe = make({});
      set(recipe, each.key, each.bad);
      const std::string text = refusal(recipe);
      EXPECT_NE(text.find(recipe.arch + "." + each.key + " is "), std::string::npos)
          << recipe.arch << " " << each.key << ": " << text;
      EXPECT_NE(text.find("tiny.gguf"), std::string::npos) << text;
      for (const Value& neutral : each.neutral) {
        set(recipe, each.key, neutral);
        EXPECT_EQ(refusal(recipe), "") << each.key;
      }
    }
  }
}

TEST(Keys, OtherNamespacesPass) {
  for (const auto make : kFamilies) {
    Recipe recipe = make({});
    recipe.keys["general.a_key_of_tomorrow"] = int64_t{1};
    recipe.keys["general.type"] = std::string("model");
    recipe.keys["tokenizer.a_key_of_tomorrow"] = int64_t{1};
    recipe.keys["quantize.imatrix.chunks_count"] = int64_t{1};
    recipe.keys["imatrix.datasets"] = std::string("x");
    recipe.keys["llama4.logit_scale"] = 0.5;
    EXPECT_EQ(refusal(recipe), "");
  }
}

// What converters write and what changes nothing in the family.
TEST(Keys, WhatConvertersWritePasses) {
  const std::vector<std::pair<std::string, Value>> common = {
      {"vocab_size", int64_t{67}},
      {"attention.layer_norm_epsilon", 1e-6},
      {"rope.scaling.finetuned", true},
      {"rope.scaling.attn_factor", 1.0},
      {"rope.scaling.original_context_length", int64_t{64}},
      {"rope.scaling.yarn_beta_fast", 16.0},
      {"tensor_data_layout", std::string("Meta AI original pth")},
      {"pooling_type", int64_t{3}},
      {"attention.causal", true},
      {"attention.temperature_length", int64_t{64}},
      {"hidden_activation", std::string("silu")},
      {"expert_group_count", int64_t{1}},
      {"expert_group_used_count", int64_t{1}},
      {"expert_shared_feed_forward_length", int64_t{0}},
      {"nextn_predict_layers", int64_t{0}},
      {"leading_dense_block_count", int64_t{0}},
  };
  for (const auto make : kFamilies) {
    for (const auto& [name, value] : common) {
      Recipe recipe = make({});
      if (recipe.arch == "gpt-oss" && name == "hidden_activation") continue;
      if (recipe.keys.contains(recipe.arch + "." + name)) continue;
      set(recipe, name, value);
      EXPECT_EQ(refusal(recipe), "") << recipe.arch << " " << name;
    }
  }
  Recipe dense = testing::tiny_llama();
  for (const char* name : {"expert_count", "expert_used_count", "expert_shared_count"}) {
    set(dense, name, int64_t{0});
  }
  set(dense, "expert_feed_forward_length", int64_t{11});
  set(dense, "expert_weights_scale", 2.5);
  set(dense, "rope.freq_base_swa", 1e4);
  set(dense, "attention.key_length_swa", int64_t{99});
  EXPECT_EQ(refusal(dense), "");
  set(dense, "expert_latent_length", int64_t{11});
  EXPECT_NE(refusal(dense).find("expert_latent_length"), std::string::npos);
}

TEST(Keys, WhatDependsOnTheFamily) {
  const auto says = [](Recipe recipe, const char* name, const Value& value) {
    set(recipe, name, value);
    return refusal(recipe);
  };
  const auto refuses = [&](const Recipe& recipe, const char* name, const Value& value) {
    const std::string text = says(recipe, name, value);
    return text.find(std::string(name) + " is ") != std::string::npos;
  };
  const Recipe llama = testing::tiny_llama();
  const Recipe moe = testing::tiny_qwen3moe();
  const Recipe mla = testing::tiny_deepseek2();
  const Recipe oss = testing::tiny_gpt_oss();

  // A window is read by gpt-oss, is of a vision part beside MLA, and else must cover everything.
  EXPECT_TRUE(refuses(llama, "attention.sliding_window", int64_t{4}));
  EXPECT_TRUE(refuses(moe, "attention.sliding_window", int64_t{255}));
  EXPECT_EQ(says(llama, "attention.sliding_window", int64_t{1} << 20), "");
  EXPECT_EQ(says(llama, "attention.sliding_window", int64_t{0}), "");
  EXPECT_EQ(says(mla, "attention.sliding_window", int64_t{4}), "");
  EXPECT_TRUE(refuses(oss, "rope.freq_base_swa", 5000.0));
  EXPECT_EQ(says(oss, "rope.freq_base_swa", 10000.0), "");
  EXPECT_TRUE(refuses(oss, "attention.key_length_swa", int64_t{16}));

  // Sections of rotary dimensions are of images; a text's positions are the same in all.
  const std::vector<std::int32_t> sections{2, 2, 3, 0};
  EXPECT_EQ(says(moe, "rope.dimension_sections", sections), "");
  EXPECT_TRUE(refuses(llama, "rope.dimension_sections", sections));

  // Latent rows: the cached width or the heads'.
  EXPECT_EQ(says(mla, "attention.key_length", int64_t{26}), "");
  EXPECT_EQ(says(mla, "attention.value_length", int64_t{18}), "");
  EXPECT_EQ(says(mla, "attention.value_length", int64_t{13}), "");
  EXPECT_TRUE(refuses(mla, "attention.scale", 0.5));
  EXPECT_TRUE(refuses(llama, "attention.kv_lora_rank", int64_t{18}));

  EXPECT_TRUE(refuses(mla, "expert_shared_feed_forward_length", int64_t{12}));
  EXPECT_EQ(says(mla, "expert_shared_feed_forward_length", int64_t{11}), "");
  EXPECT_TRUE(refuses(llama, "expert_count", int64_t{4}) ||
              says(llama, "expert_count", int64_t{4}).find("expert") != std::string::npos);
}

TEST(Keys, YarnSettingsThatNothingHereHasAreRefused) {
  const auto says = [](const char* kind, const char* name, double value) {
    Recipe recipe = testing::tiny_llama();
    recipe.key("rope.scaling.type") = std::string(kind);
    recipe.key("rope.scaling.factor") = 4.0;
    recipe.key(std::string("rope.scaling.") + name) = value;
    return refusal(recipe);
  };
  const auto refuses = [&](const char* kind, const char* name, double value) {
    return says(kind, name, value).find(std::string(name) + " is ") != std::string::npos;
  };
  EXPECT_TRUE(refuses("yarn", "yarn_ext_factor", 0.5));
  EXPECT_TRUE(refuses("yarn", "yarn_ext_factor", 0.0));
  EXPECT_EQ(says("yarn", "yarn_ext_factor", 1.0), "");
  EXPECT_EQ(says("yarn", "yarn_ext_factor", -1.0), "");
  EXPECT_TRUE(refuses("yarn", "yarn_attn_factor", 1.4));
  EXPECT_EQ(says("yarn", "yarn_attn_factor", 1.0), "");
  EXPECT_TRUE(refuses("linear", "yarn_ext_factor", 1.0));
  EXPECT_TRUE(refuses("linear", "yarn_log_multiplier", 1.0));
  EXPECT_EQ(says("linear", "yarn_log_multiplier", 0.0), "");
  EXPECT_TRUE(refuses("none", "yarn_of_tomorrow", 1.0));
  for (const char* name : {"yarn_ext_factor", "yarn_attn_factor", "yarn_log_multiplier"}) {
    EXPECT_EQ(says("none", name, 0.5), "") << name;
  }
  EXPECT_NE(says("yarn", "yarn_log_multiplier", -1.0).find("0 or more"), std::string::npos);
}

// Mistral's files store mscale_all_dim itself: cos and sin are multiplied by mscale(factor, 1) /
// mscale(factor, mscale_all_dim), as transformers does it.
TEST(Keys, YarnLogMultiplierOfGroupedAttentionDividesTheMagnitude) {
  Recipe recipe = testing::tiny_llama();
  recipe.key("rope.scaling.type") = std::string("yarn");
  recipe.key("rope.scaling.factor") = 16.0;
  const auto magnitude = [&] { return understand(testing::build(recipe)).config.rope.magnitude; };
  EXPECT_NEAR(magnitude(), 1 + 0.1 * std::log(16.0), 1e-12);
  recipe.key("rope.scaling.yarn_log_multiplier") = 0.0;
  EXPECT_NEAR(magnitude(), 1 + 0.1 * std::log(16.0), 1e-12);
  recipe.key("rope.scaling.yarn_log_multiplier") = 1.0;
  EXPECT_EQ(magnitude(), 1.0);
  recipe.key("rope.scaling.yarn_log_multiplier") = 0.5;
  EXPECT_NEAR(magnitude(), (1 + 0.1 * std::log(16.0)) / (1 + 0.05 * std::log(16.0)), 1e-12);
}

TEST(Keys, TheOlderKeyOfLinearScalingIsRead) {
  const auto freqs = [](const Recipe& r) {
    return understand(testing::build(r)).config.rope.inverse_freqs;
  };
  Recipe newer = testing::tiny_llama();
  newer.key("rope.scaling.type") = std::string("linear");
  newer.key("rope.scaling.factor") = 4.0;
  Recipe older = testing::tiny_llama();
  older.key("rope.scale_linear") = 4.0;
  EXPECT_EQ(freqs(older), freqs(newer));
  EXPECT_NE(freqs(older), freqs(testing::tiny_llama()));
  newer.key("rope.scale_linear") = 2.0;  // the newer key wins
  EXPECT_EQ(freqs(older), freqs(newer));
  for (const double none : {0.0, 1.0}) {
    older.key("rope.scale_linear") = none;
    EXPECT_EQ(freqs(older), freqs(testing::tiny_llama()));
  }
  older.key("rope.scale_linear") = -2.0;
  EXPECT_NE(refusal(older).find("rope.scale_linear"), std::string::npos);
}

// A value for each block, of every key that one value is held of: the same for all is the same as
// one, others are refused by name.
TEST(Keys, ArraysOfEqualValuesAreOneValueAndOthersAreRefused) {
  for (const auto make : kFamilies) {
    const Recipe plain = make({});
    const std::string arch = plain.arch + ".";
    for (const auto& [full, value] : plain.keys) {
      const std::string name = full.starts_with(arch) ? full.substr(arch.size()) : "";
      if (name.empty() || name == "block_count" || name == "feed_forward_length" ||
          name == "expert_used_count" || name == "nextn_predict_layers") {
        continue;
      }
      std::vector<Value> same_other;
      if (const auto* number = std::get_if<int64_t>(&value)) {
        const auto n = static_cast<std::int32_t>(*number);
        same_other = {std::vector<std::int32_t>{n, n}, std::vector<std::int32_t>{n, n + 1}};
      } else if (const auto* real = std::get_if<double>(&value)) {
        const auto x = static_cast<float>(*real);
        same_other = {std::vector<float>{x, x}, std::vector<float>{x, 2 * x}};
      } else if (const auto* flag = std::get_if<bool>(&value)) {
        same_other = {std::vector<bool>{*flag, *flag}, std::vector<bool>{*flag, !*flag}};
      } else {
        continue;
      }
      Recipe recipe = plain;
      set(recipe, name, same_other[0]);
      EXPECT_EQ(refusal(recipe), "") << full;
      set(recipe, name, same_other[1]);
      const std::string text = refusal(recipe);
      EXPECT_NE(text.find(full), std::string::npos) << full << ": " << text;
      if (name != "attention.sliding_window_pattern") {
        EXPECT_NE(text.find("for layer 1"), std::string::npos) << full << ": " << text;
      }
    }
  }
}

TEST(Keys, LayersMayDifferInActiveExpertsAndInWidth) {
  Recipe recipe = testing::tiny_qwen3moe();
  recipe.key("expert_used_count") = std::vector<std::int32_t>{1, 4};
  const Config config = understand(testing::build(recipe)).config;
  EXPECT_EQ(config.layers[0].n_active, 1);
  EXPECT_EQ(config.layers[1].n_active, 4);
  EXPECT_EQ(config.moe.n_active, 4);
  recipe.key("expert_used_count") = std::vector<std::int32_t>{1, 6};
  EXPECT_NE(refusal(recipe).find("6 for layer 1"), std::string::npos) << refusal(recipe);
  recipe.key("expert_used_count") = std::vector<std::int32_t>{0, 2};
  EXPECT_NE(refusal(recipe).find("0 for layer 0"), std::string::npos) << refusal(recipe);

  // Dense layers do not count.
  Recipe leading = testing::tiny_deepseek2();
  leading.key("expert_used_count") = std::vector<std::int32_t>{0, 3};
  leading.key("feed_forward_length") = std::vector<std::int32_t>{37, 0};
  const Config mixed = understand(testing::build(leading)).config;
  EXPECT_EQ(mixed.layers[0].n_active, 0);
  EXPECT_EQ(mixed.layers[1].n_active, 3);

  Recipe dense = testing::tiny_llama();
  dense.key("feed_forward_length") = std::vector<std::int32_t>{37, 50};
  for (const char* name : {"ffn_gate", "ffn_up"}) {
    dense.tensors[std::string("blk.1.") + name + ".weight"].ne = {42, 50};
  }
  dense.tensors["blk.1.ffn_down.weight"].ne = {50, 42};
  const Config widths = understand(testing::build(dense)).config;
  EXPECT_EQ(widths.layers[0].d_ff, 37);
  EXPECT_EQ(widths.layers[1].d_ff, 50);
  EXPECT_EQ(widths.d_ff, 50);
}

// Each layer as in a model in which all layers are like it: that model's other layer is given the
// same rows by making it add nothing.
TEST(Keys, LayersThatDifferComputeWhatTheyWouldAmongTheirLike) {
  const auto silence = [](Recipe& recipe, int layer) {
    const std::string blk = "blk." + std::to_string(layer) + ".";
    for (const char* name : {"attn_output.weight", "ffn_down_exps.weight"}) {
      testing::TinyTensor& tensor = recipe.tensors[blk + name];
      std::uint64_t n = 1;
      for (const std::uint64_t size : tensor.ne) n *= size;
      tensor.values.assign(n, 0.0F);
    }
  };
  const auto run = [](const Recipe& recipe) {
    const auto runner = testing::load(recipe, testing::small_options());
    return testing::all_logits(*runner, testing::some_tokens(40, 67, 3), 40);
  };
  for (const int silent : {0, 1}) {
    Recipe mixed = testing::tiny_qwen3moe();
    silence(mixed, silent);
    Recipe alike = mixed;
    const std::vector<std::int32_t> counts{1, 4};
    mixed.key("expert_used_count") = counts;
    alike.key("expert_used_count") = int64_t{counts[static_cast<std::size_t>(1 - silent)]};
    EXPECT_EQ(run(mixed), run(alike));
    Recipe other = alike;
    other.key("expert_used_count") = int64_t{counts[static_cast<std::size_t>(silent)]};
    EXPECT_NE(run(mixed), run(other));
  }
}

TEST(Keys, NarrowerLayersComputeAsIfTheRestWereZeros) {
  Recipe narrow = testing::tiny_llama();
  Recipe wide = testing::tiny_llama();
  narrow.key("feed_forward_length") = std::vector<std::int32_t>{37, 11};
  for (const char* name : {"blk.1.ffn_gate.weight", "blk.1.ffn_up.weight"}) {
    std::vector<float> values = testing::values_of(name, wide.tensors[name]);  // rows of 42
    wide.tensors[name].values = values;
    std::fill(wide.tensors[name].values.begin() + 11 * 42, wide.tensors[name].values.end(), 0.0F);
    values.resize(11 * 42);
    narrow.tensors[name].ne = {42, 11};
    narrow.tensors[name].values = values;
  }
  const char* down = "blk.1.ffn_down.weight";
  const std::vector<float> values = testing::values_of(down, wide.tensors[down]);  // rows of 37
  wide.tensors[down].values = values;
  narrow.tensors[down].ne = {11, 42};
  for (std::size_t row = 0; row < 42; ++row) {
    const auto begin = values.begin() + static_cast<std::ptrdiff_t>(row * 37);
    narrow.tensors[down].values.insert(narrow.tensors[down].values.end(), begin, begin + 11);
  }
  const auto run = [](const Recipe& recipe) {
    const auto runner = testing::load(recipe, testing::small_options());
    return testing::all_logits(*runner, testing::some_tokens(40, 67, 3), 40);
  };
  const std::vector<float> got = run(narrow);
  const std::vector<float> want = run(wide);
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 1e-4F) << i;
}

TEST(Keys, FilesThatAreNotModelsAreNamed) {
  struct Kind {
    const char* what;
    std::function<void(Recipe&)> make;
  };
  const auto text = [](Recipe& r, const char* key, const char* value) {
    r.keys[key] = std::string(value);
  };
  const Kind kinds[] = {
      {"LoRA adapter", [&](Recipe& r) { text(r, "general.type", "adapter"); }},
      {"LoRA adapter", [&](Recipe& r) { r.keys["adapter.lora.alpha"] = 16.0; }},
      {"LoRA adapter",
       [&](Recipe& r) {
         r.tensors.clear();
         r.tensors["blk.0.attn_q.weight.lora_a"].ne = {42, 4};
       }},
      {"mmproj", [&](Recipe& r) { text(r, "general.type", "mmproj"); }},
      {"mmproj", [&](Recipe& r) { text(r, "general.architecture", "clip"); }},
      {"importance matrix", [&](Recipe& r) { text(r, "general.type", "imatrix"); }},
      {"importance matrix",
       [&](Recipe& r) {
         r.keys.erase("general.architecture");
         r.keys["imatrix.chunk_count"] = int64_t{7};
       }},
      {"control vector", [&](Recipe& r) { text(r, "general.architecture", "controlvector"); }},
      {"vocabulary without weights",
       [&](Recipe& r) {
         text(r, "tokenizer.ggml.model", "gpt2");
         r.tensors.clear();
       }},
      {"metadata without weights", [&](Recipe& r) { r.tensors.clear(); }},
  };
  for (const Kind& kind : kinds) {
    Recipe recipe = testing::tiny_llama();
    kind.make(recipe);
    const std::string message = refusal(recipe);
    EXPECT_NE(message.find(kind.what), std::string::npos) << message;
    EXPECT_NE(message.find("tiny.gguf: it is "), std::string::npos) << message;
    EXPECT_NE(message.find(", not a model: "), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos);
  }
}

}  // namespace
}  // namespace moesaic::model
