// Memory at its end, at every allocation of the engine's thread in turn: requests end with an error
// or as they should, nobody waits for ever, nothing terminates, and the engine works on.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>

#include "engine/harness.h"

namespace {

std::atomic<std::int64_t> allocations_left{-1};  // of the engine's thread; -1: no end
thread_local bool counts = false;

void* allocate(std::size_t size) {
  if (counts && allocations_left >= 0 && allocations_left-- == 0) throw std::bad_alloc();
  if (void* const memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}

}  // namespace

void* operator new(std::size_t size) { return allocate(size); }
void* operator new[](std::size_t size) { return allocate(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace moesaic::engine {
namespace {

// Counts no allocations of this thread while it lives.
class Spared {
 public:
  Spared() : before_(std::exchange(counts, false)) {}
  ~Spared() { counts = before_; }
  Spared(const Spared&) = delete;
  Spared& operator=(const Spared&) = delete;

 private:
  bool before_;
};

// The engine's own allocations are meant, not the fake's.
class Scarce final : public FakeRunner {
 public:
  using FakeRunner::FakeRunner;
  std::int64_t kv_tokens_free() const override {
    counts = true;  // the engine's thread asks after every round, so it knows itself from here on
    return FakeRunner::kv_tokens_free();
  }
  model::SequenceId open() override {
    const Spared spared;
    return FakeRunner::open();
  }
  void close(model::SequenceId id) override {
    const Spared spared;
    FakeRunner::close(id);
  }
  void truncate(model::SequenceId id, std::int64_t n) override {
    const Spared spared;
    FakeRunner::truncate(id, n);
  }
  model::SequenceId fork(model::SequenceId id, std::int64_t n) override {
    const Spared spared;
    return FakeRunner::fork(id, n);
  }
  model::StepResult run(const model::Step& step) override {
    const Spared spared;
    return FakeRunner::run(step);
  }
};

class EngineMemory : public EngineTest {
 protected:
  void make_scarce() {
    fake_ = {};
    fake_.n_ctx = 64;
    fake_.kv_tokens = 96;
    log_ = std::make_shared<FakeLog>();
    engine_ = std::make_unique<Engine>(std::make_unique<Scarce>(fake_, log_));
    run_one(forward({1}, model::Logits::kNone));
  }

  // Plain requests, one that answers to its caller, a session with all that it can do. Whatever
  // fails, fails with the lack of memory.
  void work() {
    const auto channel = std::make_shared<Channel>();
    RequestSpec external = generate(prompt(40, 5), 6);
    external.generate->external = true;
    std::vector<RequestSpec> specs{generate(prompt(30), 8), generate(prompt(30), 9, 2), external};
    const auto requests = engine_->submit(specs, channel);
    std::shared_ptr<SessionState> session;
    std::shared_ptr<SessionState> fork;
    try {
      session = engine_->open_session().get();
      RequestSpec on = generate(prompt(20, 3), 4);
      on.session = session;
      on.reuse = false;
      answer(engine_->submit({on}, channel_), *channel_);
      fork = engine_->fork_session(session, 2).get();
      engine_->truncate_session(fork, 1).get();
    } catch (const std::bad_alloc&) {
    } catch (const ArgumentError&) {  // of a session that is shorter than it would have been
    }
    if (session) engine_->close_session(session);
    if (fork) engine_->close_session(fork);
    const auto ended = answer(requests, *channel);
    for (std::size_t i = 0; i < ended.size(); ++i) {
      if (ended[i].outcome.finish == Finish::kFailed) continue;
      const GenerateSpec& wanted = *specs[i].generate;
      EXPECT_EQ(ended[i].tokens, reference(specs[i].tokens, wanted.max_tokens, wanted.sampler));
    }
  }

  std::vector<Ended> answer(const std::vector<std::shared_ptr<Request>>& requests,
                            Channel& channel) {
    std::vector<Ended> ended(requests.size());
    const auto deadline = Clock::now() + 20s;
    for (std::size_t left = requests.size(); left > 0;) {
      if (Clock::now() > deadline) {
        ADD_FAILURE() << "requests hang";
        std::abort();
      }
      for (const std::size_t i : channel.wait_for(10ms)) {
        Update update = requests[i]->take();
        for (const auto& sampled : update.tokens) ended[i].tokens.push_back(sampled.token);
        if (update.row) engine_->choose(requests[i], std::move(*update.row));
        if (!update.finished) continue;
        ended[i].outcome = requests[i]->take_outcome();
        --left;
      }
    }
    return ended;
  }

  std::shared_ptr<Channel> channel_ = std::make_shared<Channel>();
};

TEST_P(EngineMemory, EndsAtEveryAllocationOfTheEnginesThread) {
  int n_reached = 0;
  for (std::int64_t k = 0;; ++k) {
    make_scarce();
    channel_ = std::make_shared<Channel>();
    allocations_left = k;
    work();
    const bool reached = allocations_left < 0;
    allocations_left = -1;
    const RequestSpec after = generate(prompt(25, 9), 5);
    EXPECT_EQ(run_one(after).tokens, reference(after.tokens, 5, after.generate->sampler)) << k;
    engine_->clear_cache().get();
    EXPECT_EQ(engine_->stats().active, 0U) << k;
    EXPECT_EQ(engine_->stats().waiting, 0U) << k;
    EXPECT_EQ(log_->open_sequences, 0) << "a sequence was lost at allocation " << k;
    if (!reached) break;
    ++n_reached;
    ASSERT_LT(n_reached, 5000);
    if (::testing::Test::HasFailure()) break;
  }
  EXPECT_GT(n_reached, 50);
  RecordProperty("allocations", n_reached);
}

INSTANTIATE_TEST_SUITE_P(Runner, EngineMemory, ::testing::Values(false), ahead_name);

}  // namespace
}  // namespace moesaic::engine
