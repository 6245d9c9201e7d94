// A stage's deadline follows the plan's model of time.
#include "cluster/coordinator/step_deadline.h"

#include <gtest/gtest.h>

#include "cluster/plan/plan_time.h"

namespace moesaic::cluster {
namespace {

ModelCost one_layer(double weights_bytes) {
  ModelCost model;
  LayerCost layer;
  layer.weights_bytes = layer.dense_bytes = weights_bytes;
  layer.dense_ops_per_row = 2 * weights_bytes;
  model.layers = {layer};
  return model;
}

NodeFacts node(double read, double ops) {
  NodeFacts facts;
  facts.read_bytes_per_s = read;
  facts.matmul_ops_per_s = ops;
  return facts;
}

TEST(StepDeadline, IsTenTimesThePlansAndTheDisksTime) {
  const ModelCost model = one_layer(1e9);
  const NodeFacts fast = node(1e11, 1e13);
  const double planned = layer_seconds(model, model.layers[0], fast, 512, 4096);
  const auto deadline = step_deadline(model, std::span(&fast, 1), 512, 4096);
  EXPECT_NEAR(static_cast<double>(deadline.count()), 1e3 * (10 * planned + 1e9 / 32e6), 2);
}

TEST(StepDeadline, TheSlowestWorkerCountsAndTheUnmeasuredIsTakenForSlow) {
  const ModelCost model = one_layer(1e9);
  const NodeFacts nodes[] = {node(1e11, 1e13), node(1e9, 1e11)};
  const NodeFacts unknown[] = {node(1e11, 1e13), node(0, 0)};
  const auto fast = step_deadline(model, std::span(nodes, 1), 512, 4096);
  const auto slow = step_deadline(model, nodes, 512, 4096);
  EXPECT_GT(slow, fast);
  EXPECT_GT(step_deadline(model, unknown, 512, 4096), slow);
  EXPECT_LE(step_deadline(one_layer(1e15), unknown, 512, 4096), std::chrono::hours(1));
}

TEST(StepDeadline, ASmallModelHasASmallOne) {
  const NodeFacts some = node(1e10, 1e11);
  EXPECT_LT(step_deadline(one_layer(1e6), std::span(&some, 1), 512, 4096), std::chrono::seconds(1));
}

}  // namespace
}  // namespace moesaic::cluster
