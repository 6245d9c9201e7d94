// Workers that go away, and what a runner makes of it: an error with the node's name, or the same
// output as if nothing had happened.
#include <gtest/gtest.h>

#include "cluster/cluster_rig.h"
#include "net/rig.h"

namespace moesaic::cluster {
namespace {

using net::testing::eventually;
using testing::ClusterRig;
using testing::Collect;
using Tokens = std::vector<std::int32_t>;

class Loss : public ::testing::Test {
 protected:
  Loss() : rig_(model::testing::tiny_deepseek2({.n_layers = 5}), {.n_workers = 3}) {}

  std::unique_ptr<model::Runner> deploy(OnLoss on_loss) {
    DeployOptions options;
    options.load = ClusterRig::load_options();
    options.on_loss = on_loss;
    options.wait_for_worker = std::chrono::seconds(20);
    return rig_.deploy(options);
  }
  // Generates n tokens ahead of a prompt of 100, killing worker `victim` after `kill_after` of
  // them.
  Tokens generate(model::Runner& runner, std::size_t n, std::size_t kill_after, std::size_t victim,
                  bool comes_back) {
    model::SamplerSpec sampler;
    sampler.seed = 3;
    const Tokens prompt = model::testing::some_tokens(100, runner.config().vocab, 1);
    const auto id = runner.open();
    const auto shared = runner.fork(id, 0);
    auto rows = model::testing::rows(id, 0, prompt, model::Logits::kNone);
    rows.sampler = &sampler;
    Tokens out{model::testing::run_one(runner, rows).sampled->token};
    auto next = model::testing::rows(id, 100, out, model::Logits::kNone);
    next.sampler = &sampler;
    model::Step step;
    step.sequences.push_back(next);
    class Sink final : public model::AheadSink {
     public:
      Sink(ClusterRig& rig, std::size_t kill_after, std::size_t victim, bool comes_back)
          : rig_(rig), kill_after_(kill_after), victim_(victim), comes_back_(comes_back) {}
      bool take(std::size_t, model::SequenceResult result) override {
        tokens.push_back(result.sampled->token);
        if (tokens.size() == kill_after_) {
          auto& worker = rig_.workers()[victim_];
          const std::string address = worker->address();
          worker.reset();
          if (comes_back_) worker = rig_.make_worker(victim_, address);
        }
        return true;
      }
      Tokens tokens;

     private:
      ClusterRig& rig_;
      std::size_t kill_after_;
      std::size_t victim_;
      bool comes_back_;
    } sink(rig_, kill_after, victim, comes_back);
    const model::Ahead leave{static_cast<std::int64_t>(n) - 1, {}};
    try {
      runner.run_ahead(step, std::span(&leave, 1), sink);
    } catch (...) {
      so_far_ = sink.tokens;
      throw;
    }
    out.insert(out.end(), sink.tokens.begin(), sink.tokens.end());
    runner.close(id);
    runner.close(shared);
    return out;
  }

