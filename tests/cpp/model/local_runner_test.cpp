// LocalRunner: sequences, captures, targets, sampling, saved caches, memory, and what it refuses.
#include "model/run/local_runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/aligned_buffer.h"
#include "model/tiny_model.h"

namespace moesaic::model {
namespace {

using testing::rows;
using testing::run_one;
using testing::some_tokens;

std::unique_ptr<LocalRunner> small() {
  LoadOptions options = testing::small_options();
  options.deterministic = true;
  return testing::load(testing::tiny_deepseek2(), options);
}

template <typename Call>
std::string argument_error(Call call) {
  try {
    call();
  } catch (const ArgumentError& error) {
    return error.what();
  }
  return "";
}

TEST(LocalRunner, AForkGoesItsOwnWayAndTheOriginalIsUndisturbed) {
  const auto runner = small();
  const std::int64_t vocab = runner->config().vocab;
  const auto prompt = some_tokens(21, vocab, 1);  // one page and a part
  const auto ours = some_tokens(13, vocab, 2);
  const auto theirs = some_tokens(13, vocab, 3);
  const auto alone = [&](const std::vector<std::int32_t>& tail) {
    auto all = prompt;
    all.insert(all.end(), tail.begin(), tail.end());
    auto logits = testing::all_logits(*runner, all, 21);
    logits.erase(logits.begin(), logits.begin() + 21 * vocab);
    return logits;
  };
  const SequenceId a = runner->open();
  run_one(*runner, rows(a, 0, prompt, Logits::kNone));
  const SequenceId b = runner->fork(a, 21);
  // Both write into the shared page, in one step and in turn.
  Step step;
  step.sequences = {rows(a, 21, ours, Logits::kAll), rows(b, 21, theirs, Logits::kAll)};
  const StepResult both = runner->run(step);
  EXPECT_EQ(both.sequences[0].logits, alone(ours));
  EXPECT_EQ(both.sequences[1].logits, alone(theirs));
  const SequenceId c = runner->fork(b, 21);
  runner->close(b);
  EXPECT_EQ(run_one(*runner, rows(c, 21, ours, Logits::kAll)).logits, alone(ours));
}

TEST(LocalRunner, StartDropsWhatWasCachedBehindIt) {
  const auto runner = small();
  const auto tokens = some_tokens(40, runner->config().vocab, 4);
  const SequenceId id = runner->open();
  run_one(*runner, rows(id, 0, some_tokens(40, runner->config().vocab, 5), Logits::kNone));
  const SequenceResult again = run_one(*runner, rows(id, 0, tokens, Logits::kAll));
  EXPECT_EQ(again.logits, testing::all_logits(*runner, tokens, 40));
  EXPECT_EQ(runner->length(id), 40);
  runner->truncate(id, 17);
  EXPECT_EQ(runner->length(id), 17);
  const std::vector<std::int32_t> tail(tokens.begin() + 17, tokens.end());
  const SequenceResult rest = run_one(*runner, rows(id, 17, tail, Logits::kLast));
  EXPECT_TRUE(std::equal(rest.logits.begin(), rest.logits.end(),
                         again.logits.end() - static_cast<std::ptrdiff_t>(rest.logits.size())));
}

TEST(LocalRunner, ASavedCacheIsTheCache) {
  const auto runner = small();
  const auto tokens = some_tokens(30, runner->config().vocab, 6);
  const SequenceId id = runner->open();
  run_one(*runner, rows(id, 0, tokens, Logits::kNone));
  const std::vector<std::uint8_t> bytes = runner->save(id, nullptr);
  // (layer, token) rows of 26 halves
  EXPECT_EQ(bytes.size(), 2U * 30U * 26U * 2U);
  const SequenceResult want = run_one(*runner, rows(id, 30, {5}, Logits::kLast));

  const auto other = small();
  EXPECT_EQ(other->identity(), runner->identity());
  const SequenceId loaded = other->load(bytes, some_tokens(30, 67, 1), nullptr);
  EXPECT_EQ(other->length(loaded), 30);
  EXPECT_EQ(run_one(*other, rows(loaded, 30, {5}, Logits::kLast)).logits, want.logits);
  EXPECT_EQ(other->save(other->fork(loaded, 30), nullptr), bytes);
  EXPECT_THROW(
      other->load(std::span(bytes).first(bytes.size() - 1), some_tokens(30, 67, 1), nullptr),
      FormatError);
  EXPECT_THROW(other->load(bytes, some_tokens(97, 67, 1), nullptr), ArgumentError);
}

TEST(LocalRunner, IdentityFollowsHeadersAndCacheType) {
  LoadOptions options = testing::small_options();
  const std::string plain = testing::load(testing::tiny_llama(), options)->identity();
  EXPECT_EQ(plain.size(), 64U);
  testing::Recipe other = testing::tiny_llama();
  other.keys["general.name"] = std::string("other");
  EXPECT_NE(testing::load(other, options)->identity(), plain);
  options.kv_type = backend::KvType::kF32;
  EXPECT_NE(testing::load(testing::tiny_llama(), options)->identity(), plain);
}

const Captured& named(const SequenceResult& result, const std::string& name) {
  for (const Captured& captured : result.captures) {
    if (captured.name == name) return captured;
  }
  throw InternalError("no capture " + name);
}

TEST(LocalRunner, CapturesFitTogether) {
  const auto runner = small();
  const auto tokens = some_tokens(9, runner->config().vocab, 7);
  const std::vector<std::string> names = runner->capture_names();
  EXPECT_EQ(names.size(), 1U + 5U + 8U + 2U);
  Step step;
  step.capture = names;
  // A neighbour that wants no captures, on either side.
  for (int i = 0; i < 3; ++i) {
    const auto own = i == 1 ? tokens : some_tokens(4, runner->config().vocab, 8);
    step.sequences.push_back(rows(runner->open(), 0, own, i == 1 ? Logits::kAll : Logits::kNone));
    step.sequences.back().capture = i == 1;
  }
  const StepResult result = runner->run(step);
  EXPECT_TRUE(result.sequences[0].captures.empty());
  EXPECT_TRUE(result.sequences[2].captures.empty());
  const SequenceResult& mine = result.sequences[1];
  ASSERT_EQ(mine.captures.size(), names.size());
  // The same rows alone in a step.
  const SequenceResult alone =
      run_one(*runner, rows(runner->open(), 0, tokens, Logits::kNone), names);
  for (std::size_t i = 0; i < names.size(); ++i) {
    EXPECT_EQ(mine.captures[i].name, names[i]);
    EXPECT_EQ(mine.captures[i].values, alone.captures[i].values) << names[i];
    EXPECT_EQ(mine.captures[i].ids, alone.captures[i].ids) << names[i];
  }
  const auto d = static_cast<std::size_t>(runner->config().d_model);
  for (int layer = 0; layer < 2; ++layer) {
    const std::string blk = "blocks." + std::to_string(layer) + ".";
    const auto& pre = named(mine, blk + "resid_pre").values;
    const auto& attn = named(mine, blk + "attn_out").values;
    const auto& mid = named(mine, blk + "resid_mid").values;
    const auto& mlp = named(mine, blk + "mlp_out").values;
    const auto& post = named(mine, blk + "resid_post").values;
    ASSERT_EQ(pre.size(), 9 * d);
    for (std::size_t i = 0; i < pre.size(); ++i) {
      ASSERT_EQ(mid[i], pre[i] + attn[i]);
      ASSERT_EQ(post[i], mid[i] + mlp[i]);
    }
  }
  EXPECT_EQ(named(mine, "embed").values, named(mine, "blocks.0.resid_pre").values);
  EXPECT_EQ(named(mine, "blocks.0.resid_post").values, named(mine, "blocks.1.resid_pre").values);
  EXPECT_EQ(named(mine, "logits").values, mine.logits);
  EXPECT_EQ(named(mine, "final_norm").n_cols, runner->config().d_model);

  const Captured& experts = named(mine, "blocks.1.router.experts");
  const Captured& weights = named(mine, "blocks.1.router.weights");
  ASSERT_EQ(experts.ids.size(), 9U * 2U);
  for (std::size_t r = 0; r < 9; ++r) {
    EXPECT_NE(experts.ids[2 * r], experts.ids[2 * r + 1]);
    EXPECT_NEAR(weights.values[2 * r] + weights.values[2 * r + 1], 2.5, 1e-5);
  }
  EXPECT_EQ(named(mine, "blocks.1.router.logits").n_cols, 5);
}

TEST(LocalRunner, CapturingChangesNothing) {
  const auto runner = small();
  const auto tokens = some_tokens(9, runner->config().vocab, 7);
  const SequenceId id = runner->open();
  const auto with = run_one(*runner, rows(id, 0, tokens, Logits::kAll), runner->capture_names());
  EXPECT_EQ(with.logits, run_one(*runner, rows(id, 0, tokens, Logits::kAll)).logits);
}

TEST(LocalRunner, TargetsAreLogSoftmaxOfTheirRows) {
  const auto runner = small();
  const auto tokens = some_tokens(12, runner->config().vocab, 9);
  const auto vocab = static_cast<std::size_t>(runner->config().vocab);
  SequenceStep step = rows(runner->open(), 0, tokens, Logits::kAll);
  step.targets = {{11, 3}, {0, 66}, {5, 1}, {5, 2}};
  const SequenceResult result = run_one(*runner, step);
  step.logits = Logits::kNone;
  const SequenceResult scored = run_one(*runner, step);
  ASSERT_EQ(scored.targets.size(), 4U);
  EXPECT_TRUE(scored.logits.empty());
  for (std::size_t i = 0; i < step.targets.size(); ++i) {
    const Target& target = step.targets[i];
    const float* row = result.logits.data() + static_cast<std::size_t>(target.row) * vocab;
    double sum = 0.0;
    for (std::size_t v = 0; v < vocab; ++v) sum += std::exp(static_cast<double>(row[v]));
    const double want = static_cast<double>(row[target.token]) - std::log(sum);
    EXPECT_NEAR(scored.targets[i].logprob, want, 1e-6);
    EXPECT_EQ(scored.targets[i].is_greedy,
              std::max_element(row, row + vocab) - row == target.token);
  }
}

TEST(LocalRunner, SamplingSeesTheHistoryAndLeavesTheLogitsAlone) {
  const auto runner = small();
  const auto tokens = some_tokens(6, runner->config().vocab, 10);
  SequenceStep step = rows(runner->open(), 0, tokens, Logits::kLast);
  SamplerSpec greedy;
  greedy.temperature = 0.0F;
  step.sampler = &greedy;
  const SequenceResult first = run_one(*runner, step);
  ASSERT_TRUE(first.sampled.has_value());
  const auto best = std::max_element(first.logits.begin(), first.logits.end());
  EXPECT_EQ(first.sampled->token, best - first.logits.begin());
  SamplerSpec penal = greedy;
  penal.frequency_penalty = 2.0F;
  penal.repeat_penalty = 1000.0F;
  step.sampler = &penal;
  step.history.assign(8, first.sampled->token);
  const SequenceResult second = run_one(*runner, step);
  EXPECT_NE(second.sampled->token, first.sampled->token);
  EXPECT_EQ(second.logits, first.logits);
}

TEST(LocalRunner, APenaltyKeepsTokensOfThePromptAway) {
  const auto runner = small();
  SamplerSpec greedy;
  greedy.temperature = 0.0F;
  SamplerSpec penal = greedy;
  penal.repeat_penalty = 1000.0F;
  int n_seen = 0;
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    const auto tokens = some_tokens(30, runner->config().vocab, seed);
    SequenceStep step = rows(runner->open(), 0, tokens, Logits::kNone);
    step.sampler = &greedy;
    const std::int32_t best = run_one(*runner, step).sampled->token;
    step.sampler = &penal;
    step.history = tokens;
    const std::int32_t other = run_one(*runner, step).sampled->token;
    runner->close(step.sequence);
    if (std::find(tokens.begin(), tokens.end(), best) == tokens.end()) continue;
    EXPECT_NE(other, best) << "the prompt holds it";
    ++n_seen;
  }
  EXPECT_GT(n_seen, 0);
}

TEST(LocalRunner, RefusesWhatItCannotRun) {
  const auto runner = small();
  const SequenceId id = runner->open();
  const auto one = [&](SequenceStep step) { return [&, step] { run_one(*runner, step); }; };
  EXPECT_NE(argument_error(one(rows(id, 0, {}, Logits::kLast))).find("none"), std::string::npos);
  EXPECT_NE(argument_error(one(rows(id, 0, {67}, Logits::kLast))).find("got 67, need 0 to 66"),
            std::string::npos);
  EXPECT_NE(argument_error(one(rows(id, 0, {-1}, Logits::kLast))).find("got -1"),
            std::string::npos);
  EXPECT_NE(argument_error(one(rows(id, 1, {1}, Logits::kLast))).find("start: got 1"),
            std::string::npos);
  EXPECT_NE(argument_error(one(rows(id + 7, 0, {1}, Logits::kLast))).find("not open"),
            std::string::npos);
  EXPECT_NE(
      argument_error(one(rows(id, 0, some_tokens(97, 67, 1), Logits::kLast))).find("n_ctx, 96"),
      std::string::npos);
  SequenceStep target = rows(id, 0, {1}, Logits::kNone);
  target.targets = {{1, 1}};
  EXPECT_NE(argument_error(one(target)).find("targets"), std::string::npos);
  Step twice;
  twice.sequences = {rows(id, 0, {1}, Logits::kLast), rows(id, 0, {1}, Logits::kLast)};
  EXPECT_NE(argument_error([&] { runner->run(twice); }).find("twice"), std::string::npos);
  EXPECT_NE(argument_error([&] {
              run_one(*runner, rows(id, 0, {1}, Logits::kLast), {"blocks.7.resid_post"});
            }).find("'blocks.7.resid_post'"),
            std::string::npos);
  for (const char* name : {"blocks.00.resid_post", "blocks.-1.resid_post", "blocks.0.", "blocks.",
                           "blocks.0.router.experts", "", "embed.0"}) {
    EXPECT_NE(argument_error([&] { run_one(*runner, rows(id, 0, {1}, Logits::kLast), {name}); }),
              "")
        << name;
  }
  EXPECT_NE(argument_error([&] {
              run_one(*runner, rows(id, 0, {1}, Logits::kLast), {"embed", "embed"});
            }).find("twice"),
            std::string::npos);
  // And goes on working.
  EXPECT_EQ(run_one(*runner, rows(id, 0, {1}, Logits::kLast)).logits.size(), 67U);
}

TEST(LocalRunner, ACancelledStepLeavesTheSequenceWhereItWas) {
  const auto runner = small();
  const auto tokens = some_tokens(20, runner->config().vocab, 11);
  const SequenceId id = runner->open();
  run_one(*runner, rows(id, 0, tokens, Logits::kNone));
  CancelFlag cancel;
  cancel.set();
  Step step;
  step.sequences = {rows(id, 20, {1, 2, 3}, Logits::kLast)};
  step.cancel = &cancel;
  EXPECT_THROW(runner->run(step), CancelledError);
  EXPECT_EQ(runner->length(id), 20);
  step.cancel = nullptr;
  const auto got = runner->run(step).sequences[0].logits;
  auto all = tokens;
  all.insert(all.end(), {1, 2, 3});
  const auto want = testing::all_logits(*runner, all, 23);
  EXPECT_TRUE(
      std::equal(got.begin(), got.end(), want.end() - static_cast<std::ptrdiff_t>(got.size())));
}

TEST(LocalRunner, AFullPoolIsAnErrorAndRoomComesBack) {
  LoadOptions options = testing::small_options();
  options.kv_tokens = 96;
  const auto runner = testing::load(testing::tiny_llama(), options);
  EXPECT_EQ(runner->kv_tokens(), 96);
  const SequenceId a = runner->open();
  run_one(*runner, rows(a, 0, some_tokens(80, 67, 1), Logits::kNone));
  EXPECT_EQ(runner->kv_tokens_free(), 16);
  const SequenceId b = runner->open();
  EXPECT_EQ(runner->pages_needed(b, 0, 17), 2);
  EXPECT_EQ(runner->pages_needed(a, 0, 17), 0) << "it gives back more than it takes";
  EXPECT_THROW(run_one(*runner, rows(b, 0, some_tokens(17, 67, 1), Logits::kNone)),
               OutOfMemoryError);
  runner->close(a);
  EXPECT_EQ(runner->kv_tokens_free(), 96);
  run_one(*runner, rows(b, 0, some_tokens(17, 67, 1), Logits::kNone));
  EXPECT_EQ(runner->kv_tokens_free(), 64);
}

TEST(Load, TooLittleMemorySaysWhatFits) {
  const ModelFile model = understand(testing::build(testing::tiny_llama()));
  const Slice slice = Slice::whole(model.config);
  const auto backend = backend::make_backend("cpu", {.n_threads = 1});
  LoadOptions options = testing::small_options();
  options.n_ctx = 16384;
  options.max_step_rows = 32;
  const MemoryNeed need = memory_need(model, slice, options, *backend);
  // k and v of 14 halves in 2 layers
  EXPECT_EQ(need.kv_bytes, 16384U * 2U * 2U * 14U * 2U);
  EXPECT_GT(need.weights_bytes, 0U);
  EXPECT_EQ(fit_kv_tokens(model, slice, options, *backend, 2 * need.total()), 2 * 16384);
  EXPECT_EQ(fit_kv_tokens(model, slice, options, *backend, need.total()), 16384);
  try {
    fit_kv_tokens(model, slice, options, *backend, need.total() - need.kv_bytes / 2);
    FAIL() << "fitted";
  } catch (const OutOfMemoryError& error) {
    EXPECT_EQ(error.needed_bytes, need.total());
    const std::string text = error.what();
    const std::size_t at = text.find("n_ctx=");
    ASSERT_NE(at, std::string::npos) << text;
    options.n_ctx = std::stoll(text.substr(at + 6));
    EXPECT_GE(options.n_ctx, 8000) << text;
    EXPECT_LE(memory_need(model, slice, options, *backend).total(), error.free_bytes) << text;
  }
  EXPECT_THROW(fit_kv_tokens(model, slice, options, *backend, 1000), OutOfMemoryError);
}

TEST(Load, KeptKeysAreCountedAndGiveWay) {
  const ModelFile model = understand(testing::build(testing::tiny_deepseek2()));
  const Slice slice = Slice::whole(model.config);
  const auto backend = backend::make_backend("cpu", {.n_threads = 1});
  LoadOptions options = testing::small_options();
  options.n_ctx = 1200;
  EXPECT_EQ(kept_keys(model, options, *backend).n_tokens, 0) << "an eighth of tiny weights";
  options.kept_tokens = 0;
  const MemoryNeed without = memory_need(model, slice, options, *backend);
  options.kept_tokens = 600;  // whole chunks of 512 are kept
  const backend::KvSpec::Kept kept = kept_keys(model, options, *backend);
  EXPECT_EQ(kept.n_tokens, 600);
  const MemoryNeed need = memory_need(model, slice, options, *backend);
  EXPECT_EQ(need.scratch_bytes - without.scratch_bytes,
            static_cast<std::uint64_t>(512 * kept.n_heads * (kept.d_k + kept.d_v) * 4 * 2));
  EXPECT_EQ(with_room(model, slice, options, *backend, need.total()).kept_tokens, 600);
  EXPECT_EQ(with_room(model, slice, options, *backend, need.total() - 1).kept_tokens, 0);
  options.deterministic = true;
  EXPECT_EQ(kept_keys(model, options, *backend).n_tokens, 0) << "never decompressed";
  const ModelFile llama = understand(testing::build(testing::tiny_llama()));
  EXPECT_EQ(kept_keys(llama, options, *backend).n_tokens, 0);
}

TEST(Load, KeptKeysChangeNoLogits) {
  LoadOptions options = testing::small_options();
  options.n_ctx = 1200;
  const auto logits = [&](std::int64_t kept_tokens) {
    options.kept_tokens = kept_tokens;
    const auto runner = testing::load(testing::tiny_deepseek2(), options);
    const auto tokens = some_tokens(1100, runner->config().vocab, 5);
    const SequenceId id = runner->open();
    std::vector<float> all;
    for (std::int64_t at = 0; at < 1100; at += 100) {
      const auto got = run_one(
          *runner, rows(id, at, {tokens.begin() + at, tokens.begin() + at + 100}, Logits::kLast));
      all.insert(all.end(), got.logits.begin(), got.logits.end());
    }
    return all;
  };
  EXPECT_EQ(logits(1024), logits(0));
}

TEST(Load, RefusesOptionsOutOfRange) {
  const auto message = [](const LoadOptions& options) {
    return argument_error([&] { testing::load(testing::tiny_llama(), options); });
  };
  LoadOptions options = testing::small_options();
  options.n_ctx = 0;
  EXPECT_NE(message(options).find("n_ctx: got 0"), std::string::npos);
  options = testing::small_options();
  options.threads = 10000;
  EXPECT_NE(message(options).find("threads: got 10000"), std::string::npos);
  options = testing::small_options();
  options.kv_tokens = 95;
  EXPECT_NE(message(options).find("kv_tokens: got 95, need 96"), std::string::npos);
  options = testing::small_options();
  options.page_tokens = 48;
  EXPECT_NE(message(options).find("power of two"), std::string::npos);
  options = testing::small_options();
  options.backend = "abacus";
  EXPECT_NE(message(options).find("abacus"), std::string::npos);
}

TEST(Load, ReportsProgressAndCanBeCancelled) {
  LoadOptions options = testing::small_options();
  std::vector<std::uint64_t> done;
  std::uint64_t total = 0;
  options.progress = [&](std::uint64_t d, std::uint64_t t) {
    done.push_back(d);
    total = t;
  };
  testing::load(testing::tiny_deepseek2(), options);
  ASSERT_GT(done.size(), 3U);
  EXPECT_EQ(done.front(), 0U);
  EXPECT_EQ(done.back(), total);
  EXPECT_TRUE(std::is_sorted(done.begin(), done.end()));

  CancelFlag cancel;
  options.cancel = &cancel;
  options.progress = [&](std::uint64_t d, std::uint64_t) {
    if (d > 0) cancel.set();
  };
  EXPECT_THROW(testing::load(testing::tiny_deepseek2(), options), CancelledError);
}

}  // namespace
}  // namespace moesaic::model
