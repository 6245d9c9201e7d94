// A model over one, two and three workers gives what one process gives, byte for byte: logits,
// captures, generations, forks, saved sessions; and only workers see hidden rows.
#include <gtest/gtest.h>

#include <numeric>

#include "cluster/cluster_rig.h"
#include "net/rig.h"

namespace moesaic::cluster {
namespace {

using model::testing::TinyOptions;
using net::testing::eventually;
using testing::ClusterRig;
using testing::Collect;
using Tokens = std::vector<std::int32_t>;

struct Family {
  const char* name;
  model::testing::Recipe (*recipe)(const TinyOptions&);
  TinyOptions options;
};
void PrintTo(const Family& family, std::ostream* out) { *out << family.name; }

class Families : public ::testing::TestWithParam<Family> {};
INSTANTIATE_TEST_SUITE_P(
    Cluster, Families,
    ::testing::Values(Family{"llama", model::testing::tiny_llama, {.n_layers = 5}},
                      Family{"llama Q4_K",
                             model::testing::tiny_llama,
                             {.n_layers = 3, .matrices = quant::Qtype::kQ4_K, .unit = 256}},
                      Family{"deepseek2", model::testing::tiny_deepseek2, {.n_layers = 5}},
                      Family{
                          "deepseek2 kv_b", model::testing::tiny_deepseek2_kv_b, {.n_layers = 4}},
                      Family{"qwen3moe", model::testing::tiny_qwen3moe, {.n_layers = 4}},
                      Family{"gpt-oss", model::testing::tiny_gpt_oss, {.n_layers = 5}},
                      Family{"glm4moe", model::testing::tiny_glm4moe, {.n_layers = 4}}));

model::Step one(model::SequenceStep sequence, std::vector<std::string> capture = {}) {
  model::Step step;
  step.capture = std::move(capture);
  step.sequences.push_back(std::move(sequence));
  return step;
}

// Greedy or sampled tokens of several prompts at once.
std::vector<Tokens> generate(model::Runner& runner, const std::vector<Tokens>& prompts,
                             const model::SamplerSpec& sampler, std::int64_t n, bool ahead) {
  std::vector<Tokens> all = prompts;
  std::vector<model::SequenceId> ids;
  for (std::size_t i = 0; i < prompts.size(); ++i) ids.push_back(runner.open());
  std::vector<std::int64_t> cached(prompts.size(), 0);
  std::vector<Tokens> out(prompts.size());
  const auto step_of = [&] {
    model::Step step;
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      model::SequenceStep sequence;
      sequence.sequence = ids[i];
      sequence.start = cached[i];
      sequence.tokens.assign(all[i].begin() + cached[i], all[i].end());
      sequence.sampler = &sampler;
      sequence.history = all[i];
      step.sequences.push_back(std::move(sequence));
    }
    return step;
  };
  for (std::int64_t t = 0; t < n; ++t) {
    if (ahead && t > 0) {
      const model::Step step = step_of();
      std::vector<model::Ahead> leave(prompts.size(), model::Ahead{n - t, {}});
      Collect sink(prompts.size());
      runner.run_ahead(step, leave, sink);
      for (std::size_t i = 0; i < prompts.size(); ++i) {
        out[i].insert(out[i].end(), sink.tokens[i].begin(), sink.tokens[i].end());
      }
      break;
    }
    const model::StepResult result = runner.run(step_of());
    for (std::size_t i = 0; i < prompts.size(); ++i) {
      cached[i] = static_cast<std::int64_t>(all[i].size());
      all[i].push_back(result.sequences[i].sampled->token);
      out[i].push_back(all[i].back());
    }
  }
  for (const model::SequenceId id : ids) runner.close(id);
  return out;
}

TEST_P(Families, TheSameBytesOnOneTwoAndThreeWorkers) {
  const auto recipe = GetParam().recipe(GetParam().options);
  for (const std::size_t n : {1U, 2U, 3U}) {
    ClusterRig rig(recipe, {.n_workers = n});
    const auto local = rig.local();
    const auto runner = rig.deploy();
    const std::int64_t vocab = local->config().vocab;
    const Tokens tokens = model::testing::some_tokens(150, vocab, 3);
    const auto names = local->capture_names();
    EXPECT_EQ(runner->capture_names(), names);
    EXPECT_EQ(runner->identity(), local->identity());

    model::SequenceStep mine = model::testing::rows(local->open(), 0, tokens, model::Logits::kAll);
    mine.capture = true;
    mine.targets = {{149, 3}, {0, 1}, {77, 5}};
    const auto expected = model::testing::run_one(*local, mine, names);
    mine.sequence = runner->open();
    const auto got = model::testing::run_one(*runner, mine, names);
    EXPECT_EQ(got.logits, expected.logits) << n << rig.log();
    ASSERT_EQ(got.targets.size(), 3U);
    for (std::size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(got.targets[i].logprob, expected.targets[i].logprob);
      EXPECT_EQ(got.targets[i].is_greedy, expected.targets[i].is_greedy);
    }
    ASSERT_EQ(got.captures.size(), names.size());
    for (std::size_t i = 0; i < names.size(); ++i) {
      EXPECT_EQ(got.captures[i].name, names[i]);
      EXPECT_EQ(got.captures[i].n_rows, expected.captures[i].n_rows) << names[i];
      EXPECT_EQ(got.captures[i].values, expected.captures[i].values) << names[i];
      EXPECT_EQ(got.captures[i].ids, expected.captures[i].ids) << names[i];
    }

    model::SamplerSpec sampler;
    sampler.seed = 5;
    sampler.n_logprobs = 2;
    sampler.repeat_penalty = 1.2F;
    sampler.penalty_last_n = 10;
    const std::vector<Tokens> prompts{
        model::testing::some_tokens(9, vocab, 4), model::testing::some_tokens(33, vocab, 5),
        model::testing::some_tokens(1, vocab, 6), model::testing::some_tokens(64, vocab, 7),
        model::testing::some_tokens(20, vocab, 8)};
    const auto alone = generate(*local, prompts, sampler, 24, false);
    EXPECT_EQ(generate(*runner, prompts, sampler, 24, false), alone) << n;
    EXPECT_EQ(generate(*runner, prompts, sampler, 24, true), alone) << n;
  }
}

TEST(Cluster, ForksTruncationsAndSavedSessionsMoveBetweenClusters) {
  const auto recipe = model::testing::tiny_deepseek2({.n_layers = 5});
  ClusterRig three(recipe, {.n_workers = 3});
  ClusterRig two(recipe, {.n_workers = 2, .encrypted = false});
  const auto local = three.local();
  const auto on_three = three.deploy();
  const auto on_two = two.deploy();
  const Tokens tokens = model::testing::some_tokens(100, local->config().vocab, 1);
  const Tokens more = model::testing::some_tokens(30, local->config().vocab, 2);
  const auto go_on = [&](model::Runner& runner, model::SequenceId id, std::int64_t from) {
    return model::testing::run_one(runner,
                                   model::testing::rows(id, from, more, model::Logits::kAll))
        .logits;
  };
  const auto whole = local->open();
  model::testing::run_one(*local, model::testing::rows(whole, 0, tokens, model::Logits::kNone));
  const auto local_fork = local->fork(whole, 70);
  const auto expected_fork = go_on(*local, local_fork, 70);
  const auto bytes = local->save(whole, nullptr);
  const auto expected = go_on(*local, whole, 100);

  const auto id = on_three->open();
  model::testing::run_one(*on_three, model::testing::rows(id, 0, tokens, model::Logits::kNone));
  const auto child = on_three->fork(id, 70);
  EXPECT_EQ(go_on(*on_three, child, 70), expected_fork);
  on_three->truncate(child, 70);
  EXPECT_EQ(go_on(*on_three, child, 70), expected_fork);
  const auto saved = on_three->save(id, nullptr);
  EXPECT_EQ(saved, bytes);
  EXPECT_EQ(go_on(*on_three, id, 100), expected);

  const auto there = on_two->load(saved, tokens, nullptr);
  EXPECT_EQ(go_on(*on_two, there, 100), expected);
  const auto here = local->load(saved, tokens, nullptr);
  EXPECT_EQ(go_on(*local, here, 100), expected);
  EXPECT_EQ(on_three->kv_tokens_free(), on_three->kv_tokens() - 64 * (3 + 1));
  on_three->close(id);
  on_three->close(child);
  EXPECT_EQ(on_three->kv_tokens_free(), on_three->kv_tokens());
}

TEST(Cluster, OnlyWorkersSeeHiddenRows) {
  ClusterRig rig(model::testing::tiny_llama({.n_layers = 4}), {.n_workers = 2});
  const auto runner = rig.deploy();
  const auto& config = runner->config();
  const Tokens tokens = model::testing::some_tokens(160, config.vocab, 1);
  model::testing::run_one(*runner,
                          model::testing::rows(runner->open(), 0, tokens, model::Logits::kLast));
  const auto nodes = rig.coordinator().nodes(false, nullptr);
  const auto hidden = static_cast<std::uint64_t>(160 * config.d_model * 4);
  EXPECT_GE(nodes[0].bytes_sent_activations, hidden);
  EXPECT_LT(nodes[0].bytes_sent_activations, hidden + 20000);
  EXPECT_GE(nodes[1].bytes_received_activations, hidden);
  // The coordinator sends token ids (and what is wanted), and gets no hidden rows at all.
  EXPECT_LT(nodes[0].bytes_received_activations, 160 * 4 + 20000U);
  EXPECT_EQ(nodes[1].bytes_sent_activations, 0U);
}

TEST(Cluster, HalfPrecisionOnTheWireHalvesTheRows) {
  ClusterRig rig(model::testing::tiny_llama({.n_layers = 4}), {.n_workers = 2});
  DeployOptions options;
  options.load = ClusterRig::load_options();
  options.hidden_f16 = true;
  const auto half = rig.deploy(options);
  const Tokens tokens = model::testing::some_tokens(160, half->config().vocab, 1);
  const auto step = model::testing::rows(half->open(), 0, tokens, model::Logits::kAll);
  const auto got = model::testing::run_one(*half, step).logits;
  const std::uint64_t hidden = 160 * static_cast<std::uint64_t>(half->config().d_model) * 2;
  const auto nodes = rig.coordinator().nodes(false, nullptr);
  EXPECT_GE(nodes[0].bytes_sent_activations, hidden);
  EXPECT_LT(nodes[0].bytes_sent_activations, hidden + 20000);
  const auto expected = model::testing::all_logits(*rig.local(), tokens, 160);
  ASSERT_EQ(got.size(), expected.size());
  float worst = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::abs(got[i] - expected[i]));
  }
  EXPECT_GT(worst, 0.0F);
  EXPECT_LT(worst, 0.05F);
}

