// Requests at and past what a frame holds: they run, in several frames where one is not enough, or
// are refused alone before anything is sent.
#include <gtest/gtest.h>

#include "cluster/cluster_rig.h"
#include "cluster/coordinator/step_assembly.h"
#include "wire/frame.h"

namespace moesaic::cluster {
namespace {

using testing::ClusterRig;
using testing::Collect;
using Tokens = std::vector<std::int32_t>;

constexpr std::size_t kMost = wire::kFieldsLimit;

std::string refusal(const model::SequenceStep& sequence, std::int64_t n_ahead = 0,
                    std::size_t n_stop_tokens = 0) {
  try {
    field_bytes(sequence, n_ahead, n_stop_tokens, kMost);
    return "";
  } catch (const ArgumentError& e) {
    return e.what();
  }
}

TEST(FrameLimits, EachOptionIsNamedWhenItDoesNotFit) {
  model::SamplerSpec sampler;
  model::SequenceStep sequence;
  sequence.tokens = {1};
  sequence.sampler = &sampler;
  EXPECT_EQ(refusal(sequence), "");
  sampler.logit_bias.resize(kMost / 8 - 100);
  EXPECT_EQ(refusal(sequence), "");
  sampler.logit_bias.resize(kMost / 8 + 1);
  EXPECT_NE(refusal(sequence).find("logit_bias"), std::string::npos);
  sampler.logit_bias.clear();
  EXPECT_EQ(refusal(sequence, 0, kMost / 4 - 200), "");
  EXPECT_NE(refusal(sequence, 0, kMost / 4 + 1).find("stop_tokens"), std::string::npos);
  sampler.n_logprobs = static_cast<std::int32_t>(kMost / 8 + 1);
  EXPECT_NE(refusal(sequence).find("logprobs"), std::string::npos);
  sampler.n_logprobs = -1;
  sampler.penalty_last_n = -1;
  EXPECT_EQ(refusal(sequence, kMost / 4 - 200), "");
  EXPECT_NE(refusal(sequence, kMost / 4 + 1).find("penalty_last_n"), std::string::npos);
  sampler.penalty_last_n = 64;
  EXPECT_EQ(refusal(sequence, kMost), "");
  sequence.targets.resize(kMost / 8 + 1);
  EXPECT_NE(refusal(sequence).find("targets"), std::string::npos);
  model::Step step;
  step.capture.assign(kMost / 100, std::string(100, 'x'));
  EXPECT_THROW(most_field_bytes(step), ArgumentError);
}

// What is said to fit does: the real message's fields, with all of them near the limit.
TEST(FrameLimits, TheEstimateIsNeverBelowTheMessage) {
  model::SamplerSpec sampler;
  sampler.logit_bias.resize(1000);
  sampler.penalty_last_n = -1;
  model::Step step;
  model::SequenceStep sequence = model::testing::rows(1, 0, {1, 2, 3}, model::Logits::kAll);
  sequence.sampler = &sampler;
  sequence.history.resize(500);
  sequence.targets.resize(3);
  step.sequences = {sequence, sequence};
  step.capture = {"blocks.0.resid_post", "logits"};
  wire::Run run = to_run(step, {{0, 0, 3}, {1, 0, 3}}, 1);
  for (auto& each : run.sequences) each.stop_tokens.resize(300);
  const std::size_t estimate =
      2 * field_bytes(sequence, 0, 300, kMost) + (kMost - most_field_bytes(step));
  EXPECT_LE(wire::encode(run).size(), estimate);
  EXPECT_GE(2 * wire::encode(run).size(), estimate);
}

class LargeRequests : public ::testing::Test {
 protected:
  LargeRequests()
      : rig_(model::testing::tiny_llama({.n_layers = 2}), {.n_workers = 2}),
        runner_(rig_.deploy()) {}

  model::SamplerSpec with_bias(std::size_t n) const {
    model::SamplerSpec sampler;
    sampler.temperature = 0;
    for (std::size_t i = 0; i < n; ++i) {
      sampler.logit_bias.emplace_back(static_cast<std::int32_t>(i % 32), i % 2 == 0 ? 1e-6F : 0.0F);
    }
    return sampler;
  }
  // Tokens of `n` sequences that run ahead with a sampler.
  std::vector<Tokens> generate(model::Runner& runner, std::size_t n,
                               const model::SamplerSpec& sampler, const Tokens& stop_tokens = {}) {
    model::Step step;
    for (std::size_t i = 0; i < n; ++i) {
      step.sequences.push_back(model::testing::rows(
          runner.open(), 0, {static_cast<std::int32_t>(i % 8)}, model::Logits::kNone));
      step.sequences.back().sampler = &sampler;
    }
    std::vector<Tokens> out;
    if (runner.runs_ahead()) {
      const std::vector<model::Ahead> ahead(n, {3, stop_tokens});
      Collect collect(n);
      runner.run_ahead(step, ahead, collect);
      out = collect.tokens;
    } else {
      out.resize(n);
      for (int k = 0; k < 3; ++k) {
        const model::StepResult result = runner.run(step);
        for (std::size_t i = 0; i < n; ++i) {
          const std::int32_t token = result.sequences[i].sampled->token;
          out[i].push_back(token);
          step.sequences[i].start += 1;
          step.sequences[i].tokens = {token};
        }
      }
    }
    for (const auto& each : step.sequences) runner.close(each.sequence);
    return out;
  }

  ClusterRig rig_;
  std::unique_ptr<model::Runner> runner_;
};

TEST_F(LargeRequests, ABiasOnALargeVocabularyRunsAsOnOneMachine) {
  const model::SamplerSpec sampler = with_bias(160000);  // 1.3 MB
  const auto local = rig_.local();
  EXPECT_EQ(generate(*runner_, 1, sampler), generate(*local, 1, sampler));
  // More than a frame holds together: they go in several.
  EXPECT_EQ(generate(*runner_, 14, sampler), generate(*local, 14, sampler));
}

TEST_F(LargeRequests, TooLargeARequestIsRefusedAloneBeforeItIsSent) {
  const model::SamplerSpec small = with_bias(4);
  const auto expected = generate(*runner_, 1, small);
  const model::SamplerSpec large = with_bias(kMost / 8 + 1);
  EXPECT_THROW(generate(*runner_, 1, large), ArgumentError);
  EXPECT_EQ(generate(*runner_, 1, small), expected);
  model::Step step;
  step.sequences.push_back(model::testing::rows(runner_->open(), 0, {1}, model::Logits::kNone));
  step.sequences.back().sampler = &large;
  EXPECT_THROW(runner_->run(step), ArgumentError);
  EXPECT_EQ(generate(*runner_, 1, small), expected);
  EXPECT_EQ(rig_.log().find("lost"), std::string::npos) << rig_.log();
}

TEST_F(LargeRequests, StopTokensGoOnceEach) {
  const model::SamplerSpec sampler = with_bias(0);
  const auto expected = generate(*runner_, 1, sampler);
  Tokens stop(5000000, 31);
  if (expected[0][0] == 31 || expected[0][1] == 31) stop.assign(stop.size(), 30);
  EXPECT_EQ(generate(*runner_, 1, sampler, stop), expected);
}

}  // namespace
}  // namespace moesaic::cluster
