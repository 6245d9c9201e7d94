// Headers with flipped bytes: an error that names something, or a model that runs; never a crash, a
// hang, or an allocation from a claimed size. Sanitizers make this sharp.
#include <gtest/gtest.h>

#include <chrono>
#include <random>

#include "base/errors.h"
#include "model/tiny_model.h"

namespace moesaic::model {
namespace {

using Recipes = testing::Recipe (*)(const testing::TinyOptions&);

class Hostile : public ::testing::TestWithParam<Recipes> {};
INSTANTIATE_TEST_SUITE_P(Model, Hostile,
                         ::testing::Values(testing::tiny_llama, testing::tiny_deepseek2,
                                           testing::tiny_deepseek2_kv_b, testing::tiny_gpt_oss,
                                           testing::tiny_glm4moe));

// Loads and runs two tokens; whether that went without an error of ours.
bool runs(std::vector<std::uint8_t> bytes) {
  LoadOptions options = testing::small_options();
  options.max_step_rows = 4;
  try {
    const auto runner = LocalRunner::load(testing::file_of(std::move(bytes)), options);
    testing::run_one(*runner, testing::rows(runner->open(), 0, {0, 0}, Logits::kLast),
                     {"blocks.0.resid_post"});
    return true;
  } catch (const Error& error) {
    EXPECT_STRNE(error.what(), "");
    EXPECT_EQ(dynamic_cast<const InternalError*>(&error), nullptr) << error.what();
    return false;
  }
}

TEST_P(Hostile, FlippedHeadersAreRefusedOrRun) {
  const std::vector<std::uint8_t> good = testing::bytes_of(GetParam()({}));
  ASSERT_TRUE(runs(good));
  // Where the tensors' bytes begin does not matter: what is changed lies in the first part of them
  // at most.
  const std::size_t header = std::min<std::size_t>(good.size(), 4096);
  std::mt19937 random(static_cast<std::uint32_t>(good.size()));
  int n_run = 0;
  constexpr int kMutations = 500;
  for (int i = 0; i < kMutations; ++i) {
    std::vector<std::uint8_t> bad = good;
    for (unsigned k = 0; k <= random() % 3; ++k) {
      static constexpr std::uint8_t kNasty[] = {0, 1, 2, 0x7F, 0x80, 0xFF};
      bad[random() % header] =
          random() % 2 == 0 ? kNasty[random() % 6] : static_cast<std::uint8_t>(random());
    }
    const auto begin = std::chrono::steady_clock::now();
    n_run += runs(std::move(bad)) ? 1 : 0;
    const auto took = std::chrono::steady_clock::now() - begin;
    EXPECT_LT(took, std::chrono::seconds(5)) << "mutation " << i;
  }
  EXPECT_GT(n_run, 0) << "every mutation was refused: nothing behind the parser was tried";
  EXPECT_LT(n_run, kMutations) << "no mutation was refused";
}

}  // namespace
}  // namespace moesaic::model
