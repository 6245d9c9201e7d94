// Files with a tensor for each expert run as those with one tensor a layer: the same bytes come
// out.
#include "model/file/merged_experts.h"

#include <gtest/gtest.h>

#include "base/errors.h"
#include "model/arch/model_file.h"
#include "model/tiny_model.h"

namespace moesaic::model {
namespace {

using testing::Recipe;
using testing::TinyTensor;

constexpr const char* kMatrices[] = {"ffn_gate", "ffn_up", "ffn_down"};

// The recipe as the first Mixtral files were written. Tensors keep their values.
Recipe split(Recipe recipe) {
  for (auto it = recipe.tensors.begin(); it != recipe.tensors.end();) {
    const std::string name = it->first;
    const std::size_t end = name.find("_exps.weight");
    if (end == std::string::npos) {
      ++it;
      continue;
    }
    const TinyTensor whole = it->second;
    const std::vector<float> values = testing::values_of(name, whole);
    it = recipe.tensors.erase(it);
    const std::uint64_t n_experts = whole.ne.at(2);
    const auto n = static_cast<std::ptrdiff_t>(values.size() / n_experts);
    for (std::uint64_t e = 0; e < n_experts; ++e) {
      const auto begin = values.begin() + static_cast<std::ptrdiff_t>(e) * n;
      recipe.tensors[name.substr(0, end) + "." + std::to_string(e) + ".weight"] = {
          .ne = {whole.ne[0], whole.ne[1]}, .type = whole.type, .values = {begin, begin + n}};
    }
  }
  return recipe;
}

std::string refusal(const Recipe& recipe) {
  try {
    understand(with_merged_experts(testing::build(recipe)));
  } catch (const FormatError& error) {
    return error.what();
  }
  return "";
}

class Experts : public ::testing::TestWithParam<quant::Qtype> {};

TEST_P(Experts, OfTheirOwnGiveTheSameBytes) {
  const Recipe whole = testing::tiny_qwen3moe(
      {.matrices = GetParam(), .unit = GetParam() == quant::Qtype::kF32 ? 1 : 32});
  const Recipe parts = split(whole);
  ASSERT_GT(parts.tensors.size(), whole.tensors.size());
  const auto options = testing::small_options();
  const auto a = testing::load(whole, options);
  const auto b = testing::load(parts, options);
  const auto tokens = testing::some_tokens(20, 60, 3);
  EXPECT_EQ(testing::all_logits(*a, tokens, 20), testing::all_logits(*b, tokens, 20));
  EXPECT_EQ(a->memory().weights_bytes, b->memory().weights_bytes);
}

INSTANTIATE_TEST_SUITE_P(Types, Experts,
                         ::testing::Values(quant::Qtype::kF32, quant::Qtype::kQ4_0));

TEST(MergedExperts, AreFoundByTheirNewNameOnly) {
  const auto file = with_merged_experts(testing::build(split(testing::tiny_qwen3moe())));
  EXPECT_EQ(file->find_tensor("blk.0.ffn_gate.0.weight"), nullptr);
  EXPECT_EQ(file->find_tensor("blk.0.nothing"), nullptr);
  const gguf::TensorInfo* up = file->find_tensor("blk.1.ffn_up_exps.weight");
  ASSERT_NE(up, nullptr);
  EXPECT_EQ(up->ne.at(2), 5U);
  EXPECT_EQ(file->bytes(*up).size(), up->n_bytes);
  EXPECT_EQ(file->bytes(*up).data(), file->bytes(*up).data());  // copied once
  std::size_t n_merged = 0;
  for (const gguf::TensorInfo& tensor : file->tensors()) {
    EXPECT_EQ(file->find_tensor(tensor.name)->n_bytes, tensor.n_bytes);
    for (const char* matrix : kMatrices) {
      EXPECT_EQ(tensor.name.find(std::string(matrix) + "."), std::string::npos) << tensor.name;
      n_merged += tensor.name.find(std::string(matrix) + "_exps.") != std::string::npos ? 1 : 0;
    }
  }
  EXPECT_EQ(n_merged, 6U);
}

TEST(MergedExperts, AFileWithoutThemIsTheSameFile) {
  const auto file = testing::build(testing::tiny_qwen3moe());
  EXPECT_EQ(with_merged_experts(file), file);
}

TEST(MergedExperts, WhatDoesNotFitTogetherIsNamed) {
  const Recipe good = split(testing::tiny_qwen3moe());
  ASSERT_EQ(refusal(good), "");

  Recipe gap = good;
  gap.tensors.erase("blk.1.ffn_up.2.weight");
  EXPECT_NE(refusal(gap).find("blk.1.ffn_up"), std::string::npos) << refusal(gap);

  Recipe last = good;
  last.tensors.erase("blk.1.ffn_up.4.weight");
  EXPECT_NE(refusal(last).find("blk.1.ffn_up_exps.weight: got shape"), std::string::npos)
      << refusal(last);

  Recipe first = good;
  first.tensors.erase("blk.1.ffn_up.0.weight");
  EXPECT_NE(refusal(first).find("blk.1.ffn_up"), std::string::npos) << refusal(first);

  Recipe type = good;
  type.tensors["blk.0.ffn_down.3.weight"].type = quant::Qtype::kF16;
  EXPECT_NE(refusal(type).find("blk.0.ffn_down.3.weight: its type or shape"), std::string::npos)
      << refusal(type);

  Recipe both = good;
  both.tensors["blk.0.ffn_gate_exps.weight"] =
      testing::tiny_qwen3moe().tensors["blk.0.ffn_gate_exps.weight"];
  EXPECT_NE(refusal(both).find("blk.0.ffn_gate.0.weight"), std::string::npos) << refusal(both);
}

// Without the merging view a file is refused by the name that is missing: a cluster's worker, which
// reads ranges of the file, relies on it.
TEST(MergedExperts, WithoutTheViewTheFileIsRefused) {
  const auto file = testing::build(split(testing::tiny_qwen3moe()));
  EXPECT_THROW(understand(file), FormatError);
}

}  // namespace
}  // namespace moesaic::model
