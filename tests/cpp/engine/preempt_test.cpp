// Requests that answer to their caller: what they hold is never in the way of others for long, and
// what is taken from them shows in no result.
#include <gtest/gtest.h>

#include <deque>
#include <random>
#include <thread>

#include "engine/harness.h"

namespace moesaic::engine {
namespace {

// A generation whose caller looks at each row of logits.
class Stream {
 public:
  Stream(Engine& engine, RequestSpec spec) : engine_(engine), channel_(new Channel) {
    spec.generate->external = true;
    std::vector<RequestSpec> specs;
    specs.push_back(std::move(spec));
    request_ = engine_.submit(std::move(specs), channel_)[0];
  }
  ~Stream() { engine_.cancel(request_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  // Until the next row is there or the request has ended. False: neither came.
  bool wait(std::chrono::seconds most = 20s) {
    const auto deadline = Clock::now() + most;
    while (!row_ && !finished_) {
      if (Clock::now() > deadline) return false;
      if (channel_->wait_for(20ms).empty()) continue;
      Update update = request_->take();
      for (const auto& sampled : update.tokens) tokens_.push_back(sampled.token);
      row_ = std::move(update.row);
      finished_ = update.finished;
    }
    return true;
  }
  void answer() {
    if (!row_) return;
    engine_.choose(request_, std::move(*row_));
    row_.reset();
  }
  bool step() {
    answer();
    return wait();
  }
  void run() {
    while (!finished_) ASSERT_TRUE(step());
  }

  bool finished() const { return finished_; }
  const Tokens& tokens() const { return tokens_; }
  const std::shared_ptr<Request>& request() const { return request_; }
  Outcome outcome() { return request_->take_outcome(); }

 private:
  Engine& engine_;
  std::shared_ptr<Channel> channel_;
  std::shared_ptr<Request> request_;
  std::optional<std::vector<float>> row_;
  Tokens tokens_;
  bool finished_ = false;
};

class Preempt : public EngineTest {
 protected:
  void expect_tokens(const Tokens& got, const RequestSpec& spec) const {
    EXPECT_EQ(got, reference(spec.tokens, spec.generate->max_tokens, spec.generate->sampler));
  }
  void expect_nothing_held() {
    engine_->clear_cache().get();
    EXPECT_EQ(log_->open_sequences, 0);
    EXPECT_EQ(log_->pages_used, 0);
    const EngineStats stats = engine_->stats();
    EXPECT_EQ(stats.active, 0U);
    EXPECT_EQ(stats.waiting, 0U);
  }
};

TEST_P(Preempt, StreamsReadInTurnOfMoreTokensThanThePoolHoldsAllComeToTheirEnds) {
  for (const std::int64_t pool : {512, 256, 128}) {
    FakeOptions fake;
    fake.n_ctx = 128;
    fake.kv_tokens = pool;
    make(fake);
    std::vector<RequestSpec> specs;
    std::deque<Stream> streams;
    for (int i = 0; i < 5; ++i) {
      specs.push_back(generate(prompt(20 + 3 * static_cast<std::size_t>(i), i), 80, i));
      streams.emplace_back(*engine_, specs.back());
    }
    for (bool more = true; more;) {
      more = false;
      for (Stream& stream : streams) {
        if (stream.finished()) continue;
        ASSERT_TRUE(stream.step()) << pool;
        more = true;
      }
    }
    for (std::size_t i = 0; i < specs.size(); ++i) expect_tokens(streams[i].tokens(), specs[i]);
    if (pool < 512) {
      EXPECT_GT(engine_->stats().preemptions, 0U) << pool;
    }
    expect_nothing_held();
  }
}

TEST_P(Preempt, TwoThatLackPagesAtOnceDoNotWaitForEachOther) {
  FakeOptions fake;
  fake.n_ctx = 128;
  fake.kv_tokens = 128;
  make(fake);
  const RequestSpec first = generate(prompt(40), 80);
  const RequestSpec second = generate(prompt(40, 6), 80, 2);
  Stream a(*engine_, first);
  Stream b(*engine_, second);
  while (!a.finished() || !b.finished()) {
    ASSERT_TRUE(a.wait() && b.wait());  // both callers are there at once
    b.answer();
    a.answer();
  }
  expect_tokens(a.tokens(), first);
  expect_tokens(b.tokens(), second);
  EXPECT_GT(engine_->stats().preemptions, 0U);
  expect_nothing_held();
}

TEST_P(Preempt, ACallOutOfACallbackRunsThoughThePoolIsFull) {
  FakeOptions fake;
  fake.n_ctx = 128;
  fake.kv_tokens = 128;  // one context
  make(fake);
  for (const int priority : {-1, 0, 1}) {
    const RequestSpec outer = generate(prompt(90), 30);
    Stream stream(*engine_, outer);
    ASSERT_TRUE(stream.wait());
    for (int i = 0; i < 4; ++i) {
      RequestSpec inner = generate(prompt(60, 50 + i), 20, 7);
      inner.priority = priority;
      expect_tokens(run_one(inner).tokens, inner);
      EXPECT_EQ(run_one(forward(prompt(100, i), model::Logits::kLast)).outcome.finish,
                Finish::kDone);
      auto session = engine_->open_session().get();
      RequestSpec rows = forward(prompt(80, 3), model::Logits::kLast);
      rows.session = session;
      EXPECT_EQ(run_one(rows).outcome.logits, fake_logits(prompt(80, 3), 97));
      engine_->close_session(session);
      ASSERT_TRUE(stream.step());
    }
    stream.run();
    expect_tokens(stream.tokens(), outer);
  }
  EXPECT_GT(engine_->stats().preemptions, 0U);
  expect_nothing_held();
}

TEST_P(Preempt, CallsNestedManyDeepAllRun) {
  FakeOptions fake;
  fake.n_ctx = 128;
  fake.kv_tokens = 128;
  make(fake);
  std::vector<RequestSpec> specs;
  std::deque<Stream> streams;
  for (int i = 0; i < 10; ++i) {  // each is opened while all before it wait for their callers
    specs.push_back(generate(prompt(50, i), 12, i));
    streams.emplace_back(*engine_, specs.back());
    ASSERT_TRUE(streams.back().wait());
  }
  for (std::size_t i = specs.size(); i-- > 0;) {
    streams[i].run();
    expect_tokens(streams[i].tokens(), specs[i]);
  }
  expect_nothing_held();
}

TEST_P(Preempt, WhatCanNeverFitIsRefusedThoughAnotherOneWaitsForItsCaller) {
  FakeOptions fake;
  fake.n_ctx = 256;
  fake.kv_tokens = 256;
  make(fake);
  auto session = engine_->open_session().get();
  RequestSpec fill = forward(prompt(128), model::Logits::kLast);
  fill.session = session;
  run_one(fill);
  const RequestSpec outer = generate(prompt(40), 10);
  Stream stream(*engine_, outer);
  ASSERT_TRUE(stream.wait());
  const Ended refused = run_one(generate(prompt(100, 4), 60));  // 160 of the 128 that are left
  EXPECT_EQ(refused.outcome.finish, Finish::kFailed);
  expect_error<OutOfMemoryError>(refused.outcome, "1 session holds 128 tokens");
  stream.run();  // not disturbed
  expect_tokens(stream.tokens(), outer);
  // A stream that grows into what sessions hold ends with the same error.
  const RequestSpec grows = generate(prompt(100, 5), 150);
  Stream growing(*engine_, grows);
  growing.run();
  const Outcome outcome = growing.outcome();
  EXPECT_EQ(outcome.finish, Finish::kFailed);
  expect_error<OutOfMemoryError>(outcome, "1 session holds 128 tokens");
  engine_->close_session(session);
  Stream again(*engine_, grows);
  again.run();
  expect_tokens(again.tokens(), grows);
  expect_nothing_held();
}

TEST_P(Preempt, WhatWasDeliveredIsNotDeliveredTwice) {
  FakeOptions fake;
  fake.n_ctx = 128;
  fake.kv_tokens = 128;
  make(fake);
  RequestSpec spec = generate(prompt(70), 20);
  spec.capture = {"embed", "ids"};
  Stream stream(*engine_, spec);
  ASSERT_TRUE(stream.wait());
  std::int64_t most = 0;
  for (int i = 0; !stream.finished(); ++i) {
    if (i % 3 == 0) {
      RequestSpec other = forward(prompt(100, i), model::Logits::kLast);
      other.capture = {"embed"};
      const Ended ended = run_one(other);
      EXPECT_EQ(ended.outcome.captures[0].n_rows, 100);
    }
    ASSERT_TRUE(stream.step());
    most = std::max(most, static_cast<std::int64_t>(stream.tokens().size()));
  }
  EXPECT_EQ(most, 20);
  Tokens all = spec.tokens;
  all.insert(all.end(), stream.tokens().begin(), stream.tokens().end());
  all.pop_back();  // the last one is never run
  const Outcome outcome = stream.outcome();
  ASSERT_EQ(outcome.captures.size(), 2U);
  EXPECT_EQ(outcome.captures[1].ids, all);
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(outcome.captures[0].values[2 * i + 1], static_cast<float>(i));  // positions
  }
  EXPECT_GT(engine_->stats().preemptions, 0U);
}

TEST_P(Preempt, MoreStreamsThanPlacesInAStepAllComeOn) {
  EngineOptions options;
  options.max_active = 2;
  make({}, options);
  std::vector<RequestSpec> specs;
  std::deque<Stream> streams;
  for (int i = 0; i < 7; ++i) {
    specs.push_back(generate(prompt(20, i), 9, i));
    streams.emplace_back(*engine_, specs.back());
  }
  for (int round = 0; round < 10; ++round) {
    for (Stream& stream : streams) ASSERT_TRUE(stream.step());
    const RequestSpec plain = generate(prompt(30, round), 3);  // needs a place as well
    expect_tokens(run_one(plain).tokens, plain);
  }
  for (std::size_t i = 0; i < specs.size(); ++i) expect_tokens(streams[i].tokens(), specs[i]);
  expect_nothing_held();
}

TEST_P(Preempt, AStreamThatIsLeftOpenIsInNobodysWay) {
  FakeOptions fake;
  fake.n_ctx = 128;
  fake.kv_tokens = 128;
  make(fake);
  std::deque<Stream> left;
  for (int i = 0; i < 20; ++i) {
    left.emplace_back(*engine_, generate(prompt(100, i), 20));
    ASSERT_TRUE(left.back().wait());
  }
  const RequestSpec spec = generate(prompt(100, 77), 20);
  expect_tokens(run_one(spec).tokens, spec);
  left.clear();  // cancels them
  const RequestSpec after = generate(prompt(100, 78), 20);
  expect_tokens(run_one(after).tokens, after);
}

TEST_P(Preempt, CancelAndCloseReachThePreempted) {
  FakeOptions fake;
  fake.n_ctx = 128;
  fake.kv_tokens = 128;
  make(fake);
  Stream first(*engine_, generate(prompt(100), 20));
  ASSERT_TRUE(first.wait());
  Stream second(*engine_, generate(prompt(100, 9), 20));
  ASSERT_TRUE(second.wait());  // took the pages of the first one
  engine_->cancel(first.request());
  const auto deadline = Clock::now() + 20s;
  while (!first.request()->finished() && Clock::now() < deadline) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(first.outcome().finish, Finish::kCancelled);
  Stream third(*engine_, generate(prompt(100, 8), 20));
  ASSERT_TRUE(third.wait());
  EXPECT_EQ(engine_->stats().active, 1U);
  EXPECT_EQ(engine_->stats().waiting, 1U);
  engine_->close();
  EXPECT_TRUE(second.request()->finished());
  expect_error<ClosedError>(second.outcome(), "closed");
  EXPECT_TRUE(log_->destroyed);
}

// Everything at once: callers that answer soon, late or never, plain requests, sessions.
TEST_P(Preempt, ManyCallersAtRandomGetTheDefinitionsTokens) {
  FakeOptions fake;
  fake.n_ctx = 96;
  fake.kv_tokens = 160;
  EngineOptions options;
  options.max_active = 5;
  make(fake, options);
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([this, t] {
      std::mt19937 random(static_cast<unsigned>(t));
      const auto below = [&](int n) {
        return static_cast<int>(random() % static_cast<unsigned>(n));
      };
      for (int i = 0; i < 12; ++i) {
        RequestSpec spec = generate(prompt(5 + static_cast<std::size_t>(below(60)), below(9)),
                                    1 + below(25), static_cast<std::uint64_t>(i));
        spec.priority = below(3) - 1;
        spec.reuse = below(2) == 0;
        if (t % 3 == 0) {
          expect_tokens(run_one(spec).tokens, spec);
          continue;
        }
        Stream stream(*engine_, spec);
        const int leave_at = below(4) == 0 ? below(10) : 1000;
        for (int n = 0; !stream.finished() && n < leave_at; ++n) {
          ASSERT_TRUE(stream.step());
          if (below(8) == 0) std::this_thread::sleep_for(std::chrono::milliseconds(below(12)));
          if (below(16) == 0) {
            RequestSpec inner = generate(prompt(40, below(50)), 5);
            expect_tokens(run_one(inner).tokens, inner);
          }
        }
        if (stream.finished()) expect_tokens(stream.tokens(), spec);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  const auto deadline = Clock::now() + 20s;
  while (engine_->stats().active + engine_->stats().waiting > 0 && Clock::now() < deadline) {
    std::this_thread::sleep_for(1ms);
  }
  expect_nothing_held();
}

INSTANTIATE_TEST_SUITE_P(Runners, Preempt, ::testing::Bool(), ahead_name);

}  // namespace
}  // namespace moesaic::engine
