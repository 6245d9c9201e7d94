// Requests through the engine against what the fake model's definition gives: batching, chunking,
// prefix reuse, stop conditions, cancellation, errors, limits.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <thread>

#include "engine/harness.h"

namespace moesaic::engine {
namespace {

class EngineRuns : public EngineTest {};

TEST_P(EngineRuns, ForwardGivesTheLogitsOfEveryPositionInChunks) {
  make();
  const Tokens tokens = prompt(150);  // three chunks of 64
  const Ended ended = run_one(forward(tokens));
  ASSERT_EQ(ended.outcome.logits.size(), tokens.size() * 97);
  Tokens so_far;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    so_far.push_back(tokens[i]);
    const std::vector<float> row = fake_logits(so_far, 97);
    ASSERT_TRUE(std::equal(row.begin(), row.end(), ended.outcome.logits.begin() + i * 97)) << i;
  }
  EXPECT_EQ(log_->copy().size(), 3U);
  EXPECT_EQ(log_->open_sequences, 0);
  EXPECT_EQ(log_->pages_used, 0);
}

TEST_P(EngineRuns, LastLogitsAndCapturesOfAllRows) {
  make();
  RequestSpec spec = forward(prompt(100), model::Logits::kLast);
  spec.capture = {"embed", "ids"};
  const Ended ended = run_one(spec);
  EXPECT_EQ(ended.outcome.logits, fake_logits(prompt(100), 97));
  ASSERT_EQ(ended.outcome.captures.size(), 2U);
  const model::Captured& embed = ended.outcome.captures[0];
  EXPECT_EQ(embed.n_rows, 100);
  ASSERT_EQ(embed.values.size(), 200U);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(embed.values[2 * i + 1], i);
  EXPECT_EQ(ended.outcome.captures[1].ids, prompt(100));
}

TEST_P(EngineRuns, RequestsWithOtherCapturesDoNotMixAndDoNotStarve) {
  make();
  RequestSpec a = generate(prompt(40), 30, 1);
  a.capture = {"embed"};
  RequestSpec b = generate(prompt(50, 3), 30, 2);
  b.capture = {"ids"};
  RequestSpec c = generate(prompt(60, 5), 30, 3);
  const auto ended = run({a, b, c});
  EXPECT_EQ(ended[0].outcome.captures[0].name, "embed");
  EXPECT_EQ(ended[0].outcome.captures[0].n_rows, 40 + 29);  // the last token is not run
  EXPECT_EQ(ended[1].outcome.captures[0].name, "ids");
  EXPECT_EQ(ended[1].outcome.captures[0].n_rows, 50 + 29);
  EXPECT_TRUE(ended[2].outcome.captures.empty());
  for (int i = 0; i < 3; ++i) EXPECT_EQ(ended[i].tokens.size(), 30U);
}

TEST_P(EngineRuns, GenerateGivesTheDefinitionsTokens) {
  make();
  for (const bool penalties : {false, true}) {
    RequestSpec spec = generate(prompt(70), 40, 5);
    if (penalties) {
      spec.generate->sampler.repeat_penalty = 1.5F;
      spec.generate->sampler.frequency_penalty = 0.3F;
      spec.generate->sampler.penalty_last_n = 20;
    }
    const Ended ended = run_one(spec);
    EXPECT_EQ(ended.tokens, reference(prompt(70), 40, spec.generate->sampler));
    EXPECT_EQ(ended.outcome.finish, Finish::kLength);
  }
}

TEST_P(EngineRuns, ABatchOfSixteenGivesEachWhatItGetsAlone) {
  make();
  std::vector<RequestSpec> specs;
  for (int i = 0; i < 16; ++i) specs.push_back(generate(prompt(3 + 9 * i, i), 20 + i, 100 + i));
  const auto ended = run(specs);
  for (int i = 0; i < 16; ++i) {
    EXPECT_EQ(ended[i].tokens, reference(prompt(3 + 9 * i, i), 20 + i, specs[i].generate->sampler))
        << i;
  }
  bool shared = false;
  for (const StepRecord& step : log_->copy()) shared = shared || step.parts.size() > 8;
  EXPECT_TRUE(shared) << "decode rows of many sequences must share steps";
}

TEST_P(EngineRuns, StopsAtAStopTokenAtMaxTokensAndAtNCtx) {
  FakeOptions fake;
  fake.n_ctx = 100;
  make(fake);
  RequestSpec spec = generate(prompt(10), 50, 7);
  const Tokens whole = reference(prompt(10), 50, spec.generate->sampler);
  spec.generate->stop_tokens = {whole[12]};
  std::size_t first = 0;
  while (whole[first] != whole[12]) ++first;
  const Ended stopped = run_one(spec);
  EXPECT_EQ(stopped.tokens, Tokens(whole.begin(), whole.begin() + first));
  EXPECT_EQ(stopped.outcome.finish, Finish::kStopToken);
  EXPECT_EQ(stopped.outcome.stop_token, whole[12]);

  const Ended full = run_one(generate(prompt(95), 50, 7));
  EXPECT_EQ(full.tokens.size(), 5U);  // prompt and tokens fill n_ctx
  EXPECT_EQ(full.outcome.finish, Finish::kLength);
  const Ended none = run_one(generate(prompt(100), 50, 7));
  EXPECT_TRUE(none.tokens.empty());
  EXPECT_EQ(none.outcome.finish, Finish::kLength);
  const Ended zero = run_one(generate(prompt(20), 0, 7));
  EXPECT_TRUE(zero.tokens.empty());
  EXPECT_EQ(zero.outcome.finish, Finish::kLength);
  EXPECT_THROW(run_one(generate(prompt(101), 1)), ArgumentError);
}

TEST_P(EngineRuns, ScoresTargetsAcrossChunks) {
  make();
  const Tokens tokens = prompt(130);
  RequestSpec spec = forward(tokens, model::Logits::kNone);
  spec.reuse = true;
  for (int row = 20; row + 1 < 130; ++row) spec.targets.push_back({row, tokens[row + 1]});
  for (int time = 0; time < 2; ++time) {  // the second time from the cache
    const Ended ended = run_one(spec);
    ASSERT_EQ(ended.outcome.targets.size(), spec.targets.size());
    for (std::size_t i = 0; i < spec.targets.size(); ++i) {
      const Tokens before(tokens.begin(), tokens.begin() + spec.targets[i].row + 1);
      const auto expected = model::score_target(fake_logits(before, 97), spec.targets[i].token);
      EXPECT_EQ(ended.outcome.targets[i].logprob, expected.logprob);
    }
    EXPECT_EQ(ended.outcome.n_reused, time == 0 ? 0 : 20);  // up to the first target's row
  }
}

TEST_P(EngineRuns, TheCallerChoosesFromTheRow) {
  make();
  RequestSpec spec = generate(prompt(30), 10, 3);
  spec.generate->external = true;
  const auto channel = std::make_shared<Channel>();
  const auto request = start(spec, channel);
  Tokens tokens;
  bool finished = false;
  while (!finished) {
    for (const std::size_t i : channel->wait_for(1s)) {
      EXPECT_EQ(i, 0U);
      Update update = request->take();
      for (const auto& sampled : update.tokens) tokens.push_back(sampled.token);
      finished = update.finished;
      if (update.row) {
        for (std::size_t v = 0; v < 97; ++v) {
          if (v % 2 == 0) (*update.row)[v] = -std::numeric_limits<float>::infinity();
        }
        engine_->choose(request, std::move(*update.row));
      }
    }
  }
  ASSERT_EQ(tokens.size(), 10U);
  for (const std::int32_t token : tokens) EXPECT_EQ(token % 2, 1);
}

TEST_P(EngineRuns, TokensAreNoNewsToWhoLooksAtTheEnd) {
  make();
  for (const bool at_end : {false, true}) {
    RequestSpec spec = generate(prompt(30), 10, 3);
    spec.generate->at_end = at_end;
    const auto channel = std::make_shared<Channel>();
    const auto request = start(spec, channel);
    Tokens tokens;
    int n_news = 0;  // with tokens, or the last
    for (bool finished = false; !finished;) {
      ASSERT_FALSE(channel->wait_for(20s).empty());
      const Update update = request->take();
      // Tokens that came while the end of the prompt was being told are taken with that.
      n_news += update.prompt_rows_done == 30 ? 1 : 0;
      for (const auto& sampled : update.tokens) tokens.push_back(sampled.token);
      finished = update.finished;
    }
    EXPECT_EQ(tokens, reference(prompt(30), 10, spec.generate->sampler));
    if (at_end) {
      EXPECT_LE(n_news, 2);  // the prompt's end, and the request's
    }
  }
}

class EngineReuse : public EngineTest {};

TEST_P(EngineReuse, AnEqualPrefixIsNotRunAgain) {
  make();
  const RequestSpec first = generate(prompt(60), 20, 9);
  const Ended once = run_one(first);
  EXPECT_EQ(once.outcome.n_reused, 0);
  const Ended again = run_one(first);
  EXPECT_EQ(again.outcome.n_reused, 59);  // one row is left to give logits
  EXPECT_EQ(again.tokens, once.tokens);
  // A chat goes on: the old prompt, the answer, a new question.
  Tokens longer = prompt(60);
  longer.insert(longer.end(), once.tokens.begin(), once.tokens.end());
  longer.insert(longer.end(), {5, 6, 7});
  const Ended next = run_one(generate(longer, 10, 9));
  EXPECT_EQ(next.outcome.n_reused, 79);  // the last generated token was never run
  EXPECT_EQ(next.tokens, reference(longer, 10, first.generate->sampler));
  // Another end: only what is common.
  Tokens other = prompt(60);
  other[40] = (other[40] + 1) % 97;
  const Ended branch = run_one(generate(other, 10, 9));
  EXPECT_EQ(branch.outcome.n_reused, 40);
  EXPECT_EQ(branch.tokens, reference(other, 10, first.generate->sampler));
  engine_->clear_cache().get();
  EXPECT_EQ(log_->open_sequences, 0);
  EXPECT_EQ(log_->pages_used, 0);
}

TEST_P(EngineReuse, RequestsOfOneBatchWaitForTheirCommonPrefix) {
  make();
  std::vector<RequestSpec> specs;
  std::vector<Tokens> prompts;
  for (int i = 0; i < 8; ++i) {
    Tokens tokens = prompt(200);
    tokens.push_back(i);
    tokens.push_back(i + 1);
    prompts.push_back(tokens);
    specs.push_back(generate(tokens, 5, 1));
  }
  const auto ended = run(specs);
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(ended[i].tokens, reference(prompts[i], 5, specs[i].generate->sampler));
    EXPECT_EQ(ended[i].outcome.n_reused, i == 0 ? 0 : 200);
  }
  EXPECT_LT(log_->rows_run, 200 + 8 * (2 + 5));
}

