// What a plan says of memory is what the loader will take, byte for byte, for every family, slice
// and number of threads; operations against sums made by hand.
#include "cluster/plan/cost.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "cluster/plan/plan.h"
#include "cluster/plan/plan_memory.h"
#include "model/run/memory.h"

namespace moesaic::cluster {
namespace {

std::vector<std::string> family_files() {
  std::vector<std::string> paths;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(MOESAIC_TEST_DATA) + "/families")) {
    if (entry.path().extension() == ".gguf") paths.push_back(entry.path().string());
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

std::vector<NodeFacts> nodes_of(std::vector<int> threads) {
  std::vector<NodeFacts> nodes;
  for (const int n : threads) {
    nodes.push_back({.address = strcat("node", nodes.size()),
                     .memory_bytes = 1e12,
                     .read_bytes_per_s = 2e10,
                     .matmul_ops_per_s = 5e11,
                     .rtt_s = 1e-4,
                     .link_bytes_per_s = 1e9,
                     .threads = n});
  }
  return nodes;
}

// The plan's lines of each node against the loader's arithmetic for its slice.
void expect_exact(const model::ModelFile& model, const model::LoadOptions& load,
                  const std::vector<NodeFacts>& nodes, const Plan& plan) {
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    const NodePlan& p = plan.nodes[i];
    model::LoadOptions options = load;
    options.n_ctx = plan.n_ctx;
    options.kv_tokens = plan.kv_tokens;
    options.max_step_rows = plan.micro_batch_rows;
    const auto backend = backend::make_backend("cpu", {.n_threads = nodes[i].threads});
    const model::MemoryNeed need =
        model::memory_need(model, {p.layer_begin, p.layer_end, p.embed, p.head}, options, *backend);
    EXPECT_EQ(p.weights_bytes, static_cast<double>(need.weights_bytes + need.derived_bytes));
    EXPECT_EQ(p.kv_bytes, static_cast<double>(need.kv_bytes));
    EXPECT_EQ(p.scratch_bytes, static_cast<double>(need.scratch_bytes));
  }
}

TEST(Cost, KeptKeysAreWhatTheLoaderTakes) {
  int n_with = 0;
  for (const std::string& path : family_files()) {
    SCOPED_TRACE(path);
    const model::ModelFile model = model::understand(gguf::File::open(path));
    model::LoadOptions load;
    load.kept_tokens = 700;
    const ModelCost cost = model_cost(model, load);
    const auto nodes = nodes_of({1, 2});
    const PlanOptions options{.n_ctx = 1000, .kv_tokens = 1000};
    const Plan plan = evaluate_plan(cost, nodes, {1, model.config.n_layers}, options);
    expect_exact(model, load, nodes, plan);
    n_with += cost.kept_bytes(1000) > 0 ? 1 : 0;
  }
  EXPECT_GE(n_with, 2) << "none of the families has MLA";
}

TEST(Cost, PlansTakeWhatTheLoaderTakes) {
  const std::vector<std::string> paths = family_files();
  ASSERT_GE(paths.size(), 15U);
  for (const std::string& path : paths) {
    SCOPED_TRACE(path);
    const model::ModelFile model = model::understand(gguf::File::open(path));
    const std::int64_t n_layers = model.config.n_layers;
    using enum backend::KvType;
    for (const backend::KvType kv_type : {kF32, kF16, kQ8_0}) {
      const bool is_mla = model.config.mla.kv_lora > 0;
      const std::int64_t d_k = is_mla ? model.config.kv_k_width() : model.config.d_head_k;
      const std::int64_t d_v = is_mla ? 0 : model.config.d_head_v;
      if (kv_type == kQ8_0 && (d_k % 32 != 0 || d_v % 32 != 0)) continue;  // refused
      model::LoadOptions load;
      load.deterministic = kv_type == kF32;
      load.kv_type = kv_type;
      const ModelCost cost = model_cost(model, load);
      for (std::int64_t cut = 0; cut <= n_layers; ++cut) {
        const auto nodes = nodes_of({1, 3});
        const PlanOptions options{.n_ctx = 100, .kv_tokens = 333};  // no multiples of a page
        Plan plan = evaluate_plan(cost, nodes, {cut, n_layers}, options);
        if (cut == 0 || cut == n_layers) {  // one of them is not used
          const NodePlan& unused = plan.nodes[cut == 0 ? 0 : 1];
          EXPECT_EQ(unused.weights_bytes + unused.kv_bytes + unused.scratch_bytes, 0);
          EXPECT_FALSE(unused.embed || unused.head);
          const NodePlan used = plan.nodes[cut == 0 ? 1 : 0];
          plan.nodes = {used};
          expect_exact(model, load, {nodes[cut == 0 ? 1 : 0]}, plan);
        } else {
          EXPECT_TRUE(plan.nodes[0].embed && plan.nodes[1].head);
          EXPECT_FALSE(plan.nodes[0].head || plan.nodes[1].embed);
          expect_exact(model, load, nodes, plan);
        }
      }
    }
  }
}

TEST(Cost, OperationsAreThoseOfTheMatmuls) {
  const std::string path = std::string(MOESAIC_TEST_DATA) + "/families/deepseek2_kimi.gguf";
  const model::ModelFile model = model::understand(gguf::File::open(path));
  const model::Config& c = model.config;
  const ModelCost cost = model_cost(model, {});
  // All weights of these small files are floats.
  const double per_mac = 2 * kFloatOpCost;
  const double expert = static_cast<double>(3 * c.d_model * c.moe.d_ff_expert);
  const LayerCost& moe = cost.layers.back();
  EXPECT_DOUBLE_EQ(moe.expert_ops_per_row, per_mac * expert);
  double n_bytes = 0;
  for (const char* name : {"gate", "up", "down"}) {
    const std::string full = strcat("blk.", c.n_layers - 1, ".ffn_", name, "_exps.weight");
    n_bytes += static_cast<double>(model.file->find_tensor(full)->n_bytes);
  }
  EXPECT_DOUBLE_EQ(moe.expert_bytes, n_bytes / static_cast<double>(c.moe.n_experts));
  const model::MlaConfig& mla = c.mla;
  const std::int64_t attention =
      c.d_model * mla.q_lora + mla.q_lora * c.n_heads * (mla.d_nope + mla.d_rope) +
      c.d_model * (mla.kv_lora + mla.d_rope) + c.n_heads * mla.kv_lora * (mla.d_nope + mla.d_v) +
      c.n_heads * mla.d_v * c.d_model;
  const std::int64_t around =
      3 * c.d_model * c.moe.n_shared * c.moe.d_ff_expert + c.d_model * c.moe.n_experts;
  EXPECT_DOUBLE_EQ(moe.dense_ops_per_row, per_mac * static_cast<double>(attention + around));
  EXPECT_DOUBLE_EQ(cost.head.dense_ops_per_row, per_mac * static_cast<double>(c.vocab * c.d_model));
  EXPECT_EQ(cost.n_experts, c.moe.n_experts);
  EXPECT_DOUBLE_EQ(moe.kv_bytes_per_token, 2.0 * static_cast<double>(mla.kv_lora + mla.d_rope));
}

TEST(Cost, OnlyTheSecondFormOfMlaIsLeftOutWhenDeterministic) {
  const std::string path = std::string(MOESAIC_TEST_DATA) + "/families/deepseek2_kimi.gguf";
  const model::ModelFile model = model::understand(gguf::File::open(path));
  const ModelCost both = model_cost(model, {});
  const ModelCost one = model_cost(model, {.deterministic = true});
  EXPECT_GT(both.layers[0].weights_bytes, one.layers[0].weights_bytes);
  EXPECT_EQ(both.layers[0].dense_bytes, one.layers[0].dense_bytes);  // a step reads one of them
  EXPECT_GT(both.layers[0].attention.decompressed_ops_per_key, 0);
  EXPECT_EQ(one.layers[0].attention.decompressed_ops_per_key, 0);
}

TEST(Cost, WithoutExpertsThereIsNoRoomForThem) {
  const std::string path = std::string(MOESAIC_TEST_DATA) + "/families/deepseek2_kimi.gguf";
  const model::ModelFile model = model::understand(gguf::File::open(path));
  ASSERT_EQ(model.config.layers[0].ffn, model::FfnKind::kDense);
  ASSERT_EQ(model.config.layers[1].ffn, model::FfnKind::kMoe);
  const ModelCost cost = model_cost(model, {});
  const Plan plan = evaluate_plan(cost, nodes_of({1, 1}), {1, model.config.n_layers}, {});
  ScratchQuery query{
      .layer_begin = 0, .layer_end = 1, .rows = plan.micro_batch_rows, .n_ctx = 4096};
  EXPECT_EQ(plan.nodes[0].scratch_bytes, cost.scratch_bytes(query));
  query.layer_end = 2;
  EXPECT_LT(plan.nodes[0].scratch_bytes, cost.scratch_bytes(query));
  // Also when the first layer alone was looked at before.
  const auto one = nodes_of({1});
  const PlanOptions options;
  const PlanMemory memory(cost, one, options);
  const double alone = memory.node_plan(0, 0, 1, 64).scratch_bytes;
  EXPECT_LT(alone, memory.node_plan(0, 0, 2, 64).scratch_bytes);
}

TEST(Cost, AttentionTakesShorterProductsUnlessItMustBeExact) {
  const std::string path = std::string(MOESAIC_TEST_DATA) + "/families/deepseek2_kimi.gguf";
  const model::ModelFile model = model::understand(gguf::File::open(path));
  const double fast = model_cost(model, {}).layers[0].attention.ops_per_key;
  const double exact = model_cost(model, {.deterministic = true}).layers[0].attention.ops_per_key;
  EXPECT_DOUBLE_EQ(exact / fast, kFloatOpCost / kShortOpCost);
  const double cached =
      model_cost(model, {.kv_type = backend::KvType::kF32}).layers[0].attention.ops_per_key;
  EXPECT_EQ(cached, exact);
}

TEST(Cost, SlidingWindowsBoundTheDepth) {
  const std::string path = std::string(MOESAIC_TEST_DATA) + "/families/gptoss_f32.gguf";
  const model::ModelFile model = model::understand(gguf::File::open(path));
  const ModelCost cost = model_cost(model, {});
  EXPECT_EQ(cost.layers[0].attention.window, model.config.layers[0].window);
  EXPECT_GT(cost.layers[0].attention.window, 0);
  EXPECT_EQ(cost.layers[1].attention.window, 0);
}

}  // namespace
}  // namespace moesaic::cluster
