// Plans over made-up models and nodes: the best cut against all cuts, memory as a hard bound, what
// is said when nothing fits (and that following it helps), and the model of time by hand.
#include "cluster/plan/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <regex>

#include "base/errors.h"
#include "cluster/plan/plan_time.h"

namespace moesaic::cluster {
namespace {

constexpr double kScratchFixed = 3e6;
constexpr double kScratchPerRow = 2e4;

// Layers of 100 MB: 10 MB dense, experts of 1 MB.
ModelCost made_up(std::int64_t n_layers) {
  ModelCost model;
  model.name = "made up";
  model.d_model = 1024;
  model.vocab = 1000;
  model.n_experts = 90;
  model.page_tokens = 64;
  model.embed.weights_bytes = 20e6;
  model.head = {.weights_bytes = 30e6, .dense_bytes = 30e6, .dense_ops_per_row = 2e6};
  for (std::int64_t l = 0; l < n_layers; ++l) {
    model.layers.push_back({.weights_bytes = 100e6,
                            .dense_bytes = 10e6,
                            .dense_ops_per_row = 50e6,
                            .expert_bytes = 1e6,
                            .expert_ops_per_row = 5e6,
                            .n_active = 4,
                            .row_bytes = 1e4,
                            .kv_bytes_per_token = 1000,
                            .attention = {.ops_per_key = 1e4, .ops_per_key_of_few = 1e4}});
  }
  model.scratch_bytes = [](const ScratchQuery& query) {
    return kScratchFixed * query.threads + kScratchPerRow * static_cast<double>(query.rows) +
           (query.head ? 4.0 * 1000 * 32 : 0.0);
  };
  return model;
}

NodeFacts node(double memory, double speed = 1) {
  static int count = 0;
  return {.address = strcat("10.0.0.", ++count % 250, ":9777"),
          .memory_bytes = memory,
          .read_bytes_per_s = 2e10 * speed,
          .matmul_ops_per_s = 4e11 * speed,
          .rtt_s = 2e-4,
          .link_bytes_per_s = 6e8};
}

std::vector<std::int64_t> ends_of(const Plan& plan) {
  std::vector<std::int64_t> ends;
  for (const NodePlan& p : plan.nodes) ends.push_back(p.layer_end);
  return ends;
}

std::int64_t n_layers_of(const NodePlan& p) { return p.layer_end - p.layer_begin; }

// What the planner promises to make small: a prompt of 4,096 tokens, then 256 more.
double request_seconds(const Plan& plan) {
  for (const Prediction& p : plan.predictions) {
    if (p.prompt_tokens == 4096) return p.time_to_first_token_s + 256 / p.decode_tokens_per_s;
  }
  return -1;
}

std::string refusal(const ModelCost& model, const std::vector<NodeFacts>& nodes,
                    const PlanOptions& options) {
  try {
    make_plan(model, nodes, options);
  } catch (const OutOfMemoryError& error) {
    EXPECT_GT(error.needed_bytes, 0U);
    return error.what();
  }
  return "";
}

bool fits(const ModelCost& model, const std::vector<NodeFacts>& nodes, const PlanOptions& options) {
  return refusal(model, nodes, options).empty();
}

// The amounts "x GB" that follow `before` in a text.
std::vector<double> amounts_after(const std::string& text, const std::string& before) {
  std::vector<double> found;
  const std::regex pattern(before + " ([0-9.]+) GB");
  for (std::sregex_iterator it(text.begin(), text.end(), pattern), end; it != end; ++it) {
    found.push_back(std::stod((*it)[1].str()) * 1e9);
  }
  return found;
}

TEST(Plan, EqualNodesGetEqualShares) {
  const Plan plan = make_plan(made_up(12), {node(4e9), node(4e9), node(4e9)}, {.n_ctx = 8192});
  for (const NodePlan& p : plan.nodes) EXPECT_EQ(n_layers_of(p), 4);
  EXPECT_TRUE(plan.nodes[0].embed && plan.nodes[2].head);
  EXPECT_FALSE(plan.nodes[1].embed || plan.nodes[1].head);
  EXPECT_EQ(plan.strategy, Strategy::kPipeline);
}

TEST(Plan, FasterNodesGetMoreLayers) {
  const Plan plan =
      make_plan(made_up(24), {node(9e9, 1), node(9e9, 3), node(9e9, 2)}, {.n_ctx = 8192});
  EXPECT_LT(n_layers_of(plan.nodes[0]), n_layers_of(plan.nodes[2]));
  EXPECT_LT(n_layers_of(plan.nodes[2]), n_layers_of(plan.nodes[1]));
  EXPECT_GE(n_layers_of(plan.nodes[0]), 1);
}

TEST(Plan, MemoryIsAHardBound) {
  const Plan plan =
      make_plan(made_up(24), {node(0.5e9, 4), node(9e9, 1), node(9e9, 1)}, {.n_ctx = 8192});
  EXPECT_LE(n_layers_of(plan.nodes[0]), 4);  // and not more, however fast it is
  EXPECT_GE(n_layers_of(plan.nodes[0]), 1);
  for (const NodePlan& p : plan.nodes) {
    EXPECT_TRUE(p.fits());
    EXPECT_DOUBLE_EQ(p.headroom_bytes, 0.05 * p.memory_bytes);
  }
}

// Kept keys are scratch where there is room for them, and never a reason to refuse.
TEST(Plan, KeptKeysOnlyWhereTheyFit) {
  ModelCost model = made_up(4);
  const Plan plain = make_plan(model, {node(4e9), node(4e9)}, {.n_ctx = 4096});
  model.kept_bytes = [](std::int64_t n_ctx) { return 1e3 * static_cast<double>(n_ctx); };
  const Plan roomy = make_plan(model, {node(4e9), node(4e9)}, {.n_ctx = 4096});
  ASSERT_EQ(ends_of(roomy), ends_of(plain));
  for (std::size_t i = 0; i < 2; ++i) {
    EXPECT_DOUBLE_EQ(roomy.nodes[i].scratch_bytes, plain.nodes[i].scratch_bytes + 2 * 1e3 * 4096);
  }
  const double least = (plain.nodes[0].total_bytes() + 1e6) / 0.95;
  const Plan tight = make_plan(model, {node(least), node(4e9)}, {.n_ctx = 4096});
  ASSERT_EQ(ends_of(tight), ends_of(plain));
  EXPECT_DOUBLE_EQ(tight.nodes[0].scratch_bytes, plain.nodes[0].scratch_bytes);
  EXPECT_DOUBLE_EQ(tight.nodes[1].scratch_bytes, roomy.nodes[1].scratch_bytes);
}

TEST(Plan, NodesWithoutRoomAndNodesPastTheLayersAreLeftOut) {
  const Plan small = make_plan(made_up(6), {node(2e9), node(60e6), node(2e9)}, {.n_ctx = 4096});
  EXPECT_EQ(n_layers_of(small.nodes[1]), 0);
  EXPECT_EQ(small.nodes[1].weights_bytes + small.nodes[1].kv_bytes + small.nodes[1].scratch_bytes,
            0);
  EXPECT_GT(n_layers_of(small.nodes[0]), 0);
  EXPECT_TRUE(small.nodes[2].head);

  const Plan many = make_plan(made_up(2), {node(2e9), node(2e9), node(2e9)}, {.n_ctx = 4096});
  std::int64_t used = 0;
  std::int64_t heads = 0;
  for (const NodePlan& p : many.nodes) {
    used += n_layers_of(p) > 0 ? 1 : 0;
    heads += p.head ? 1 : 0;
  }
  EXPECT_GE(used, 1);
  EXPECT_EQ(heads, 1);
  EXPECT_EQ(many.nodes.back().layer_end, 2);
}

// Seconds that the slowest stage takes for a micro-batch in the middle of a prompt of 4,096.
double slowest_stage(const ModelCost& model, const std::vector<NodeFacts>& nodes,
                     const std::vector<std::int64_t>& ends, double rows) {
  double slowest = 0;
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < nodes.size(); begin = ends[i], ++i) {
    double seconds = 0;
    for (std::int64_t l = begin; l < ends[i]; ++l) {
      seconds +=
          layer_seconds(model, model.layers[static_cast<std::size_t>(l)], nodes[i], rows, 2048);
    }
    slowest = std::max(slowest, seconds);
  }
  return slowest;
}

TEST(Plan, IsAsGoodAsTheBestOfAllCuts) {
  const ModelCost model = made_up(9);
  const std::vector<std::vector<NodeFacts>> rooms{
      {node(4e9, 1), node(4e9, 1), node(4e9, 1)},
      {node(4e9, 1), node(4e9, 2.5), node(0.6e9, 1.3)},
      {node(0.45e9, 5), node(4e9, 1), node(4e9, 3)},
      {node(4e9, 0.3), node(4e9, 4), node(4e9, 1)},
  };
  for (const auto& nodes : rooms) {
    const PlanOptions options{.n_ctx = 8192};
    const Plan ours = make_plan(model, nodes, options);
    const auto rows = static_cast<double>(ours.micro_batch_rows);
    std::vector<std::vector<std::int64_t>> cuts;  // that fit
    double least = 1e9;
    for (std::int64_t a = 1; a <= 7; ++a) {
      for (std::int64_t b = a + 1; b <= 8; ++b) {
        try {
          evaluate_plan(model, nodes, {a, b, 9}, options);
          cuts.push_back({a, b, 9});
          least = std::min(least, slowest_stage(model, nodes, cuts.back(), rows));
        } catch (const OutOfMemoryError&) {
        }
      }
    }
    ASSERT_GE(cuts.size(), 3U);
    EXPECT_LE(slowest_stage(model, nodes, ends_of(ours), rows), least * 1.1 * (1 + 1e-9));
    for (const auto& ends : cuts) {  // none with as good a slowest stage answers sooner
      if (slowest_stage(model, nodes, ends, rows) > least * (1 + 1e-9)) continue;
      EXPECT_LE(request_seconds(ours),
                request_seconds(evaluate_plan(model, nodes, ends, options)) * 1.02);
    }
  }
}

TEST(Plan, LinesOfMemoryAddUp) {
  PlanOptions options{.n_ctx = 1000, .kv_tokens = 3000, .process_bytes = 7e6, .headroom = 0.1};
  std::vector<NodeFacts> nodes{node(4e9), node(4e9)};
  nodes[1].threads = 3;
  const Plan plan = evaluate_plan(made_up(8), nodes, {5, 8}, options);
  EXPECT_EQ(plan.n_ctx, 1000);
  EXPECT_EQ(plan.kv_tokens, 3000);
  const double scratch = kScratchPerRow * static_cast<double>(plan.micro_batch_rows);
  EXPECT_DOUBLE_EQ(plan.nodes[0].weights_bytes, 520e6);
  EXPECT_DOUBLE_EQ(plan.nodes[1].weights_bytes, 330e6);
  EXPECT_DOUBLE_EQ(plan.nodes[0].kv_bytes, 5 * 1000 * 3008.0);  // whole pages of 64
  EXPECT_DOUBLE_EQ(plan.nodes[0].scratch_bytes, kScratchFixed + scratch);
  EXPECT_DOUBLE_EQ(plan.nodes[1].scratch_bytes, 3 * kScratchFixed + scratch + 4.0 * 1000 * 32);
  EXPECT_DOUBLE_EQ(plan.nodes[0].headroom_bytes, 0.4e9);
  EXPECT_DOUBLE_EQ(plan.nodes[0].total_bytes(),
                   520e6 + 5 * 1000 * 3008.0 + kScratchFixed + scratch + 7e6);
  ModelCost tied = made_up(8);
  tied.tied_head = true;
  EXPECT_DOUBLE_EQ(evaluate_plan(tied, {node(4e9)}, {8}, options).nodes[0].weights_bytes, 830e6);
}

TEST(Plan, PredictionsAreForPromptsThatFitTheContext) {
  const auto prompts = [](std::int64_t n_ctx) {
    std::vector<std::int64_t> tokens;
    for (const Prediction& p : make_plan(made_up(4), {node(4e9)}, {.n_ctx = n_ctx}).predictions) {
      EXPECT_NEAR(p.prefill_tokens_per_s * p.time_to_first_token_s,
                  static_cast<double>(p.prompt_tokens), 1e-6);
      tokens.push_back(p.prompt_tokens);
    }
    return tokens;
  };
  EXPECT_EQ(prompts(100), (std::vector<std::int64_t>{100}));
  EXPECT_EQ(prompts(512), (std::vector<std::int64_t>{512}));
  EXPECT_EQ(prompts(600), (std::vector<std::int64_t>{512}));
  EXPECT_EQ(prompts(2300), (std::vector<std::int64_t>{512, 2300}));
  EXPECT_EQ(prompts(4096), (std::vector<std::int64_t>{512, 4096}));
  EXPECT_EQ(prompts(8192), (std::vector<std::int64_t>{512, 4096, 8192}));
  EXPECT_EQ(prompts(20000), (std::vector<std::int64_t>{512, 4096, 16384}));
}

TEST(PlanTime, DecodePaysEachHopOnce) {
  const ModelCost model = made_up(8);
  std::vector<NodeFacts> two{node(4e9), node(4e9)};
  const PlanOptions options{.n_ctx = 4096};
  const auto seconds = [&](const std::vector<NodeFacts>& nodes, std::vector<std::int64_t> ends,
                           bool f16) {
    PlanOptions with = options;
    with.hidden_f16 = f16;
    return 1 / predict(model, nodes, ends, with, 64, 512).decode_tokens_per_s;
  };
  const double alone = seconds({two[0]}, {8}, false);
  const double row = 1024 * 4 / 6e8;
  // There with the hidden row, back with the token.
  EXPECT_NEAR(seconds(two, {4, 8}, false) - alone, 2 * 1e-4 + row, 1e-12);
  EXPECT_NEAR(seconds(two, {4, 8}, true) - alone, 2 * 1e-4 + row / 2, 1e-12);
  EXPECT_NEAR(seconds(two, {0, 8}, false), alone, 1e-12);  // one of them is not used
  two[0].link_bytes_per_s = 0;                             // not known: free
  EXPECT_NEAR(seconds(two, {4, 8}, false) - alone, 2 * 1e-4, 1e-12);
}

TEST(PlanTime, MicroBatchesFillThePipeline) {
  ModelCost model = made_up(8);
  for (LayerCost& layer : model.layers) {  // the same at any depth
    layer.attention = {};
    layer.kv_bytes_per_token = 0;
  }
  std::vector<NodeFacts> four(4, node(4e9));
  for (NodeFacts& n : four) {
    n.rtt_s = n.link_bytes_per_s = 0;
    n.read_bytes_per_s = 1e12;  // bound by computing: small micro-batches cost nothing more
  }
  const PlanOptions options{.n_ctx = 8192};
  const auto seconds = [&](std::int64_t rows, std::int64_t prompt) {
    return predict(model, four, {2, 4, 6, 8}, options, rows, prompt).time_to_first_token_s;
  };
  // m micro-batches through N stages: (m + N - 1) stages' time, and one row of the head.
  const double one = seconds(64, 64);
  const double head = 30e6 / 1e12 + 10e-6;
  const double stage = (one - head) / 4;
  EXPECT_NEAR(seconds(64, 2048), (32 + 4 - 1) * stage + head, 1e-6 * one);
  EXPECT_NEAR(seconds(64, 8192), (128 + 4 - 1) * stage + head, 1e-6 * one);
  // A stage's time is a line in its rows: 128 and 512 of them.
  const double stage_128 = (seconds(128, 128) - head) / 4;
  const double stage_512 = stage + 7 * (stage_128 - stage);
  EXPECT_NEAR(seconds(512, 8192), (16 + 4 - 1) * stage_512 + head, 1e-6 * one);
  // A short prompt in fewer rows at a time, so that all stages have work.
  EXPECT_NEAR(seconds(512, 512), (4 + 4 - 1) * stage_128 + head, 1e-6 * one);
  // A link slower than a stage sets the pace instead.
  four[1].link_bytes_per_s = 64 * 1024 * 4 / (3 * stage);
  EXPECT_NEAR(seconds(64, 8192), 127 * 3 * stage + 4 * stage + 3 * stage + head, 1e-6 * one);
}

TEST(PlanTime, StepsAreBoundByReadingOrByComputing) {
  ModelCost model = made_up(1);
  model.layers[0].attention = {};
  model.layers[0].row_bytes = 0;
  model.head = {};
  const auto seconds = [&](std::int64_t rows) {
    return predict(model, {node(4e9)}, {1}, {.n_ctx = 4096}, rows, rows).time_to_first_token_s;
  };
  constexpr double kTiny = 5e-5;                            // what a layer costs beyond its matmuls
  EXPECT_NEAR(seconds(1), (10e6 + 4 * 1e6) / 2e10, kTiny);  // dense and four experts are read
  // All experts are, and that is less than the computing.
  EXPECT_NEAR(seconds(4096), 4096 * (50e6 + 4 * 5e6) / 4e11, 0.05 * 4096 * 70e6 / 4e11);
  for (std::int64_t rows = 1; rows < 4096; rows *= 2) {
    EXPECT_LE(seconds(rows), seconds(2 * rows));
    EXPECT_LE(seconds(2 * rows), 2 * seconds(rows));
  }
}

TEST(PlanTime, AKeyCostsFewRowsWhatItCostsFewRows) {
  ModelCost model = made_up(1);
  model.layers[0].attention = {.ops_per_key = 1e5, .ops_per_key_of_few = 7e5};
  const NodeFacts one = node(4e9);
  const auto per_key = [&](double rows) {
    const LayerCost& layer = model.layers[0];
    return (layer_seconds(model, layer, one, rows, 3000) -
            layer_seconds(model, layer, one, rows, 1000)) /
           (2000 * rows);
  };
  EXPECT_NEAR(per_key(1), 7e5 / one.matmul_ops_per_s, 1e-9);
  EXPECT_NEAR(per_key(256), 1e5 / one.matmul_ops_per_s, 1e-9);
}

TEST(PlanTime, LaterTokensSeeMoreAndPromptsGrowFasterThanTheirLength) {
  const Plan plan = make_plan(made_up(8), {node(4e9), node(4e9)}, {.n_ctx = 16384});
  ASSERT_EQ(plan.predictions.size(), 3U);
  EXPECT_GT(plan.predictions[0].decode_tokens_per_s, plan.predictions[1].decode_tokens_per_s);
  EXPECT_GT(plan.predictions[1].decode_tokens_per_s, plan.predictions[2].decode_tokens_per_s);
  EXPECT_GT(plan.predictions[2].time_to_first_token_s,
            4 * plan.predictions[1].time_to_first_token_s * 0.9);
}

TEST(PlanMemory, EachNodeIsToldExactlyWhatItLacks) {
  const ModelCost model = made_up(20);
  const PlanOptions options{.n_ctx = 4096};
  const std::vector<NodeFacts> nodes{node(0.7e9), node(0.5e9), node(0.4e9)};
  const std::string text = refusal(model, nodes, options);
  ASSERT_FALSE(text.empty());
  const std::vector<double> lacks = amounts_after(text, "lacks");
  ASSERT_EQ(lacks.size(), 3U) << text;
  for (std::size_t i = 0; i < 3; ++i) {
    EXPECT_NE(text.find(nodes[i].address), std::string::npos);
    auto more = nodes;
    more[i].memory_bytes += lacks[i] / (1 - options.headroom);
    EXPECT_TRUE(fits(model, more, options)) << text;
    more[i].memory_bytes -= 20e6;  // amounts are rounded up to 10 MB below 1 GB
    EXPECT_FALSE(fits(model, more, options)) << text << i;
  }
}

TEST(PlanMemory, AnotherNodeOfTheSizeSaidHelps) {
  const ModelCost model = made_up(20);
  const PlanOptions options{.n_ctx = 4096};
  std::vector<NodeFacts> nodes{node(0.7e9), node(0.5e9), node(0.4e9)};
  const std::vector<double> size = amounts_after(refusal(model, nodes, options), "another node of");
  ASSERT_EQ(size.size(), 1U);
  nodes.push_back(node(size[0]));
  EXPECT_TRUE(fits(model, nodes, options));
  nodes.back().memory_bytes -= size[0] < 1e9 ? 20e6 : 200e6;
  EXPECT_FALSE(fits(model, nodes, options));
}

TEST(PlanMemory, TheContextSaidIsTheLargestThatFits) {
  const ModelCost model = made_up(8);
  const std::vector<NodeFacts> nodes{node(0.7e9), node(0.7e9)};
  const PlanOptions options{.n_ctx = 100000};
  const std::string text = refusal(model, nodes, options);
  std::smatch match;
  ASSERT_TRUE(std::regex_search(text, match, std::regex("n_ctx of at most ([0-9]+)"))) << text;
  const std::int64_t n_ctx = std::stoll(match[1].str());
  EXPECT_TRUE(fits(model, nodes, {.n_ctx = n_ctx}));
  EXPECT_FALSE(fits(model, nodes, {.n_ctx = n_ctx + 256}));
  // No context is small enough for weights that do not fit.
  EXPECT_EQ(refusal(made_up(40), nodes, options).find("n_ctx of"), std::string::npos);
}

TEST(PlanMemory, ACutThatDoesNotFitNamesTheNode) {
  const std::vector<NodeFacts> nodes{node(4e9), node(0.4e9)};
  try {
    evaluate_plan(made_up(8), nodes, {2, 8}, {.n_ctx = 4096});
    FAIL();
  } catch (const OutOfMemoryError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find(nodes[1].address), std::string::npos) << text;
    EXPECT_EQ(text.find(nodes[0].address), std::string::npos) << text;
    EXPECT_NE(text.find("layers 2 to 7"), std::string::npos) << text;
  }
}