TEST_P(EngineReuse, AFewCommonTokensAreRunAgain) {
  make();
  Tokens a = prompt(15, 2);
  run_one(generate(a, 1));
  a.push_back(3);
  a.push_back(4);
  EXPECT_EQ(run_one(generate(a, 1)).outcome.n_reused, 0);
  Tokens b = prompt(16, 5);
  run_one(generate(b, 1));
  b.push_back(3);
  EXPECT_EQ(run_one(generate(b, 1)).outcome.n_reused, 16);
}

TEST_P(EngineReuse, WhatWantsEveryRowReusesNothing) {
  make();
  run_one(generate(prompt(60), 5));
  RequestSpec captured = generate(prompt(60), 5);
  captured.capture = {"embed"};
  const Ended ended = run_one(captured);
  EXPECT_EQ(ended.outcome.n_reused, 0);
  EXPECT_EQ(ended.outcome.captures[0].n_rows, 64);
}

TEST_P(EngineReuse, TheCacheGivesWayToNewWork) {
  FakeOptions fake;
  fake.kv_tokens = 256;
  fake.n_ctx = 256;
  make(fake);
  for (int i = 0; i < 20; ++i) {
    const RequestSpec spec = generate(prompt(100, i), 20, 4);
    EXPECT_EQ(run_one(spec).tokens, reference(prompt(100, i), 20, spec.generate->sampler));
  }
  // One that needs the whole pool, with its own prefix in the cache.
  const RequestSpec all = generate(prompt(100, 19), 157, 4);
  EXPECT_EQ(run_one(all).tokens.size(), 156U);
  EXPECT_LE(log_->pages_used, 16);
}