TEST(Cluster, WeightsArePulledOnceAndKept) {
  ClusterRig rig(model::testing::tiny_deepseek2({.n_layers = 4}),
                 {.n_workers = 2, .local_copies = false});
  const Tokens tokens = model::testing::some_tokens(40, 67, 1);
  const auto expected = model::testing::all_logits(*rig.local(), tokens, 40);
  std::uint64_t read = 0;
  for (int i = 0; i < 3; ++i) {
    const auto runner = rig.deploy();
    EXPECT_EQ(model::testing::all_logits(*runner, tokens, 40), expected) << i;
    const auto nodes = rig.coordinator().nodes(false, nullptr);
    EXPECT_EQ(nodes[0].models.size(), 1U);
    const std::uint64_t now = nodes[0].bytes_read_weights + nodes[1].bytes_read_weights;
    if (i == 0) read = now;
    EXPECT_EQ(now, read) << "warm loads read nothing";
  }
  EXPECT_GT(read, 0U);
}

TEST(Cluster, WhatAModelIsMayLieInATensorThatNobodyHasYet) {
  auto recipe = model::testing::tiny_llama({.n_layers = 4});
  recipe.tensors["rope_freqs.weight"] = {
      {7}, quant::Qtype::kF32, {1.0F, 1.0F, 2.0F, 2.0F, 4.0F, 8.0F, 8.0F}};
  ClusterRig rig(recipe, {.n_workers = 2, .local_copies = false});
  const Tokens tokens = model::testing::some_tokens(40, 67, 1);
  const auto expected = model::testing::all_logits(*rig.local(), tokens, 40);
  EXPECT_EQ(model::testing::all_logits(*rig.deploy(), tokens, 40), expected);
  // Nor need the coordinator have anything of it.
  const auto headers = rig.coordinator().remote_file("tiny.gguf", nullptr);
  DeployOptions options;
  options.load = ClusterRig::load_options();
  const auto runner = rig.coordinator().deploy(headers, rig.plan(options.load), options);
  EXPECT_EQ(model::testing::all_logits(*runner, tokens, 40), expected);
}

