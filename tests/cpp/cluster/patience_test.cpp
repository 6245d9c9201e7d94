// How long a runner tries to get over a loss, and that it can be used again after it has given up.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "cluster/cluster_rig.h"

namespace moesaic::cluster {
namespace {

using namespace std::chrono_literals;
using testing::ClusterRig;
using Tokens = std::vector<std::int32_t>;

// Listens where a worker was, takes links and says nothing.
class SilentServer {
 public:
  explicit SilentServer(const std::string& address) {
    const auto [host, port] = net::split_address(address);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(port);
    inet_pton(AF_INET, host.c_str(), &at.sin_addr);
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int one = 1;
    ::setsockopt(fd_, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (::bind(fd_, reinterpret_cast<sockaddr*>(&at), sizeof at) != 0 || ::listen(fd_, 16) != 0) {
      ADD_FAILURE() << "cannot listen on " << address;
    }
  }
  ~SilentServer() { ::close(fd_); }
  SilentServer(const SilentServer&) = delete;
  SilentServer& operator=(const SilentServer&) = delete;
  bool was_dialled() const {
    pollfd waits{fd_, POLLIN, 0};
    return ::poll(&waits, 1, 0) > 0;
  }

 private:
  int fd_ = -1;
};

class Patience : public ::testing::Test {
 protected:
  Patience() : rig_(model::testing::tiny_deepseek2({.n_layers = 5}), {.n_workers = 3}) {}

  std::unique_ptr<model::Runner> deploy(OnLoss on_loss, std::chrono::milliseconds patience) {
    DeployOptions options;
    options.load = ClusterRig::load_options();
    options.on_loss = on_loss;
    options.wait_for_worker = patience;
    options.replan_patience = patience;
    options.news = [this](const News& news) { said_.push_back(news); };
    return rig_.deploy(options);
  }
  std::string kill(std::size_t victim) {
    std::string address = rig_.workers()[victim]->address();
    rig_.workers()[victim].reset();
    return address;
  }
  void restart(std::size_t victim, const std::string& address) {
    rig_.workers()[victim] = rig_.make_worker(victim, address);
  }
  // The row of logits behind some tokens; the sequence stays open in `id`.
  std::vector<float> logits(model::Runner& runner, model::SequenceId id) {
    const Tokens tokens = model::testing::some_tokens(20, runner.config().vocab, 1);
    return model::testing::run_one(runner,
                                   model::testing::rows(id, 0, tokens, model::Logits::kLast))
        .logits;
  }
  // Generates ahead; `at` is called before each token is taken.
  Tokens generate(model::Runner& runner, std::int64_t n,
                  const std::function<void(std::size_t)>& at) {
    model::SamplerSpec sampler;
    sampler.seed = 3;
    const auto id = runner.open();
    logits(runner, id);
    auto next = model::testing::rows(id, 20, {7}, model::Logits::kNone);
    next.sampler = &sampler;
    model::Step step;
    step.sequences.push_back(next);
    class Sink final : public model::AheadSink {
     public:
      explicit Sink(const std::function<void(std::size_t)>& at) : at_(at) {}
      bool take(std::size_t, model::SequenceResult result) override {
        at_(tokens.size());
        tokens.push_back(result.sampled->token);
        return true;
      }
      Tokens tokens;

     private:
      const std::function<void(std::size_t)>& at_;
    } sink(at);
    const model::Ahead leave{n, {}};
    runner.run_ahead(step, std::span(&leave, 1), sink);
    runner.close(id);
    return sink.tokens;
  }
  std::vector<std::string> said() const {
    std::vector<std::string> all;
    for (const News& news : said_) all.push_back(news.what);
    return all;
  }
  bool has_said(const std::string& what) const {
    const auto all = said();
    return std::find(all.begin(), all.end(), what) != all.end();
  }

