// Files that are understood, and files that are refused with file, place, got and need.
#include <gtest/gtest.h>
#include <time.h>

#include <chrono>
#include <cmath>
#include <functional>

#include "base/errors.h"
#include "model/arch/model_file.h"
#include "model/arch/registry.h"
#include "model/tiny_model.h"

namespace moesaic::model {
namespace {

using testing::Recipe;

// Of this thread: what a busy machine does beside it does not count.
std::chrono::nanoseconds processor_time() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

// The message of the FormatError that a recipe gives, made in 100 ms; "" when it is understood.
std::string refusal(const Recipe& recipe) {
  const auto file = testing::build(recipe);
  const auto begin = processor_time();
  std::string message;
  try {
    understand(file);
  } catch (const FormatError& error) {
    message = error.what();
  }
  EXPECT_LT(processor_time() - begin, std::chrono::milliseconds(100));
  return message;
}

struct Broken {
  const char* what;
  Recipe (*recipe)(const testing::TinyOptions&);
  std::function<void(Recipe&)> spoil;
  std::vector<std::string> needles;  // all stand in the message
};

void PrintTo(const Broken& broken, std::ostream* out) { *out << broken.what; }

class Refused : public ::testing::TestWithParam<Broken> {};

TEST_P(Refused, NamesFilePlaceGotAndNeed) {
  const Broken& broken = GetParam();
  Recipe recipe = broken.recipe({});
  ASSERT_EQ(refusal(recipe), "");
  broken.spoil(recipe);
  const std::string message = refusal(recipe);
  ASSERT_NE(message, "") << "understood";
  for (const std::string& needle : broken.needles) {
    EXPECT_NE(message.find(needle), std::string::npos) << needle << "\nin: " << message;
  }
  EXPECT_NE(message.find("tiny.gguf"), std::string::npos) << message;
}

using std::int64_t;

const Broken kBroken[] = {
    {"unknown architecture",
     testing::tiny_llama,
     [](Recipe& r) { r.keys["general.architecture"] = std::string("hydra"); },
     {"general.architecture", "'hydra'", "deepseek2, glm4moe, gpt-oss, llama, qwen2, qwen3"}},
    {"no architecture",
     testing::tiny_llama,
     [](Recipe& r) { r.keys.erase("general.architecture"); },
     {"general.architecture", "missing"}},
    {"no heads",
     testing::tiny_llama,
     [](Recipe& r) { r.key("attention.head_count") = int64_t{0}; },
     {"llama.attention.head_count", "got 0"}},
    {"heads not a multiple of KV heads",
     testing::tiny_llama,
     [](Recipe& r) { r.key("attention.head_count_kv") = int64_t{2}; },
     {"llama.attention.head_count_kv", "got 2", "3"}},
    {"2^31 layers",
     testing::tiny_llama,
     [](Recipe& r) { r.key("block_count") = int64_t{1} << 31; },
     {"llama.block_count", "2147483648"}},
    {"2^31 - 1 layers",
     testing::tiny_llama,
     [](Recipe& r) { r.key("block_count") = (int64_t{1} << 31) - 1; },
     {"llama.block_count", "tensors in the file"}},
    {"one layer more than there is",
     testing::tiny_llama,
     [](Recipe& r) { r.key("block_count") = int64_t{3}; },
     {"blk.2.attn_norm.weight", "missing"}},
    {"no layers",
     testing::tiny_llama,
     [](Recipe& r) { r.key("block_count") = int64_t{0}; },
     {"llama.block_count", "got 0"}},
    {"width is a string",
     testing::tiny_llama,
     [](Recipe& r) { r.key("embedding_length") = std::string("42"); },
     {"llama.embedding_length"}},
    {"width contradicts tensors",
     testing::tiny_llama,
     [](Recipe& r) { r.key("embedding_length") = int64_t{43}; },
     {"token_embd.weight", "(42, 67)", "(43, 67)"}},
    {"head size contradicts tensors",
     testing::tiny_llama,
     [](Recipe& r) { r.key("attention.key_length") = int64_t{16}; },
     {"blk.0.attn_q.weight", "(42, 42)", "(42, 48)"}},
    {"rope above head size",
     testing::tiny_llama,
     [](Recipe& r) { r.key("rope.dimension_count") = int64_t{16}; },
     {"llama.rope.dimension_count", "got 16", "14"}},
    {"odd rope",
     testing::tiny_llama,
     [](Recipe& r) { r.key("rope.dimension_count") = int64_t{7}; },
     {"llama.rope.dimension_count", "even"}},
    {"huge rope",
     testing::tiny_llama,
     [](Recipe& r) {
       r.key("rope.dimension_count") = int64_t{2147483646};
       r.key("attention.key_length") = int64_t{2147483646};
     },
     {"llama.rope.dimension_count", "65536"}},
    {"rope base 0",
     testing::tiny_llama,
     [](Recipe& r) { r.key("rope.freq_base") = 0.0; },
     {"llama.rope.freq_base", "got 0"}},
    {"rope base 1",
     testing::tiny_llama,
     [](Recipe& r) { r.key("rope.freq_base") = 1.0; },
     {"llama.rope.freq_base", "above 1"}},
    {"unknown rope scaling",
     testing::tiny_llama,
     [](Recipe& r) { r.key("rope.scaling.type") = std::string("spiral"); },
     {"llama.rope.scaling.type", "'spiral'", "'yarn'"}},
    {"yarn without factor",
     testing::tiny_llama,
     [](Recipe& r) { r.key("rope.scaling.type") = std::string("yarn"); },
     {"llama.rope.scaling.factor"}},
    {"eps NaN",
     testing::tiny_llama,
     [](Recipe& r) { r.key("attention.layer_norm_rms_epsilon") = std::nan(""); },
     {"llama.attention.layer_norm_rms_epsilon", "nan"}},
    {"eps infinite",
     testing::tiny_llama,
     [](Recipe& r) { r.key("attention.layer_norm_rms_epsilon") = HUGE_VAL; },
     {"llama.attention.layer_norm_rms_epsilon", "inf"}},
    {"eps 0",
     testing::tiny_llama,
     [](Recipe& r) { r.key("attention.layer_norm_rms_epsilon") = 0.0; },
     {"llama.attention.layer_norm_rms_epsilon", "got 0"}},
    {"eps missing",
     testing::tiny_llama,
     [](Recipe& r) { r.drop_key("attention.layer_norm_rms_epsilon"); },
     {"llama.attention.layer_norm_rms_epsilon"}},
    {"missing tensor",
     testing::tiny_llama,
     [](Recipe& r) { r.tensors.erase("blk.1.ffn_up.weight"); },
     {"blk.1.ffn_up.weight", "missing", "(42, 37)"}},
    {"missing embedding",
     testing::tiny_llama,
     [](Recipe& r) { r.tensors.erase("token_embd.weight"); },
     {"token_embd.weight", "missing"}},
    {"transposed tensor",
     testing::tiny_llama,
     [](Recipe& r) {
       r.tensors["blk.0.ffn_down.weight"].ne = {42, 37};
     },
     {"blk.0.ffn_down.weight", "(42, 37)", "(37, 42)"}},
    {"integer weight",
     testing::tiny_llama,
     [](Recipe& r) { r.tensors["blk.0.attn_k.weight"].type = quant::Qtype::kI32; },
     {"blk.0.attn_k.weight", "I32"}},
    {"F64 norm",
     testing::tiny_llama,
     [](Recipe& r) { r.tensors["blk.0.attn_norm.weight"].type = quant::Qtype::kF64; },
     {"blk.0.attn_norm.weight", "F64", "F32"}},
    {"a tensor nobody knows",
     testing::tiny_llama,
     [](Recipe& r) {
       r.tensors["blk.1.attn_gate.weight"].ne = {42, 42};
     },
     {"blk.1.attn_gate.weight", "no such tensor"}},
    {"one layer less than there is",
     testing::tiny_llama,
     [](Recipe& r) { r.key("block_count") = int64_t{1}; },
     {"llama.block_count", "got 1", "blk.1."}},
    {"an output bias",
     testing::tiny_llama,
     [](Recipe& r) { r.tensors["output.bias"].ne = {67}; },
     {"output.bias", "no such tensor"}},
    {"vocabulary contradicts embedding",
     testing::tiny_llama,
     [](Recipe& r) { r.key("vocab_size") = int64_t{68}; },
     {"llama.vocab_size", "got 68", "67"}},
    {"rope_freqs of a wrong length",
     testing::tiny_llama,
     [](Recipe& r) { r.tensors["rope_freqs.weight"].ne = {6}; },
     {"rope_freqs.weight", "6 elements", "7"}},
    {"more used experts than experts",
     testing::tiny_qwen3moe,
     [](Recipe& r) { r.key("expert_used_count") = int64_t{6}; },
     {"qwen3moe.expert_used_count", "got 6", "5"}},
    {"no experts",
     testing::tiny_qwen3moe,
     [](Recipe& r) { r.key("expert_count") = int64_t{0}; },
     {"qwen3moe.expert_count", "got 0"}},
    {"experts contradict tensors",
     testing::tiny_qwen3moe,
     [](Recipe& r) { r.key("expert_count") = int64_t{7}; },
     {"blk.0.ffn_gate_inp.weight", "(42, 5)", "(42, 7)"}},
    {"unknown gating",
     testing::tiny_qwen3moe,
     [](Recipe& r) { r.key("expert_gating_func") = int64_t{4}; },
     {"qwen3moe.expert_gating_func", "got 4"}},
    {"groups do not divide",
     testing::tiny_deepseek2,
     [](Recipe& r) { r.key("expert_group_count") = int64_t{2}; },
     {"deepseek2.expert_group_count", "got 2", "5"}},
    {"more groups used than groups",
     testing::tiny_deepseek2,
     [](Recipe& r) {
       r.key("expert_group_count") = int64_t{5};
       r.key("expert_group_used_count") = int64_t{6};
     },
     {"deepseek2.expert_group_used_count", "got 6"}},
    {"more experts used than their groups hold",
     testing::tiny_deepseek2,
     [](Recipe& r) {
       r.key("expert_group_count") = int64_t{5};
       r.key("expert_group_used_count") = int64_t{1};
     },
     {"deepseek2.expert_used_count", "got 2", "1"}},
    {"rope above head size",
     testing::tiny_deepseek2,
     [](Recipe& r) { r.key("rope.dimension_count") = int64_t{18}; },
     {"deepseek2.attention.key_length_mla", "got 18"}},
    {"latent rank contradicts tensors",
     testing::tiny_deepseek2,
     [](Recipe& r) { r.key("attention.kv_lora_rank") = int64_t{19}; },
     {"blk.0.attn_kv_a_mqa.weight", "(42, 26)", "(42, 27)"}},
    {"neither layout of the latent",
     testing::tiny_deepseek2,
     [](Recipe& r) { r.tensors.erase("blk.1.attn_v_b.weight"); },
     {"blk.1.attn_kv_b.weight", "missing"}},
    {"q-LoRA without its key",
     testing::tiny_deepseek2,
     [](Recipe& r) { r.drop_key("attention.q_lora_rank"); },
     {"blk.0.attn_q.weight", "missing"}},
    {"as many nextn layers as layers",
     testing::tiny_glm4moe,
     [](Recipe& r) { r.key("nextn_predict_layers") = int64_t{2}; },
     {"glm4moe.nextn_predict_layers", "got 2"}},
    {"no window",
     testing::tiny_gpt_oss,
     [](Recipe& r) { r.drop_key("attention.sliding_window"); },
     {"gpt-oss.attention.sliding_window"}},
    {"layers with different KV heads",
     testing::tiny_llama,
     [](Recipe& r) {
       r.key("attention.head_count_kv") = std::vector<std::int32_t>{1, 3};
     },
     {"llama.attention.head_count_kv", "1 for layer 0 and 3 for layer 1", "same for all layers"}},
    {"layers with different widths",
     testing::tiny_llama,
     [](Recipe& r) {
       r.key("feed_forward_length") = std::vector<std::int32_t>{37, 0};
     },
     {"llama.feed_forward_length", "width of the dense layers"}},
    {"a layer whose width contradicts its tensors",
     testing::tiny_llama,
     [](Recipe& r) {
       r.key("feed_forward_length") = std::vector<std::int32_t>{37, 36};
     },
     {"blk.1.ffn_gate.weight", "(42, 36)", "(42, 37)"}},
    {"heads for fewer layers than there are",
     testing::tiny_llama,
     [](Recipe& r) { r.key("attention.head_count") = std::vector<std::int32_t>{3}; },
     {"llama.attention.head_count", "an array of 1", "block_count = 2"}},
    {"heads for no layer",
     testing::tiny_llama,
     [](Recipe& r) { r.key("attention.head_count") = std::vector<std::int32_t>{}; },
     {"llama.attention.head_count", "an array of 0", "block_count = 2"}},
    {"no heads in any layer",
     testing::tiny_llama,
     [](Recipe& r) {
       r.key("attention.head_count") = std::vector<std::int32_t>{0, 0};
     },
     {"llama.attention.head_count", "got 0"}},
    {"negative heads in a layer",
     testing::tiny_llama,
     [](Recipe& r) {
       r.key("attention.head_count") = std::vector<std::int32_t>{3, -3};
     },
     {"llama.attention.head_count", "-3"}},
    {"a pattern that is neither yes nor no",
     testing::tiny_gpt_oss,
     [](Recipe& r) {
       r.key("attention.sliding_window_pattern") = std::vector<std::int32_t>{1, 2};
     },
     {"gpt-oss.attention.sliding_window_pattern", "got 2", "true or false"}},
    {"no sinks",
     testing::tiny_gpt_oss,
     [](Recipe& r) { r.tensors.erase("blk.0.attn_sinks.weight"); },
     {"blk.0.attn_sinks.weight", "missing"}},
};

INSTANTIATE_TEST_SUITE_P(Model, Refused, ::testing::ValuesIn(kBroken));

TEST(Config, EveryFamilyIsInTheRegistryOnce) {
  std::vector<std::string> names;
  for (const arch::Family& family : arch::families()) names.emplace_back(family.name);
  EXPECT_EQ(names, (std::vector<std::string>{"deepseek2", "glm4moe", "gpt-oss", "llama", "qwen2",
                                             "qwen3", "qwen3moe"}));
}

// Kimi K2.5's numbers: FACTS.md section 4 gives ramp 8..20 and softmax scale 0.1446796.
TEST(Config, KimiYarnHasTheKnownRampAndSoftmaxScale) {
  Recipe r = testing::tiny_deepseek2();
  r.key("attention.kv_lora_rank") = int64_t{18};
  r.key("rope.freq_base") = 50000.0;
  r.key("rope.scaling.type") = std::string("yarn");
  r.key("rope.scaling.factor") = 64.0;
  r.key("rope.scaling.original_context_length") = int64_t{4096};
  r.key("rope.scaling.yarn_log_multiplier") = 0.1;
  // Heads of the true size: nope 128, rope 64, and a latent row to match.
  r.key("rope.dimension_count") = int64_t{64};
  r.key("attention.key_length_mla") = int64_t{192};
  for (int i = 0; i < 2; ++i) {
    const std::string blk = "blk." + std::to_string(i) + ".";
    r.tensors[blk + "attn_q_b.weight"].ne = {21, 3 * 192};
    r.tensors[blk + "attn_kv_a_mqa.weight"].ne = {42, 18 + 64};
    r.tensors[blk + "attn_k_b.weight"].ne = {128, 18, 3};
  }
  const Config config = understand(testing::build(r)).config;
  EXPECT_NEAR(config.attention_scale, 0.1446796, 2e-7);
  EXPECT_EQ(config.rope.magnitude, 1.0);
  ASSERT_EQ(config.rope.inverse_freqs.size(), 32U);
  for (int i = 0; i < 32; ++i) {
    const double plain = std::pow(50000.0, -2.0 * i / 64.0);
    const double ramp = std::clamp((i - 8.0) / 12.0, 0.0, 1.0);
    const double want = plain * (1.0 - ramp) + plain / 64.0 * ramp;
    EXPECT_NEAR(config.rope.inverse_freqs[static_cast<std::size_t>(i)] / want, 1.0, 1e-12) << i;
  }
}

TEST(Config, FeaturesComeFromKeysAndTensors) {
  const auto understood = [](const Recipe& r) { return understand(testing::build(r)); };

  Recipe tied = testing::tiny_llama();
  tied.tensors.erase("output.weight");
  EXPECT_TRUE(understood(tied).tied_output);
  EXPECT_FALSE(understood(testing::tiny_llama()).tied_output);

  // A deepseek2 file without a gating key: softmax, but sigmoid where the router has a bias.
  Recipe gating = testing::tiny_deepseek2();
  gating.drop_key("expert_gating_func");
  EXPECT_EQ(understood(gating).config.moe.function, backend::RouterFunction::kSigmoid);
  gating.tensors.erase("blk.1.exp_probs_b.bias");
  EXPECT_EQ(understood(gating).config.moe.function, backend::RouterFunction::kSoftmax);
  EXPECT_FALSE(understood(gating).config.moe.group_score_top2);

  // glm4moe: the trailing nextn block is not a layer, whatever it holds.
  Recipe nextn = testing::tiny_glm4moe({.n_layers = 3});
  nextn.key("nextn_predict_layers") = int64_t{1};
  nextn.tensors["blk.2.nextn.eh_proj.weight"].ne = {84, 42};
  EXPECT_EQ(understood(nextn).config.n_layers, 2);
  EXPECT_EQ(understood(nextn).config.rope.n_rot, 6);

  const Config oss = understood(testing::tiny_gpt_oss({.n_layers = 3})).config;
  EXPECT_EQ(oss.layers[0].window, 7);
  EXPECT_EQ(oss.layers[1].window, 0);
  EXPECT_EQ(oss.layers[2].window, 7);

  Recipe pattern = testing::tiny_gpt_oss({.n_layers = 3});
  pattern.key("attention.sliding_window_pattern") = std::vector<bool>{false, true, true};
  const Config by_layer = understood(pattern).config;
  EXPECT_EQ(by_layer.layers[0].window, 0);
  EXPECT_EQ(by_layer.layers[1].window, 7);
  EXPECT_EQ(by_layer.layers[2].window, 7);

  // One value for each layer is the same as one for all.
  Recipe arrays = testing::tiny_llama();
  const Config plain = understood(arrays).config;
  arrays.key("attention.head_count") = std::vector<std::int32_t>(2, 3);
  arrays.key("attention.head_count_kv") = std::vector<std::int32_t>(2, 1);
  arrays.key("feed_forward_length") = std::vector<std::int32_t>(2, 37);
  const Config same = understood(arrays).config;
  EXPECT_EQ(same.n_heads, plain.n_heads);
  EXPECT_EQ(same.n_kv_heads, plain.n_kv_heads);
  EXPECT_EQ(same.d_ff, plain.d_ff);

  // Arrays count nextn blocks too.
  nextn.key("attention.head_count_kv") = std::vector<std::int32_t>(3, 1);
  EXPECT_EQ(understood(nextn).config.n_kv_heads, 1);

  const Config mla = understood(testing::tiny_deepseek2()).config;
  EXPECT_EQ(mla.layers[0].ffn, FfnKind::kDense);
  EXPECT_EQ(mla.layers[1].ffn, FfnKind::kMoe);
  EXPECT_EQ(mla.kv_k_width(), 26);
  EXPECT_EQ(mla.kv_v_width(), 0);
}

}  // namespace
}  // namespace moesaic::model