class EngineLimits : public EngineTest {};

TEST_P(EngineLimits, MoreThanThePoolHoldsRunsInTurns) {
  FakeOptions fake;
  fake.kv_tokens = 256;
  fake.n_ctx = 128;
  make(fake);
  std::vector<RequestSpec> specs;
  for (int i = 0; i < 20; ++i) specs.push_back(generate(prompt(80, i), 40, i));
  const auto ended = run(specs);
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(ended[i].tokens, reference(prompt(80, i), 40, specs[i].generate->sampler));
  }
}

TEST_P(EngineLimits, AnImpossibleRequestIsRefusedAndNamesWhatToDo) {
  FakeOptions fake;
  fake.kv_tokens = 128;
  fake.n_ctx = 512;
  make(fake);
  try {
    run_one(forward(prompt(200)));
    FAIL();
  } catch (const OutOfMemoryError& e) {
    EXPECT_NE(std::string(e.what()).find("kv_tokens=200"), std::string::npos) << e.what();
    EXPECT_EQ(e.needed_bytes, 200U * 16);
  }
  // The pool bounds a generation where n_ctx does not.
  EXPECT_EQ(run_one(generate(prompt(100), 1000)).tokens.size(), 28U);
}

TEST_P(EngineLimits, SessionsThatHoldThePoolMakeTheOthersFailInsteadOfWaitingForever) {
  FakeOptions fake;
  fake.kv_tokens = 256;
  make(fake);
  auto session = engine_->open_session().get();
  RequestSpec fill = forward(prompt(250), model::Logits::kLast);
  fill.session = session;
  run_one(fill);
  const Ended refused = run_one(generate(prompt(30), 10));
  EXPECT_EQ(refused.outcome.finish, Finish::kFailed);
  expect_error<OutOfMemoryError>(refused.outcome, "1 session holds 250 tokens");
  engine_->close_session(session);
  EXPECT_EQ(run_one(generate(prompt(30), 10)).tokens.size(), 10U);
}

