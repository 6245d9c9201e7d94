// The same numbers in different tensors: every layout that files use for them gives the same bytes
// of logits.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>

#include "base/errors.h"
#include "model/tiny_model.h"

namespace moesaic::model {
namespace {

using testing::Recipe;
using testing::TinyTensor;

std::vector<float> logits_of(const Recipe& recipe) {
  LoadOptions options = testing::small_options();
  options.deterministic = true;
  const auto runner = testing::load(recipe, options);
  return testing::all_logits(*runner, testing::some_tokens(23, runner->config().vocab, 1), 23);
}

std::vector<float> values(const Recipe& recipe, const std::string& name) {
  return testing::values_of(name, recipe.tensors.at(name));
}

// attn_kv_b made of attn_k_b and attn_v_b: per head, the rows of k_b transposed, then those of v_b.
TinyTensor kv_b_of(const Recipe& r, const std::string& blk) {
  constexpr std::size_t kHeads = 3;
  constexpr std::size_t kLora = 18;
  constexpr std::size_t kNope = 10;
  constexpr std::size_t kV = 13;
  const auto k_b = values(r, blk + "attn_k_b.weight");  // (head, lora, nope)
  const auto v_b = values(r, blk + "attn_v_b.weight");  // (head, v, lora)
  TinyTensor out{{kLora, kHeads * (kNope + kV)}, quant::Qtype::kF32, {}};
  for (std::size_t h = 0; h < kHeads; ++h) {
    for (std::size_t n = 0; n < kNope; ++n) {
      for (std::size_t c = 0; c < kLora; ++c) {
        out.values.push_back(k_b[(h * kLora + c) * kNope + n]);
      }
    }
    out.values.insert(out.values.end(), v_b.begin() + static_cast<std::ptrdiff_t>(h * kV * kLora),
                      v_b.begin() + static_cast<std::ptrdiff_t>((h + 1) * kV * kLora));
  }
  return out;
}

TEST(Layouts, OlderKvBGivesTheSameBytes) {
  Recipe r = testing::tiny_deepseek2();
  const auto want = logits_of(r);
  for (const std::string blk : {"blk.0.", "blk.1."}) {
    r.tensors[blk + "attn_kv_b.weight"] = kv_b_of(r, blk);
  }
  EXPECT_EQ(logits_of(r), want) << "a file with both layouts";
  for (const std::string blk : {"blk.0.", "blk.1."}) {
    r.tensors.erase(blk + "attn_k_b.weight");
    r.tensors.erase(blk + "attn_v_b.weight");
  }
  r.key("attention.head_count_kv") = std::int64_t{3};
  r.drop_key("attention.key_length_mla");
  r.drop_key("attention.value_length_mla");
  r.key("attention.key_length") = std::int64_t{18};
  r.key("attention.value_length") = std::int64_t{13};
  EXPECT_EQ(logits_of(r), want);
}

TEST(Layouts, HeadsStoredAsOneMatrixGiveTheSameBytes) {
  Recipe r = testing::tiny_deepseek2();
  const auto want = logits_of(r);
  for (const std::string blk : {"blk.0.", "blk.1."}) {
    r.tensors[blk + "attn_k_b.weight"].ne = {10, 18 * 3};
    r.tensors[blk + "attn_v_b.weight"].ne = {18, 13 * 3};
  }
  EXPECT_EQ(logits_of(r), want);
}

TEST(Layouts, FusedGateAndUpGiveTheSameBytes) {
  Recipe r = testing::tiny_qwen3moe();
  const auto want = logits_of(r);
  for (const std::string blk : {"blk.0.", "blk.1."}) {
    const auto gate = values(r, blk + "ffn_gate_exps.weight");
    const auto up = values(r, blk + "ffn_up_exps.weight");
    TinyTensor fused{{42, 22, 5}, quant::Qtype::kF32, {}};
    constexpr std::ptrdiff_t kExpert = 42 * 11;
    for (std::ptrdiff_t e = 0; e < 5; ++e) {
      for (const auto* half : {&gate, &up}) {
        fused.values.insert(fused.values.end(), half->begin() + e * kExpert,
                            half->begin() + (e + 1) * kExpert);
      }
    }
    r.tensors.erase(blk + "ffn_gate_exps.weight");
    r.tensors.erase(blk + "ffn_up_exps.weight");
    r.tensors[blk + "ffn_gate_up_exps.weight"] = fused;
  }
  EXPECT_EQ(logits_of(r), want);
}

TEST(Layouts, TiedOutputIsTheEmbedding) {
  Recipe r = testing::tiny_llama();
  r.tensors["output.weight"].values = values(r, "token_embd.weight");
  const auto want = logits_of(r);
  r.tensors.erase("output.weight");
  EXPECT_EQ(logits_of(r), want);
}

TEST(Layouts, AbsentBiasesAreZero) {
  Recipe r = testing::tiny_llama();
  const auto want = logits_of(r);
  for (const std::string blk : {"blk.0.", "blk.1."}) {
    r.tensors[blk + "attn_q.bias"] = {{42}, quant::Qtype::kF32, std::vector<float>(42, 0.0F)};
    r.tensors[blk + "attn_output.bias"] = {{42}, quant::Qtype::kF32, std::vector<float>(42, 0.0F)};
    r.tensors[blk + "ffn_down.bias"] = {{42}, quant::Qtype::kF32, std::vector<float>(42, 0.0F)};
  }
  EXPECT_EQ(logits_of(r), want);
  r.tensors["blk.1.ffn_down.bias"].values[5] = 1.0F;
  EXPECT_NE(logits_of(r), want);
}

TEST(Layouts, RopeFreqsOfOnesChangeNothingAndOthersDo) {
  Recipe r = testing::tiny_llama();
  const auto want = logits_of(r);
  r.tensors["rope_freqs.weight"] = {{7}, quant::Qtype::kF32, std::vector<float>(7, 1.0F)};
  EXPECT_EQ(logits_of(r), want);
  r.tensors["rope_freqs.weight"].values[2] = 8.0F;
  EXPECT_NE(logits_of(r), want);
  r.tensors["rope_freqs.weight"].values[2] = 0.0F;
  EXPECT_THROW(logits_of(r), FormatError);
}

// A quantised attn_kv_b is re-encoded for the absorbed form; what that costs stays below what the
// type itself does.
TEST(Layouts, QuantisedKvBIsHeldInEightBits) {
  const testing::TinyOptions quantised{.matrices = quant::Qtype::kQ8_0, .unit = 32};
  LoadOptions options = testing::small_options();
  options.kv_type = backend::KvType::kF32;
  const auto free = testing::load(testing::tiny_deepseek2_kv_b(quantised), options);
  options.deterministic = true;
  const auto fixed = testing::load(testing::tiny_deepseek2_kv_b(quantised), options);
  EXPECT_GT(fixed->memory().derived_bytes, 0U);
  const auto tokens = testing::some_tokens(23, free->config().vocab, 1);
  const auto a = testing::all_logits(*free, tokens, 23);   // decompressed: as it lies in the file
  const auto b = testing::all_logits(*fixed, tokens, 23);  // absorbed: re-encoded
  double sum = 0.0;
  double difference = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    sum += static_cast<double>(a[i]) * a[i];
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
  }
  EXPECT_LT(difference / sum, 1e-3) << "relative power of the difference";
}

// Appends the values of several tensors of a recipe.
std::vector<float> joined(const Recipe& r, const std::vector<std::string>& names) {
  std::vector<float> all;
  for (const std::string& name : names) {
    const auto some = values(r, name);
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

// attn_q, attn_k and attn_v of every layer as one attn_qkv, weights and biases.
Recipe with_fused_qkv(Recipe r) {
  for (const std::string blk : {"blk.0.", "blk.1."}) {
    for (const std::string end : {".weight", ".bias"}) {
      const std::vector<std::string> names{blk + "attn_q" + end, blk + "attn_k" + end,
                                           blk + "attn_v" + end};
      if (!r.tensors.contains(names[0])) continue;
      TinyTensor fused = r.tensors.at(names[0]);
      fused.values = joined(r, names);
      fused.ne.back() = r.tensors.at(names[0]).ne.back() + r.tensors.at(names[1]).ne.back() +
                        r.tensors.at(names[2]).ne.back();
      for (const std::string& name : names) r.tensors.erase(name);
      r.tensors[blk + "attn_qkv" + end] = fused;
    }
  }
  return r;
}

TEST(Layouts, FusedQkvGivesTheSameBytes) {
  const testing::TinyOptions blocks{.matrices = quant::Qtype::kQ4_K, .unit = 256};
  for (const Recipe& r : {testing::tiny_llama(), testing::tiny_qwen3moe(), testing::tiny_gpt_oss(),
                          testing::tiny_glm4moe(), testing::tiny_llama(blocks)}) {
    EXPECT_EQ(logits_of(with_fused_qkv(r)), logits_of(r)) << r.arch;
  }
}

TEST(Layouts, FusedQkvMustHoldAllRows) {
  Recipe r = with_fused_qkv(testing::tiny_glm4moe());
  TinyTensor& fused = r.tensors.at("blk.1.attn_qkv.weight");
  fused.ne.back() -= 1;
  fused.values.resize(static_cast<std::size_t>(fused.ne[0] * fused.ne[1]));
  EXPECT_THROW(logits_of(r), FormatError);
}

// Gate and up of every dense layer, shared expert and routed expert in one tensor, with biases.
Recipe with_fused_gate_up(Recipe r) {
  std::map<std::string, TinyTensor> tensors;
  for (const auto& [name, tensor] : r.tensors) {
    const std::size_t at = name.find("ffn_gate");
    const bool is_router = name.find("ffn_gate_inp") != std::string::npos;
    if (at == std::string::npos || is_router) {
      if (name.find("ffn_up") == std::string::npos) tensors[name] = tensor;
      continue;
    }
    std::string up_name = name;
    up_name.replace(at, 8, "ffn_up");
    const auto gate = values(r, name);
    const auto up = values(r, up_name);
    const bool is_bias = name.ends_with(".bias");
    const std::size_t n_experts = name.find("_exps") == std::string::npos ? 1 : tensor.ne.back();
    const std::size_t half = gate.size() / n_experts;
    TinyTensor fused = tensor;
    fused.ne[is_bias ? 0 : 1] *= 2;
    fused.values.clear();
    for (std::size_t e = 0; e < n_experts; ++e) {
      for (const auto* from : {&gate, &up}) {
        const auto begin = from->begin() + static_cast<std::ptrdiff_t>(e * half);
        fused.values.insert(fused.values.end(), begin, begin + static_cast<std::ptrdiff_t>(half));
      }
    }
    std::string fused_name = name;
    fused_name.replace(at, 8, "ffn_gate_up");
    tensors[fused_name] = fused;
  }
  r.tensors = std::move(tensors);
  return r;
}

TEST(Layouts, EveryFusedGateAndUpGivesTheSameBytes) {
  for (const Recipe& r : {testing::tiny_llama(), testing::tiny_gpt_oss(), testing::tiny_glm4moe(),
                          testing::tiny_deepseek2()}) {
    const Recipe fused = with_fused_gate_up(r);
    ASSERT_LT(fused.tensors.size(), r.tensors.size());
    EXPECT_EQ(logits_of(fused), logits_of(r)) << r.arch;
  }
}

// Every matrix as half its values with a scale of 2, per expert where there are experts.
Recipe with_scales(Recipe r, bool per_expert) {
  std::map<std::string, TinyTensor> scales;
  for (auto& [name, tensor] : r.tensors) {
    if (tensor.ne.size() < 2 || !name.ends_with(".weight")) continue;
    tensor.values = values(r, name);
    for (float& value : tensor.values) value /= 2.0F;
    const bool has_experts = name.find("_exps.") != std::string::npos;
    const std::uint64_t n = per_expert && has_experts ? tensor.ne.back() : 1;
    const std::string stem = name.substr(0, name.size() - 7);
    scales[stem + ".scale"] = {
        {n}, quant::Qtype::kF32, std::vector<float>(static_cast<std::size_t>(n), 2.0F)};
    scales[stem + ".input_scale"] = {{1}, quant::Qtype::kF32, {7.0F}};
  }
  r.tensors.merge(scales);
  return r;
}

TEST(Layouts, ScalesMultiplyTheProductsOfAnyMatrix) {
  for (const bool per_expert : {false, true}) {
    for (const Recipe& r :
         {testing::tiny_llama(), testing::tiny_gpt_oss(), testing::tiny_glm4moe(),
          testing::tiny_qwen3moe(), testing::tiny_deepseek2(), testing::tiny_deepseek2_kv_b()}) {
      // Powers of two are exact, so that the bytes are the same.
      EXPECT_EQ(logits_of(with_scales(r, per_expert)), logits_of(r)) << r.arch << per_expert;
    }
  }
}

TEST(Layouts, ScalesReachTheDecompressedFormOfMla) {
  for (const Recipe& r : {testing::tiny_deepseek2(), testing::tiny_deepseek2_kv_b()}) {
    const auto want = testing::load(r, testing::small_options());
    const auto got = testing::load(with_scales(r, true), testing::small_options());
    const auto tokens = testing::some_tokens(40, want->config().vocab, 2);
    EXPECT_EQ(testing::all_logits(*got, tokens, 40), testing::all_logits(*want, tokens, 40));
  }
}

TEST(Layouts, EachExpertHasItsOwnScale) {
  Recipe scaled = testing::tiny_qwen3moe();
  Recipe plain = scaled;
  const std::vector<float> scales{1.0F, 2.0F, 0.5F, 4.0F, 0.25F};
  for (const std::string name : {"ffn_gate", "ffn_up", "ffn_down"}) {
    const std::string stem = "blk.1." + name + "_exps";
    scaled.tensors[stem + ".scale"] = {{5}, quant::Qtype::kF32, scales};
    TinyTensor& tensor = plain.tensors.at(stem + ".weight");
    tensor.values = values(plain, stem + ".weight");
    const std::size_t each = tensor.values.size() / 5;
    for (std::size_t i = 0; i < tensor.values.size(); ++i) tensor.values[i] *= scales[i / each];
  }
  EXPECT_EQ(logits_of(scaled), logits_of(plain));
}

// What loading a recipe with this tensor says.
std::string refusal(Recipe r, const std::string& name, const TinyTensor& tensor) {
  r.tensors[name] = tensor;
  try {
    logits_of(r);
  } catch (const FormatError& error) {
    return error.what();
  }
  return "";
}

TEST(Layouts, ScalesOfAnotherCountOrNotFiniteAreRefused) {
  const Recipe r = testing::tiny_qwen3moe();
  const auto f32 = [](std::vector<std::uint64_t> ne, float value) {
    std::uint64_t n = 1;
    for (const std::uint64_t e : ne) n *= e;
    return TinyTensor{std::move(ne), quant::Qtype::kF32,
                      std::vector<float>(static_cast<std::size_t>(n), value)};
  };
  const std::string up = "blk.1.ffn_up_exps.scale";
  for (const TinyTensor& tensor : {f32({3}, 1.0F), f32({1, 5}, 1.0F), f32({5, 1}, 1.0F)}) {
    EXPECT_NE(refusal(r, up, tensor).find(up), std::string::npos);
    EXPECT_NE(refusal(r, up, tensor).find("one for each of 5 experts"), std::string::npos);
  }
  for (const float value : {INFINITY, -INFINITY, NAN}) {
    EXPECT_NE(refusal(r, up, f32({1}, value)).find("need finite numbers"), std::string::npos);
    EXPECT_NE(refusal(r, up, f32({5}, value)).find("need finite numbers"), std::string::npos);
  }
  EXPECT_EQ(refusal(r, up, f32({5}, 1.0F)), "");
  EXPECT_NE(refusal(r, "blk.0.attn_q.scale", f32({2}, 1.0F)).find("with one value"),
            std::string::npos);
  EXPECT_NE(refusal(r, "blk.1.attn_norm.scale", f32({1}, 2.0F)), "") << "what for is unknown";
}

// A scale belongs to the whole of a fused tensor.
TEST(Layouts, FusedTensorsHaveScalesToo) {
  Recipe scaled = with_fused_gate_up(with_fused_qkv(testing::tiny_glm4moe()));
  const Recipe plain = scaled;
  scaled = with_scales(scaled, true);
  EXPECT_EQ(logits_of(scaled), logits_of(plain));
}

}  // namespace
}  // namespace moesaic::model