  ClusterRig rig_;
  std::vector<News> said_;
};

TEST_F(Patience, CountsFromTheLossHoweverLongTheCallHasRun) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  constexpr auto kPatience = 6000ms;  // workers take seconds to come back
#else
  constexpr auto kPatience = 1000ms;
#endif
  const Tokens expected = generate(*deploy(OnLoss::kRaise, kPatience), 40, [](std::size_t) {});
  for (const OnLoss on_loss : {OnLoss::kWait, OnLoss::kReplan}) {
    const auto runner = deploy(on_loss, kPatience);
    const Tokens got = generate(*runner, 40, [&](std::size_t n) {
      if (n != 10 && n != 20) return;
      std::this_thread::sleep_for(kPatience + 100ms);
      const std::size_t victim = n == 10 ? 2 : 1;
      restart(victim, kill(victim));
    });
    EXPECT_EQ(got, expected) << static_cast<int>(on_loss);
  }
}

TEST_F(Patience, RunOutItIsAnErrorAndTheNextCallTriesAgain) {
  for (const OnLoss on_loss : {OnLoss::kRaise, OnLoss::kWait, OnLoss::kReplan}) {
    const auto runner = deploy(on_loss, 300ms);
    const auto id = runner->open();
    const std::vector<float> expected = logits(*runner, id);
    std::vector<std::string> addresses;
    for (std::size_t i = 0; i < 3; ++i) addresses.push_back(kill(i));
    for (int i = 0; i < 2; ++i) {
      try {
        logits(*runner, id);
        FAIL() << "nothing was lost";
      } catch (const WorkerLost& lost) {
        EXPECT_NE(std::string(lost.what()).find("the next call"), std::string::npos) << lost.what();
      }
    }
    for (std::size_t i = 0; i < 3; ++i) restart(i, addresses[i]);
    EXPECT_EQ(logits(*runner, id), expected);
    // What was open before the loss is there again.
    EXPECT_EQ(runner->length(id), 20);
  }
}

TEST_F(Patience, ACancelledWaitLeavesTheRunnerUsable) {
  const auto runner = deploy(OnLoss::kWait, 60s);
  const auto id = runner->open();
  const std::vector<float> expected = logits(*runner, id);
  const std::string address = kill(1);
  CancelFlag flag;
  model::Step step;
  step.cancel = &flag;
  step.sequences.push_back(model::testing::rows(id, 20, {7}, model::Logits::kLast));
  std::thread presses([&] {
    std::this_thread::sleep_for(300ms);
    flag.set();
  });
  EXPECT_THROW(runner->run(step), CancelledError);
  presses.join();
  restart(1, address);
  EXPECT_EQ(logits(*runner, id), expected);
  EXPECT_TRUE(has_said("lost") && has_said("waiting") && has_said("back"));
}

// A request that ends a worker whenever it is run must not do so for ever.
TEST_F(Patience, WorkThatEndsAWorkerEachTimeIsGivenUp) {
  const auto runner = deploy(OnLoss::kWait, 60s);
  const auto id = runner->open();
  const std::vector<float> expected = logits(*runner, id);
  model::Step step;
  const Tokens tokens = model::testing::some_tokens(100, runner->config().vocab, 1);
  step.sequences.push_back(model::testing::rows(id, 20, tokens, model::Logits::kNone));
  int n_losses = 0;
  step.progress = [&, busy = false](std::int64_t) mutable {
    if (std::exchange(busy, true)) return;
    ++n_losses;
    restart(1, kill(1));
    busy = false;
  };
  try {
    runner->run(step);
    FAIL() << "it went on after " << n_losses << " losses";
  } catch (const WorkerLost& lost) {
    EXPECT_NE(std::string(lost.what()).find("times in a row"), std::string::npos) << lost.what();
  }
  EXPECT_LE(n_losses, 20);
  EXPECT_EQ(logits(*runner, id), expected);
}

TEST_F(Patience, ReplanDoesNotDialTheWorkerThatWasLost) {
  const auto runner = deploy(OnLoss::kReplan, 20s);
  const auto id = runner->open();
  const std::vector<float> expected = logits(*runner, id);
  // In its place somebody who accepts links and says nothing: dialled, it would cost 5 s.
  const std::string address = kill(0);
  const SilentServer silent(address);
  EXPECT_EQ(logits(*runner, id), expected);
  EXPECT_FALSE(silent.was_dialled());
  EXPECT_TRUE(has_said("re-planning") && has_said("back"));
}

}  // namespace
}  // namespace moesaic::cluster