TEST_P(EngineLimits, TheQueueIsBoundedAndRefusesAllOrNone) {
  FakeOptions fake;
  fake.row_time = 200us;
  EngineOptions options;
  options.max_queue = 4;
  make(fake, options);
  const auto channel = std::make_shared<Channel>();
  const auto first =
      engine_->submit({generate(prompt(50), 20), generate(prompt(51, 2), 20)}, channel);
  EXPECT_THROW(engine_->submit({forward(prompt(5)), forward(prompt(5)), forward(prompt(5))},
                               std::make_shared<Channel>()),
               QueueFullError);
  const auto other = std::make_shared<Channel>();
  const auto more = engine_->submit({forward(prompt(5)), forward(prompt(6))}, other);
  wait_all(more, *other);
  wait_all(first, *channel);
  EXPECT_EQ(run({forward(prompt(5)), forward(prompt(5)), forward(prompt(5))}).size(), 3U);
}

TEST_P(EngineLimits, RefusesBadArguments) {
  make();
  EXPECT_THROW(run_one(forward({})), ArgumentError);
  EXPECT_THROW(run_one(forward({97})), ArgumentError);
  EXPECT_THROW(run_one(forward({-1})), ArgumentError);
  RequestSpec spec = forward({1});
  spec.capture = {"nothing"};
  EXPECT_THROW(run_one(spec), ArgumentError);
  spec = forward({1});
  spec.targets = {{1, 0}};
  EXPECT_THROW(run_one(spec), ArgumentError);
  spec = generate({1}, 1);
  spec.generate->sampler.top_p = 2.0F;
  EXPECT_THROW(run_one(spec), ArgumentError);
  spec = generate({1}, -1);
  EXPECT_THROW(run_one(spec), ArgumentError);
  EXPECT_EQ(run_one(forward({1})).outcome.finish, Finish::kDone);
}

