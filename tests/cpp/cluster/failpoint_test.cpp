// Every place of a worker's deployment, its stage and the coordinator's ring at which a call may
// fail does fail once, by an exception and by a lack of memory: the caller has an error soon, and
// the next load of the same model works. A stage that stands still says so in its pings, and holds
// up neither the end of its deployment nor others.
#include "base/failpoint.h"

#include <gtest/gtest.h>

#include "cluster/cluster_rig.h"
#include "net/rig.h"

namespace moesaic::cluster {
namespace {

using failpoint::Failure;
using failpoint::Site;
using net::testing::eventually;
using testing::ClusterRig;
using testing::Collect;
using Clock = std::chrono::steady_clock;
using Tokens = std::vector<std::int32_t>;

struct Disarm {
  ~Disarm() { failpoint::disarm(); }
};

// Passes every site: load, prompt, capture, decode ahead, fork, save and load of a session.
std::vector<float> use(ClusterRig& rig, const Tokens& tokens) {
  const auto runner = rig.deploy();
  const auto id = runner->open();
  auto rows = model::testing::rows(id, 0, tokens, model::Logits::kAll);
  rows.capture = true;
  auto logits = model::testing::run_one(*runner, rows, runner->capture_names()).logits;
  const auto child = runner->fork(id, 20);
  runner->truncate(child, 10);
  model::SamplerSpec sampler;
  model::Step step;
  step.sequences.push_back(model::testing::rows(id, 40, {3}, model::Logits::kNone));
  step.sequences[0].sampler = &sampler;
  Collect sink(1);
  const model::Ahead leave{6, {}};
  runner->run_ahead(step, std::span(&leave, 1), sink);
  const auto bytes = runner->save(child, nullptr);
  runner->load(bytes, std::span(tokens).first(10), nullptr);
  // Whatever was told without an answer is heard of by now.
  runner->close(id);
  model::testing::run_one(*runner, model::testing::rows(child, 10, {1, 2}, model::Logits::kLast));
  return logits;
}

std::size_t n_lines(const std::string& log, const std::string& event) {
  std::size_t n = 0;
  for (std::size_t at = log.find(event); at != std::string::npos; at = log.find(event, at + 1)) ++n;
  return n;
}

// No thread of an earlier deployment is left that could pass a site.
void settle(ClusterRig& rig) {
  ASSERT_TRUE(eventually([&] {
    const std::string log = "\n" + rig.log();
    return n_lines(log, "\nload: ") == n_lines(log, "\nended: ");
  })) << rig.log();
  rig.coordinator().nodes(false, nullptr);  // answered when what ends has ended
}

class Failpoints : public ::testing::TestWithParam<Failure> {};
INSTANTIATE_TEST_SUITE_P(Cluster, Failpoints,
                         ::testing::Values(Failure::kException, Failure::kBadAlloc));

TEST_P(Failpoints, TheCallerHasAnErrorAndTheNextLoadWorks) {
  const auto recipe = model::testing::tiny_llama({.n_layers = 4});
  auto rig_now = std::make_unique<ClusterRig>(recipe, testing::RigOptions{.n_workers = 2});
  const Disarm disarm;
  const Tokens tokens = model::testing::some_tokens(40, rig_now->local()->config().vocab, 1);
  const auto expected = model::testing::all_logits(*rig_now->local(), tokens, 40);
  for (int i = 0; i < static_cast<int>(Site::kCount); ++i) {
    const Site site{static_cast<std::uint8_t>(i)};
    SCOPED_TRACE(failpoint::name(site));
    if (site == Site::kLoadOpened || site == Site::kLoadMapped) {  // nothing is held there
      rig_now = std::make_unique<ClusterRig>(recipe, testing::RigOptions{.n_workers = 2});
    }
    ClusterRig& rig = *rig_now;
    settle(rig);
    failpoint::arm(site, GetParam());
    const auto begin = Clock::now();
    try {
      use(rig, tokens);
      ADD_FAILURE() << "no error came";
    } catch (const std::exception& error) {
      EXPECT_STRNE(error.what(), "");
    }
    EXPECT_TRUE(failpoint::has_fired());
    EXPECT_LT(Clock::now() - begin, std::chrono::seconds(5));
    failpoint::disarm();
    EXPECT_EQ(use(rig, tokens), expected) << rig.log();
  }
}

TEST(FailedStage, IsLostAtOnceSaysWhyAndTheNextCallWorks) {
  ClusterRig rig(model::testing::tiny_llama({.n_layers = 4}), {.n_workers = 2});
  const Disarm disarm;
  const auto runner = rig.deploy();
  const Tokens tokens = model::testing::some_tokens(40, runner->config().vocab, 1);
  auto rows = model::testing::rows(runner->open(), 0, tokens, model::Logits::kLast);
  rows.capture = true;
  failpoint::arm(Site::kSendCaptures, Failure::kException);
  try {
    model::testing::run_one(*runner, rows, runner->capture_names());
    FAIL() << "nothing was lost";
  } catch (const WorkerLost& lost) {
    EXPECT_NE(std::string(lost.what()).find("[failpoint] send captures"), std::string::npos)
        << lost.what();
  }
  // The point has fired; the next call links to the worker anew.
  EXPECT_NO_THROW(model::testing::run_one(*runner, rows, runner->capture_names()));
  EXPECT_TRUE(eventually([&] {
    return rig.log().find("it failed: [failpoint]") != std::string::npos;
  })) << rig.log();
}

// Its net thread answers all the while: only what the pings say of its computing tells.
TEST(StuckStage, IsLostAfterTheDeadlineOfAStepAndTheNextCallWorks) {
  ClusterRig rig(model::testing::tiny_llama({.n_layers = 4}), {.n_workers = 2});
  const Disarm disarm;
  DeployOptions options;
  options.load = ClusterRig::load_options();
  options.least_step_deadline = std::chrono::seconds(3);
  const auto runner = rig.deploy(options);
  const Tokens tokens = model::testing::some_tokens(40, runner->config().vocab, 1);
  const auto expected = model::testing::all_logits(*runner, tokens, 40);
  failpoint::arm(Site::kStageLayer, Failure::kStall);
  const auto begin = Clock::now();
  try {
    model::testing::all_logits(*runner, tokens, 40);
    ADD_FAILURE() << "nothing was lost";
  } catch (const WorkerLost& lost) {
    EXPECT_NE(std::string(lost.what()).find("computed nothing for 3000 ms"), std::string::npos)
        << lost.what();
  }
  EXPECT_TRUE(failpoint::has_fired());
  EXPECT_GE(Clock::now() - begin, std::chrono::seconds(2));
  EXPECT_LT(Clock::now() - begin, std::chrono::seconds(60));  // and not after five minutes
  failpoint::disarm();                                        // the page comes
  EXPECT_EQ(model::testing::all_logits(*runner, tokens, 40), expected);
}

TEST(SharedWorker, TwoUsersBetweenTheLayersOfEachOtherGetTheirOwnBytes) {
  for (const bool deterministic : {true, false}) {
    ClusterRig rig(model::testing::tiny_deepseek2({.n_layers = 5}),
                   {.n_workers = 2, .turn = std::chrono::milliseconds(0)});
    DeployOptions options;
    options.load = ClusterRig::load_options();
    options.load.deterministic = deterministic;
    const auto run = [&](std::uint32_t seed, int n) {
      const auto runner = rig.coordinator().deploy(rig.file(), rig.plan(options.load), options);
      std::vector<std::vector<float>> all;
      for (int i = 0; i < n; ++i) {
        all.push_back(model::testing::all_logits(
            *runner, model::testing::some_tokens(60, runner->config().vocab, seed), 40));
      }
      return all;
    };
    const auto first = run(1, 1).front();
    const auto second = run(2, 1).front();
    std::jthread other([&] {
      for (const auto& each : run(2, 20)) EXPECT_EQ(each, second);
    });
    for (const auto& each : run(1, 20)) EXPECT_EQ(each, first);
  }
}

// One prompt of one micro-batch beside a user who decodes. Counted in pauses, of which there is one
// after each piece of a layer but the last.
TEST(SharedWorker, AMicroBatchIsCutWhileAnotherUserWaits) {
  constexpr int kLayers = 4;
  constexpr int kRows = 1024;
  constexpr int kMany = 1'000'000'000;
  ClusterRig rig(model::testing::tiny_llama({.n_layers = kLayers}),
                 {.n_workers = 1, .turn = std::chrono::milliseconds(0)});
  const Disarm disarm;
  DeployOptions options;
  options.load = ClusterRig::load_options();
  options.load.n_ctx = options.load.kv_tokens = kRows + 64;
  options.micro_batch_rows = kRows;
  const auto prompt = rig.deploy(options);
  const auto other = rig.deploy();
  const auto tokens = model::testing::some_tokens(kRows, prompt->config().vocab, 1);
  const auto run = [&] {
    const auto id = prompt->open();
    auto logits =
        model::testing::run_one(*prompt, model::testing::rows(id, 0, tokens, model::Logits::kLast))
            .logits;
    prompt->close(id);
    return logits;
  };
  failpoint::arm(Site::kStageLayer, Failure::kException, kMany);
  const auto alone = run();
  EXPECT_EQ(failpoint::n_passed(), kLayers);  // the last one before the head

  std::atomic<bool> enough{false};
  std::atomic<int> n_steps{0};
  std::jthread decoder([&] {
    const auto id = other->open();
    for (std::int64_t at = 0; !enough; at = (at + 1) % 100) {
      other->truncate(id, at);
      model::testing::run_one(*other, model::testing::rows(id, at, {3}, model::Logits::kLast));
      ++n_steps;
    }
  });
  // Those of a decoder that starts late, or a machine that is busy elsewhere, do not count.
  EXPECT_TRUE(eventually([&] {
    const int steps_before = n_steps;
    failpoint::arm(Site::kStageLayer, Failure::kException, kMany);
    EXPECT_EQ(run(), alone);
    const int of_decoder = kLayers * (n_steps - steps_before + 2);
    return failpoint::n_passed() - of_decoder >= kLayers * (kRows / 128) / 2;
  }));
  enough = true;
}

class Standstill : public ::testing::Test {
 protected:
  // A second coordinator's link to the worker, to look at what it says of itself.
  static std::uint64_t free_bytes(ClusterRig& rig) {
    return rig.coordinator().nodes(false, nullptr)[0].memory_free_bytes;
  }
};

TEST_F(Standstill, HoldsUpNoOtherAndItsMemoryStaysCounted) {
  ClusterRig rig(model::testing::tiny_llama({.n_layers = 4}), {.n_workers = 1});
  const Disarm disarm;
  const Tokens tokens = model::testing::some_tokens(40, rig.local()->config().vocab, 1);
  const auto expected = model::testing::all_logits(*rig.local(), tokens, 40);
  rig.deploy().reset();  // the weights are held
  ASSERT_TRUE(eventually([&] { return rig.log().find("ended") != std::string::npos; }));
  const std::uint64_t all_free = free_bytes(rig);

  // By hand, as a coordinator does it: to see the pongs.
  CancelFlag cancel;
  auto runner = rig.deploy();
  const std::uint64_t with_one = free_bytes(rig);
  EXPECT_LT(with_one, all_free);
  failpoint::arm(Site::kStageLayer, Failure::kStall);
  std::jthread stuck([&] {
    model::Step step;
    step.sequences.push_back(model::testing::rows(runner->open(), 0, tokens, model::Logits::kLast));
    step.cancel = &cancel;
    EXPECT_THROW(runner->run(step), Error);
  });
  ASSERT_TRUE(eventually([] { return failpoint::has_fired(); }));
  cancel.set();
  stuck.join();
  runner.reset();  // the coordinator goes; its stage still stands there

  // The worker answers, and counts what the stuck stage has as taken.
  ASSERT_TRUE(eventually([&] {
    const std::string log = rig.log();
    return log.find("ended", log.find("ended") + 1) != std::string::npos;
  }));
  EXPECT_EQ(free_bytes(rig), with_one);
  failpoint::disarm();  // the page comes
  EXPECT_TRUE(eventually([&] { return free_bytes(rig) == all_free; }));
  EXPECT_EQ(model::testing::all_logits(*rig.deploy(), tokens, 40), expected);
}

}  // namespace
}  // namespace moesaic::cluster