TEST(Cluster, SeveralDeploymentsAtOnce) {
  ClusterRig rig(model::testing::tiny_llama({.n_layers = 4}), {.n_workers = 2});
  const auto first = rig.deploy();
  const auto second = rig.deploy();
  const Tokens tokens = model::testing::some_tokens(150, first->config().vocab, 1);
  const auto expected = model::testing::all_logits(*rig.local(), tokens, 150);
  std::thread other([&] {
    for (int i = 0; i < 5; ++i) {
      EXPECT_EQ(model::testing::all_logits(*second, tokens, 150), expected);
    }
  });
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(model::testing::all_logits(*first, tokens, 150), expected);
  }
  other.join();
}

TEST(Cluster, ACancelStopsSoonAndTheNextStepIsRight) {
  ClusterRig rig(model::testing::tiny_deepseek2({.n_layers = 5}), {.n_workers = 3});
  const auto runner = rig.deploy();
  const auto local = rig.local();
  const Tokens tokens = model::testing::some_tokens(150, runner->config().vocab, 1);
  const auto expected = model::testing::all_logits(*local, tokens, 150);
  model::SamplerSpec sampler;
  for (int i = 0; i < 20; ++i) {
    CancelFlag flag;
    std::thread later([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(300 * i));
      flag.set();
    });
    const auto id = runner->open();
    auto rows = model::testing::rows(id, 0, tokens, model::Logits::kAll);
    try {
      model::Step step = one(rows);
      step.cancel = &flag;
      EXPECT_EQ(runner->run(step).sequences[0].logits, expected);
      auto next = model::testing::rows(id, 150, {3}, model::Logits::kNone);
      next.sampler = &sampler;
      model::Step ahead = one(next);
      ahead.cancel = &flag;
      Collect sink(1, i % 2 == 0 ? 5 : SIZE_MAX);
      const model::Ahead leave{40, {}};
      runner->run_ahead(ahead, std::span(&leave, 1), sink);
    } catch (const CancelledError&) {
    }
    later.join();
    EXPECT_EQ(model::testing::run_one(*runner, rows).logits, expected) << i;
    runner->close(id);
  }
  EXPECT_EQ(runner->kv_tokens_free(), runner->kv_tokens());
}