TEST_P(EngineLimits, PriorityGoesFirst) {
  FakeOptions fake;
  fake.row_time = 100us;
  EngineOptions options;
  options.max_active = 1;
  make(fake, options);
  std::vector<RequestSpec> specs;
  for (int i = 0; i < 4; ++i) {
    specs.push_back(forward(prompt(30 + static_cast<std::size_t>(i), i)));
    specs.back().priority = i;
  }
  const auto ended = run(specs);
  for (int i = 1; i < 4; ++i) {
    EXPECT_LT(*ended[i].outcome.timings.finished, *ended[i - 1].outcome.timings.finished);
  }
}

TEST_P(EngineLimits, AShortPromptDoesNotWaitForALongOne) {
  FakeOptions fake;
  fake.row_time = 300us;
  fake.n_ctx = 2000;
  fake.kv_tokens = 4000;
  make(fake);
  const auto channel = std::make_shared<Channel>();
  const auto requests = engine_->submit(
      {forward(prompt(1500), model::Logits::kLast), generate(prompt(20, 4), 10)}, channel);
  const auto ended = wait_all(requests, *channel);
  EXPECT_LT(*ended[1].outcome.timings.finished, *ended[0].outcome.timings.finished);
  // And the long one was not pushed aside: steps carried rows of both.
  bool both = false;
  for (const StepRecord& step : log_->copy()) both = both || step.parts.size() == 2;
  EXPECT_TRUE(both);
}

class EngineFails : public EngineTest {};

TEST_P(EngineFails, OnlyTheGuiltyRequestGetsTheError) {
  FakeOptions fake;
  fake.poison_token = 96;
  make(fake);
  Tokens bad = prompt(20, 2);
  bad[15] = 96;
  Tokens good = prompt(25, 8);
  for (std::int32_t& token : good) token %= 96;
  RequestSpec wanted = generate(good, 12, 3);
  wanted.generate->sampler.logit_bias = {{96, -std::numeric_limits<float>::infinity()}};
  const auto ended = run({wanted, forward(bad)});
  EXPECT_EQ(ended[0].tokens, reference(good, 12, wanted.generate->sampler));
  expect_error<BackendError>(ended[1].outcome, "poison");
  engine_->clear_cache().get();
  EXPECT_EQ(log_->open_sequences, 0);
}

TEST_P(EngineFails, NotANumberIsAClearErrorOfThatRequest) {
  FakeOptions fake;
  fake.nan_token = 50;
  make(fake);
  Tokens bad = {1, 2, 50};
  Tokens good = {1, 2, 3};
  RequestSpec wanted = generate(good, 5, 3);
  wanted.generate->sampler.logit_bias = {{50, -std::numeric_limits<float>::infinity()}};
  const auto ended = run({generate(bad, 5), wanted});
  expect_error<BackendError>(ended[0].outcome, "got nan for token 3");
  EXPECT_EQ(ended[1].tokens, reference(good, 5, wanted.generate->sampler));
}

TEST_P(EngineFails, CancelAloneStopsInsideTheStep) {
  FakeOptions fake;
  fake.row_time = 2ms;
  fake.max_step_rows = 512;
  make(fake);
  const auto channel = std::make_shared<Channel>();
  const auto request = start(forward(prompt(500)), channel);  // a second of work in one step
  std::this_thread::sleep_for(50ms);
  const auto begin = Clock::now();
  engine_->cancel(request);
  const auto ended = wait_all({request}, *channel);
  EXPECT_LT(Clock::now() - begin, 100ms);
  EXPECT_EQ(ended[0].outcome.finish, Finish::kCancelled);
  expect_error<CancelledError>(ended[0].outcome, "cancel");
  EXPECT_EQ(log_->cancelled_steps, 1);
  EXPECT_EQ(run_one(forward(prompt(5))).outcome.finish, Finish::kDone);
}

