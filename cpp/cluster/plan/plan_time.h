// The plan's model of time: how long a step takes in a layer, a stage and the whole pipeline, from
// what layers cost and what nodes reach. Constants are measured (bench/python/cluster_bench.py
// prints prediction against measurement). Not for choosing: plan.cpp.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cluster/plan/plan.h"
#include "cluster/step/micro_batches.h"

namespace moesaic::cluster {

// Of one layer and a step of `rows` rows that see `depth` cached positions on average.
double layer_seconds(const ModelCost& model, const LayerCost& layer, const NodeFacts& node,
                     double rows, double depth);

// What a micro-batch of about so many rows costs on nodes that compute longer than they read.
BatchCost batch_cost(const ModelCost& model, std::int64_t micro_batch_rows);

// A pipeline: node i holds the layers from ends[i - 1] (0 for the first) to ends[i].
class Pipeline {
 public:
  // All references must outlive it.
  Pipeline(const ModelCost& model, std::span<const NodeFacts> nodes,
           std::span<const std::int64_t> ends, bool hidden_f16);

  // From the prompt to the first token: its micro-batches, cut as a cluster's runner cuts them,
  // follow each other through the stages, each starting when it is there and the one before it is
  // done.
  double first_token_seconds(std::int64_t prompt, std::int64_t micro_batch_rows) const;
  // One token of one sequence: all stages, one hop each.
  double token_seconds(double depth) const;

 private:
  struct Kind {  // equal layers
    const LayerCost* layer;
    double count;
  };
  struct Stage {
    const NodeFacts* node;
    std::vector<Kind> kinds;
  };
  double stage_seconds(const Stage& stage, double rows, double depth) const;
  double head_seconds() const;
  double link_seconds(const Stage& stage, double rows) const;

  const ModelCost& model_;
  const double value_bytes_;   // of the hidden rows that travel
  std::vector<Stage> stages_;  // those that hold layers
};

}  // namespace moesaic::cluster
