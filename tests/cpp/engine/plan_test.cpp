// Fairness of a step's rows, and the pacer's arithmetic, without an engine.
#include "engine/plan.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

namespace moesaic::engine {
namespace {

using Rows = std::vector<std::int64_t>;

TEST(PlanRows, DecodeFirstThenPromptsShareTheBudget) {
  const std::vector<Candidate> candidates = {{500, false}, {1, true}, {10, false}, {1, true}};
  EXPECT_EQ(plan_rows(candidates, 64, 64), (Rows{52, 1, 10, 1}));
  EXPECT_EQ(plan_rows(candidates, 64, 20), (Rows{10, 1, 10, 1}));
  EXPECT_EQ(plan_rows(candidates, 1, 64), (Rows{0, 1, 0, 0}));
}

TEST(PlanRows, NobodyWhoWaitsForItsCallerGetsARow) {
  const std::vector<Candidate> candidates = {{0, false}, {0, true}, {5, false}};
  EXPECT_EQ(plan_rows(candidates, 64, 64), (Rows{0, 0, 5}));
  EXPECT_EQ(plan_rows({}, 64, 64), Rows{});
}

TEST(PlanRows, HoldsItsBoundsOnRandomLoads) {
  std::mt19937 rng(5);
  for (int i = 0; i < 2000; ++i) {
    std::vector<Candidate> candidates(rng() % 20);
    std::int64_t wanted_prompt = 0;
    std::int64_t n_decode = 0;
    for (Candidate& one : candidates) {
      one.decode = rng() % 2 == 0;
      one.rows = one.decode ? rng() % 2 : rng() % 300;
      (one.decode ? n_decode : wanted_prompt) += one.rows;
    }
    const std::int64_t max_rows = 1 + rng() % 128;
    const std::int64_t budget = 1 + rng() % 128;
    const Rows rows = plan_rows(candidates, max_rows, budget);
    ASSERT_EQ(rows.size(), candidates.size());
    std::int64_t prompt = 0;
    std::int64_t decode = 0;
    for (std::size_t k = 0; k < rows.size(); ++k) {
      ASSERT_GE(rows[k], 0);
      ASSERT_LE(rows[k], candidates[k].rows);
      (candidates[k].decode ? decode : prompt) += rows[k];
    }
    EXPECT_EQ(decode, std::min(n_decode, max_rows));
    EXPECT_EQ(prompt, std::min({wanted_prompt, budget, max_rows - decode}));
  }
}

TEST(Pacer, AloneTakesAllAndSharedTakesTheTarget) {
  using Seconds = std::chrono::duration<double>;
  Pacer pacer(512, Seconds(0.060));
  EXPECT_EQ(pacer.prompt_budget(true), 512);
  EXPECT_LE(pacer.prompt_budget(false), 128);
  for (int i = 0; i < 30; ++i) pacer.record(100, 0, Seconds(0.100));  // 1 ms a row
  EXPECT_EQ(pacer.prompt_budget(false), 32);
  for (int i = 0; i < 50; ++i) pacer.record(100, 0, Seconds(0.010));  // 0.1 ms a row
  EXPECT_EQ(pacer.prompt_budget(false), 512);
  for (int i = 0; i < 50; ++i) pacer.record(100, 0, Seconds(0.040));
  EXPECT_EQ(pacer.prompt_budget(false), 128);
  // Half of a step is the fixed part that decode steps show: twice the rows.
  Pacer affine(512, Seconds(0.060));
  affine.record(0, 1, Seconds(0.040));
  for (int i = 0; i < 50; ++i) affine.record(80, 1, Seconds(0.080));
  EXPECT_EQ(affine.prompt_budget(false), 96);
  // Decode steps of 400 ms: prompts may take as long again.
  for (int i = 0; i < 50; ++i) pacer.record(0, 4, Seconds(0.400));
  EXPECT_EQ(pacer.prompt_budget(false), 512);
  EXPECT_EQ(pacer.prompt_budget(true), 512);
}

}  // namespace
}  // namespace moesaic::engine