  ClusterRig rig_;
  Tokens so_far_;
};

TEST_F(Loss, RaisesAndNamesNodeAndLayers) {
  const auto runner = deploy(OnLoss::kRaise);
  const std::string address = rig_.workers()[1]->address();
  const auto begin = std::chrono::steady_clock::now();
  try {
    generate(*runner, 60, 10, 1, false);
    FAIL() << "nothing was lost";
  } catch (const WorkerLost& lost) {
    EXPECT_EQ(lost.node, address);
    EXPECT_EQ(lost.layers, (std::vector<int>{1, 2}));
    EXPECT_NE(std::string(lost.what()).find(address), std::string::npos) << lost.what();
  }
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
  EXPECT_GE(so_far_.size(), 10U);
  // It stays lost until the model is loaded again; the coordinator and the others live on.
  model::Step step;
  step.sequences.push_back(model::testing::rows(runner->open(), 0, {1}, model::Logits::kLast));
  EXPECT_THROW(runner->run(step), WorkerLost);
  rig_.workers()[1] = rig_.make_worker(1, address);
  const auto again = deploy(OnLoss::kRaise);
  EXPECT_FALSE(generate(*again, 20, 0, 0, false).empty());
}

TEST_F(Loss, WaitsForItAndTheTokensAreTheSame) {
  const Tokens expected = generate(*deploy(OnLoss::kRaise), 60, 0, 0, false);
  for (std::size_t victim = 0; victim < 3; ++victim) {
    const auto runner = deploy(OnLoss::kWait);
    EXPECT_EQ(generate(*runner, 60, 5 + 20 * victim, victim, true), expected) << victim;
  }
}

TEST_F(Loss, OthersTakeItsLayersAndTheTokensAreTheSame) {
  const Tokens expected = generate(*deploy(OnLoss::kRaise), 60, 0, 0, false);
  const auto runner = deploy(OnLoss::kReplan);
  EXPECT_EQ(generate(*runner, 60, 30, 2, false), expected);
  // With two left it goes on; sequences that were open before are replayed when they are needed.
  EXPECT_EQ(generate(*runner, 60, 0, 0, false), expected);
}

TEST_F(Loss, SequencesKeepSharingTheirPagesWhenTheyComeBack) {
  DeployOptions options;
  options.load = ClusterRig::load_options();
  options.load.kv_tokens = 192;  // three pages: room only when the fork shares
  options.on_loss = OnLoss::kWait;
  options.wait_for_worker = std::chrono::seconds(20);
  const auto runner = rig_.deploy(options);
  const Tokens tokens = model::testing::some_tokens(128, runner->config().vocab, 1);
  const auto id = runner->open();
  model::testing::run_one(*runner, model::testing::rows(id, 0, tokens, model::Logits::kNone));
  const auto child = runner->fork(id, 128);
  const auto local = rig_.local();
  const auto expected = model::testing::all_logits(
      *local,
      [&] {
        Tokens all = tokens;
        all.insert(all.end(), {5, 6, 7});
        return all;
      }(),
      131);
  const std::vector<float> last(expected.end() - 3 * local->config().vocab, expected.end());
  auto& worker = rig_.workers()[1];
  const std::string address = worker->address();
  worker.reset();
  worker = rig_.make_worker(1, address);
  EXPECT_EQ(model::testing::run_one(
                *runner, model::testing::rows(child, 128, {5, 6, 7}, model::Logits::kAll))
                .logits,
            last);
  runner->truncate(child, 128);
  EXPECT_EQ(model::testing::run_one(*runner,
                                    model::testing::rows(id, 128, {5, 6, 7}, model::Logits::kAll))
                .logits,
            last);
}

TEST_F(Loss, ACoordinatorThatGoesAwayFreesItsCacheAndLeavesTheWeights) {
  const auto free_of = [&](ClusterRig& rig) {
    return rig.coordinator().nodes(false, nullptr)[0].memory_free_bytes;
  };
  auto runner = deploy(OnLoss::kRaise);
  const auto with = free_of(rig_);
  const auto read = rig_.coordinator().nodes(false, nullptr)[0].bytes_read_weights;
  runner.reset();
  EXPECT_TRUE(eventually([&] { return free_of(rig_) > with; }));
  const auto nodes = rig_.coordinator().nodes(false, nullptr);
  ASSERT_EQ(nodes[0].models.size(), 1U);
  EXPECT_EQ(nodes[0].models[0].name, "tiny.gguf");
  runner = deploy(OnLoss::kRaise);
  EXPECT_EQ(rig_.coordinator().nodes(false, nullptr)[0].bytes_read_weights, read);
}

TEST(Memory, TooLittleNamesNodeNeedAndFree) {
  ClusterRig rig(model::testing::tiny_llama({.n_layers = 4}),
                 {.n_workers = 2, .memory_bytes = 300000});
  try {
    rig.deploy();
    FAIL() << "it fitted";
  } catch (const OutOfMemoryError& e) {
    EXPECT_NE(std::string(e.what()).find("127.0.0.1:"), std::string::npos) << e.what();
    EXPECT_GT(e.needed_bytes, e.free_bytes);
  }
}

}  // namespace
}  // namespace moesaic::cluster