TEST(Plan, ArgumentsAreCheckedAndNamed) {
  const ModelCost model = made_up(4);
  const auto complaint = [&](const std::vector<NodeFacts>& nodes, const PlanOptions& options,
                             std::optional<std::vector<std::int64_t>> ends = {}) {
    try {
      ends ? evaluate_plan(model, nodes, *ends, options) : make_plan(model, nodes, options);
    } catch (const ArgumentError& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const auto says = [](const std::string& text, const std::string& what) {
    return text.find(what) != std::string::npos;
  };
  const std::vector<NodeFacts> two{node(4e9), node(4e9)};
  EXPECT_TRUE(says(complaint(two, {.strategy = Strategy::kTensor}), "tensor"));
  EXPECT_TRUE(says(complaint(two, {.strategy = Strategy::kHybrid}), "hybrid"));
  EXPECT_TRUE(says(complaint({}, {}), "nodes"));
  EXPECT_TRUE(says(complaint(two, {.n_ctx = 0}), "n_ctx"));
  EXPECT_TRUE(says(complaint(two, {.n_ctx = 4096, .kv_tokens = 100}), "kv_tokens"));
  EXPECT_TRUE(says(complaint(two, {.headroom = 1}), "headroom"));
  EXPECT_TRUE(says(complaint(two, {}, {{1, 2, 4}}), "layer ends"));
  EXPECT_TRUE(says(complaint(two, {}, {{3, 2}}), "layer ends"));
  EXPECT_TRUE(says(complaint(two, {}, {{1, 3}}), "layer ends"));
  EXPECT_TRUE(says(complaint(two, {}, {{-1, 4}}), "layer ends"));
  const double nan = std::nan("");
  // With the tiny and the huge of a worker that lies: "does not fit" would not name it.
  for (const double bad : {0.0, -1.0, nan, HUGE_VAL, 1e-300, 1e-9, 1e19}) {
    auto nodes = two;
    nodes[1].memory_bytes = bad;
    EXPECT_TRUE(says(complaint(nodes, {}), nodes[1].address + ": memory"));
    nodes = two;
    nodes[1].read_bytes_per_s = bad;
    EXPECT_TRUE(says(complaint(nodes, {}), "bandwidth"));
    nodes = two;
    nodes[1].matmul_ops_per_s = bad;
    EXPECT_TRUE(says(complaint(nodes, {}), "matmul"));
    if (bad == 0) continue;
    nodes = two;
    nodes[1].rtt_s = bad;
    EXPECT_EQ(says(complaint(nodes, {}), "round trip"), !(bad > 0 && bad < 1));
    nodes = two;
    nodes[1].link_bytes_per_s = bad;
    EXPECT_TRUE(says(complaint(nodes, {}), "link"));
  }
}

}  // namespace
}  // namespace moesaic::cluster
