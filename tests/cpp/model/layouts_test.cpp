// The same numbers in different tensors: every layout that files use for them gives the same bytes
// of logits.
#include <gtest/gtest.h>

#include <functional>

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

}  // namespace
}  // namespace moesaic::model