TEST_P(EngineFails, CancelInABatchLeavesTheOthersAlone) {
  FakeOptions fake;
  fake.row_time = 200us;
  make(fake);
  const auto channel = std::make_shared<Channel>();
  const RequestSpec kept = generate(prompt(40), 60, 5);
  const auto requests = engine_->submit({kept, generate(prompt(30, 7), 400, 6)}, channel);
  std::this_thread::sleep_for(20ms);
  engine_->cancel(requests[1]);
  const auto ended = wait_all(requests, *channel);
  EXPECT_EQ(ended[0].tokens, reference(prompt(40), 60, kept.generate->sampler));
  EXPECT_EQ(ended[1].outcome.finish, Finish::kCancelled);
  EXPECT_EQ(log_->cancelled_steps, 0);
  // What the cancelled one had generated is right, and can be reused.
  const Tokens whole = reference(prompt(30, 7), 400, requests[1]->spec().generate->sampler);
  EXPECT_TRUE(std::equal(ended[1].tokens.begin(), ended[1].tokens.end(), whole.begin()));
  EXPECT_EQ(run_one(generate(prompt(30, 7), 5, 6)).tokens,
            Tokens(whole.begin(), whole.begin() + 5));
}

TEST_P(EngineFails, CloseEndsEverythingAndFreesTheRunner) {
  FakeOptions fake;
  fake.row_time = 1ms;
  fake.max_step_rows = 512;
  make(fake);
  const auto channel = std::make_shared<Channel>();
  const auto requests =
      engine_->submit({forward(prompt(400)), generate(prompt(400, 3), 50)}, channel);
  std::this_thread::sleep_for(20ms);
  const auto begin = Clock::now();
  engine_->close();
  EXPECT_LT(Clock::now() - begin, 200ms);
  EXPECT_TRUE(log_->destroyed);
  for (const Ended& ended : wait_all(requests, *channel)) EXPECT_TRUE(ended.outcome.error);
  engine_->close();
  EXPECT_THROW(run_one(forward({1})), ClosedError);
  EXPECT_THROW(engine_->open_session(), ClosedError);
}

TEST_P(EngineFails, AForkedChildGetsAnErrorInsteadOfAHang) {
  make();
  run_one(forward(prompt(5)));
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    int code = 1;
    try {
      run_one(forward(prompt(5)));
    } catch (const ClosedError& e) {
      code = std::string(e.what()).find("fork()") != std::string::npos ? 0 : 2;
    } catch (...) {
      code = 3;
    }
    engine_->close();
    engine_.reset();  // must not wait for the thread that stayed behind
    _exit(code);
  }
  int status = 0;
  for (int i = 0; i < 500 && waitpid(child, &status, WNOHANG) == 0; ++i) {
    std::this_thread::sleep_for(10ms);
  }
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(run_one(forward(prompt(5))).outcome.finish, Finish::kDone);
}