TEST(Cluster, StopTokensAndCountsEndTheRing) {
  ClusterRig rig(model::testing::tiny_llama({.n_layers = 4}), {.n_workers = 2});
  const auto runner = rig.deploy();
  model::SamplerSpec greedy;
  greedy.temperature = 0;
  const Tokens prompt = model::testing::some_tokens(12, runner->config().vocab, 1);
  const auto all = generate(*runner, {prompt}, greedy, 30, true)[0];
  const auto id = runner->open();
  auto rows = model::testing::rows(id, 0, prompt, model::Logits::kNone);
  rows.sampler = &greedy;
  Tokens got{model::testing::run_one(*runner, rows).sampled->token};
  const std::int32_t stop = all[12];
  const auto first = std::find(all.begin() + 1, all.end(), stop);
  auto next = model::testing::rows(id, 12, {got[0]}, model::Logits::kNone);
  next.sampler = &greedy;
  Collect sink(1);
  const model::Ahead leave{29, std::span(&stop, 1)};
  runner->run_ahead(one(next), std::span(&leave, 1), sink);
  got.insert(got.end(), sink.tokens[0].begin(), sink.tokens[0].end());
  EXPECT_EQ(got, Tokens(all.begin(), first + 1));
  EXPECT_EQ(runner->length(id), 12 + static_cast<std::int64_t>(got.size()) - 1);
}

// What a generation samples with travels with its first pass and not with every token.
TEST(Cluster, SettingsOfAGenerationTravelOnce) {
  ClusterRig rig(model::testing::tiny_llama({.n_layers = 4}), {.n_workers = 2});
  const auto runner = rig.deploy();
  model::SamplerSpec sampler;
  sampler.repeat_penalty = 1.2F;
  sampler.penalty_last_n = -1;
  const Tokens prompt = model::testing::some_tokens(12, runner->config().vocab, 1);
  const auto all = generate(*runner, {prompt}, sampler, 40, false)[0];
  const auto id = runner->open();
  model::testing::run_one(*runner, model::testing::rows(id, 0, prompt, model::Logits::kNone));
  Tokens stops(20'000);
  std::iota(stops.begin(), stops.end(), 1'000'000);  // none of them ever comes
  auto next = model::testing::rows(id, 12, {all[0]}, model::Logits::kNone);
  next.sampler = &sampler;
  next.history = prompt;
  next.history.push_back(all[0]);
  const auto sent = [&] {
    return rig.coordinator().nodes(false, nullptr).at(0).bytes_sent_activations;
  };
  const std::uint64_t before = sent();
  Collect sink(1);
  const model::Ahead leave{39, stops};
  runner->run_ahead(one(next), std::span(&leave, 1), sink);
  Tokens got{all[0]};
  got.insert(got.end(), sink.tokens[0].begin(), sink.tokens[0].end());
  EXPECT_EQ(got, all);
  const std::uint64_t once = stops.size() * sizeof(std::int32_t);
  EXPECT_GE(sent() - before, once);
  EXPECT_LT(sent() - before, 3 * once);
}

}  // namespace
}  // namespace moesaic::cluster
