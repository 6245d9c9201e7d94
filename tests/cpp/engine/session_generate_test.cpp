// Generations on a session: it keeps the prompt and what was generated, or nothing of the call.
#include <gtest/gtest.h>

#include <thread>

#include "engine/harness.h"

namespace moesaic::engine {
namespace {

class SessionGenerate : public EngineTest {
 protected:
  RequestSpec on(const std::shared_ptr<SessionState>& session, RequestSpec spec) {
    spec.session = session;
    spec.reuse = false;
    return spec;
  }
  Tokens joined(Tokens first, const Tokens& second) const {
    first.insert(first.end(), second.begin(), second.end());
    return first;
  }
  void expect_cached(const std::shared_ptr<SessionState>& session, const Tokens& tokens) {
    EXPECT_EQ(session->tokens, tokens);
    RequestSpec spec = forward({5}, model::Logits::kLast);
    spec.session = session;
    EXPECT_EQ(run_one(spec).outcome.logits, fake_logits(joined(tokens, {5}), 97));
    engine_->truncate_session(session, static_cast<std::int64_t>(tokens.size())).get();
  }
};

TEST_P(SessionGenerate, KeepsThePromptAndEveryTokenOfIt) {
  make();
  auto session = engine_->open_session().get();
  Tokens all = prompt(30);
  const RequestSpec first = generate(all, 10, 3);
  const Tokens tokens = run_one(on(session, first)).tokens;
  EXPECT_EQ(tokens, reference(all, 10, first.generate->sampler));
  all = joined(all, tokens);
  expect_cached(session, all);
  // On and on, from a fork as well.
  auto fork = engine_->fork_session(session, 35).get();
  const RequestSpec second = generate({1, 2}, 12, 4);
  all = joined(all, {1, 2});
  const Tokens more = run_one(on(session, second)).tokens;
  EXPECT_EQ(more, reference(all, 12, second.generate->sampler));
  expect_cached(session, joined(all, more));
  all.resize(35);
  all = joined(all, {1, 2});
  EXPECT_EQ(run_one(on(fork, second)).tokens, reference(all, 12, second.generate->sampler));
  engine_->close_session(session);
  engine_->close_session(fork);
  engine_->clear_cache().get();
  EXPECT_EQ(log_->pages_used, 0);
}

TEST_P(SessionGenerate, StopTokensNCtxAndNoTokensAtAll) {
  FakeOptions fake;
  fake.n_ctx = 48;
  make(fake);
  auto session = engine_->open_session().get();
  const Tokens start = prompt(30);
  RequestSpec spec = generate(start, 10, 3);
  const Tokens free = reference(start, 10, spec.generate->sampler);
  spec.generate->stop_tokens = {free[4]};
  const Ended stopped = run_one(on(session, spec));
  EXPECT_EQ(stopped.outcome.finish, Finish::kStopToken);
  EXPECT_EQ(stopped.tokens, Tokens(free.begin(), free.begin() + 4));
  expect_cached(session, joined(start, stopped.tokens));
  const Ended none = run_one(on(session, generate({9}, 0)));
  EXPECT_EQ(none.outcome.finish, Finish::kLength);
  Tokens all = joined(joined(start, stopped.tokens), {9});
  expect_cached(session, all);
  const Ended full = run_one(on(session, generate({8}, 1000)));
  EXPECT_EQ(full.outcome.finish, Finish::kLength);
  EXPECT_EQ(session->tokens, joined(joined(all, {8}), full.tokens));
  EXPECT_EQ(session->tokens.size(), 48U);
}

TEST_P(SessionGenerate, WhatFailsOrIsCancelledLeavesTheSessionAsItWas) {
  FakeOptions fake;
  fake.row_time = 1ms;
  fake.poison_token = 96;
  make(fake);
  auto session = engine_->open_session().get();
  RequestSpec base = forward(prompt(20), model::Logits::kNone);
  base.session = session;
  run_one(base);
  EXPECT_EQ(run_one(on(session, generate({4, 96}, 5))).outcome.finish, Finish::kFailed);
  expect_cached(session, prompt(20));
  const auto channel = std::make_shared<Channel>();
  const auto request = start(on(session, generate({4}, 400)), channel);
  EXPECT_THROW(start(on(session, generate({4}, 4)), std::make_shared<Channel>()), ArgumentError);
  EXPECT_THROW(engine_->fork_session(session, 2).get(), ArgumentError);
  std::this_thread::sleep_for(50ms);
  engine_->cancel(request);
  // The next call need not wait for the end of a cancelled one.
  const RequestSpec next = generate({6}, 5);
  EXPECT_EQ(run_one(on(session, next)).tokens,
            reference(joined(prompt(20), {6}), 5, next.generate->sampler));
  EXPECT_EQ(wait_all({request}, *channel)[0].outcome.finish, Finish::kCancelled);
}

TEST_P(SessionGenerate, EndsBehindTheTokenThatIsAskedFor) {
  FakeOptions fake;
  fake.row_time = 1ms;
  make(fake);
  auto session = engine_->open_session().get();
  for (const std::int64_t n : {0, 1, 3}) {
    const Tokens before = session->tokens;
    const RequestSpec spec = generate(prompt(20, 8), 300);
    const auto channel = std::make_shared<Channel>();
    const auto request = start(on(session, spec), channel);
    Tokens seen;
    while (seen.size() < 5) {
      static_cast<void>(channel->wait_for(1s));
      for (const auto& sampled : request->take().tokens) seen.push_back(sampled.token);
    }
    engine_->end_at(request, n);
    EXPECT_EQ(wait_all({request}, *channel)[0].outcome.finish, Finish::kDone);
    seen.resize(static_cast<std::size_t>(n));
    expect_cached(session, joined(joined(before, spec.tokens), seen));
  }
}

TEST_P(SessionGenerate, GivesPagesToOthersWhileItsCallerIsAway) {
  FakeOptions fake;
  fake.n_ctx = 128;
  fake.kv_tokens = 128;
  make(fake);
  auto session = engine_->open_session().get();
  RequestSpec base = forward(prompt(16), model::Logits::kNone);
  base.session = session;
  run_one(base);
  RequestSpec spec = generate(prompt(60, 3), 20, 9);
  const Tokens expected = reference(joined(prompt(16), spec.tokens), 20, spec.generate->sampler);
  spec.generate->external = true;
  const auto channel = std::make_shared<Channel>();
  const auto request = start(on(session, spec), channel);
  Tokens tokens;
  for (bool finished = false; !finished;) {
    ASSERT_FALSE(channel->wait_for(20s).empty());
    Update update = request->take();
    for (const auto& sampled : update.tokens) tokens.push_back(sampled.token);
    finished = update.finished;
    if (!update.row) continue;
    if (tokens.size() % 4 == 1) {
      EXPECT_EQ(run_one(forward(prompt(100), model::Logits::kLast)).outcome.finish, Finish::kDone);
    }
    engine_->choose(request, std::move(*update.row));
  }
  EXPECT_EQ(tokens, expected);
  EXPECT_GT(engine_->stats().preemptions, 0U);
  expect_cached(session, joined(joined(prompt(16), spec.tokens), tokens));
  engine_->close_session(session);
  engine_->clear_cache().get();
  EXPECT_EQ(log_->pages_used, 0);
}

INSTANTIATE_TEST_SUITE_P(Runners, SessionGenerate, ::testing::Bool(), ahead_name);

}  // namespace
}  // namespace moesaic::engine