TEST_P(EngineFails, ManyThreadsAtOnce) {
  make();
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([this, t] {
      for (int i = 0; i < 10; ++i) {
        RequestSpec spec = generate(prompt(10 + t * 3, t), 8, static_cast<std::uint64_t>(t));
        const auto channel = std::make_shared<Channel>();
        const auto request = start(spec, channel);
        if (i % 3 == 2) engine_->cancel(request);
        const auto ended = wait_all({request}, *channel);
        const Tokens whole = reference(prompt(10 + t * 3, t), 8, spec.generate->sampler);
        if (i % 3 != 2) {
          EXPECT_EQ(ended[0].tokens, whole);
        }
        auto session = engine_->open_session().get();
        RequestSpec step = forward(prompt(7, t), model::Logits::kLast);
        step.session = session;
        EXPECT_EQ(run_one(step).outcome.logits, fake_logits(prompt(7, t), 97));
        engine_->close_session(session);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  engine_->clear_cache().get();
  EXPECT_EQ(log_->open_sequences, 0);
  EXPECT_EQ(log_->pages_used, 0);
}

// --- a runner that feeds tokens back by itself

// A Runner that fails as a whole is asked once, not once for each member of the step.
TEST_P(EngineFails, ALateRunnerFailsAllMembersOfAStepAtOnce) {
  FakeOptions fake;
  fake.late_after_rows = 60;
  make(fake);
  std::vector<RequestSpec> specs;
  for (int i = 0; i < 6; ++i) specs.push_back(generate(prompt(5, i), 40, i));
  const auto ended = run(specs);
  for (const Ended& one : ended) expect_error<DeadlineError>(one.outcome, "late");
  std::size_t late_steps = 0;
  std::int64_t rows = 0;
  for (const StepRecord& step : log_->copy()) {
    if (rows >= fake.late_after_rows) ++late_steps;
    for (const auto& part : step.parts) rows += part.n_rows;
  }
  EXPECT_EQ(late_steps, 1U);
}

// A loss is told to all callers, also to those whose requests came while it was waited for.
TEST_P(EngineFails, ALossIsToldToThoseThatWaitAsWell) {
  FakeOptions fake;
  fake.lost_after_rows = 20;
  EngineOptions options;
  options.max_active = 1;
  make(fake, options);
  std::vector<RequestSpec> specs;
  for (int i = 0; i < 5; ++i) specs.push_back(generate(prompt(10, i), 40, i));
  for (const Ended& one : run(specs)) expect_error<WorkerLost>(one.outcome, "lost");
  std::size_t lost_steps = 0;
  std::int64_t rows = 0;
  for (const StepRecord& step : log_->copy()) {
    if (rows >= fake.lost_after_rows) ++lost_steps;
    for (const auto& part : step.parts) rows += part.n_rows;
  }
  EXPECT_EQ(lost_steps, 1U);
}

class EngineAhead : public EngineTest {};

TEST_P(EngineAhead, TokensComeInOneCallAndStopWhenAnythingElseIsAsked) {
  FakeOptions fake;
  fake.row_time = std::chrono::microseconds(300);
  make(fake);
  const auto channel = std::make_shared<Channel>();
  const RequestSpec spec = generate(prompt(8), 200);
  const auto request = start(spec, channel);
  while (log_->rows_run < 40) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(log_->ahead_rounds > 0, GetParam());
  // Another request joins long before the first has ended, and both get what is theirs.
  const Ended other = run_one(generate(prompt(9, 5), 3));
  EXPECT_LT(log_->rows_run, 200);
  EXPECT_EQ(other.tokens, reference(prompt(9, 5), 3, spec.generate->sampler));
  const auto ended = wait_all({request}, *channel);
  EXPECT_EQ(ended[0].tokens, reference(prompt(8), 200, spec.generate->sampler));
}

TEST_P(EngineAhead, PenaltiesSeeWhatWasJustGenerated) {
  make();
  RequestSpec spec = generate(prompt(8), 60);
  spec.generate->sampler.repeat_penalty = 1.3F;
  spec.generate->sampler.frequency_penalty = 0.4F;
  spec.generate->sampler.penalty_last_n = 12;
  EXPECT_EQ(run_one(spec).tokens, reference(prompt(8), 60, spec.generate->sampler));
}

TEST_P(EngineAhead, ALostWorkerFailsEveryRequestWithItsTokens) {
  FakeOptions fake;
  fake.lost_after_rows = 60;
  make(fake);
  std::vector<RequestSpec> specs;
  specs.push_back(generate(prompt(8), 200, 1));
  specs.push_back(generate(prompt(9, 3), 200, 2));
  const std::vector<Ended> ended = run(std::move(specs));
  for (const Ended& each : ended) {
    EXPECT_EQ(each.outcome.finish, Finish::kFailed);
    ASSERT_TRUE(each.outcome.error);
    try {
      std::rethrow_exception(each.outcome.error);
    } catch (const WorkerLost& lost) {
      EXPECT_EQ(lost.node, "10.0.0.7:9777");
      EXPECT_EQ(lost.layers, (std::vector<int>{2, 3}));
      EXPECT_EQ(lost.tokens, each.tokens);
      EXPECT_GT(lost.tokens.size(), 5U);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Runner, EngineRuns, ::testing::Bool(), ahead_name);
INSTANTIATE_TEST_SUITE_P(Runner, EngineReuse, ::testing::Bool(), ahead_name);
INSTANTIATE_TEST_SUITE_P(Runner, EngineLimits, ::testing::Bool(), ahead_name);
INSTANTIATE_TEST_SUITE_P(Runner, EngineFails, ::testing::Bool(), ahead_name);
INSTANTIATE_TEST_SUITE_P(Runner, EngineAhead, ::testing::Bool(), ahead_name);

}  // namespace
}  // namespace moesaic::engine
