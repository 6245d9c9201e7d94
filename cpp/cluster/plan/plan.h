// Which worker holds which layers, what that takes of each, and how fast it will be, before a byte
// is loaded. Works from measured or stated facts about the nodes, so it works on paper too.
// Pipeline strategy: contiguous layers, node order kept.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cluster/plan/cost.h"

namespace moesaic::cluster {

struct NodeFacts {
  std::string address;          // "host:port", or a name on paper
  double memory_bytes = 0;      // that a deployment may use
  double read_bytes_per_s = 0;  // weights, all threads
  double matmul_ops_per_s = 0;  // int8, many rows, all threads
  double rtt_s = 0;             // to its neighbours: a frame there and an answer back
  double link_bytes_per_s = 0;  // 0: not known, taken as free
  int threads = 1;              // of its backend: each has scratch of its own
};

enum class Strategy { kAuto, kPipeline, kTensor, kHybrid };

struct PlanOptions {
  std::int64_t n_ctx = 4096;
  std::int64_t kv_tokens = 0;           // 0: n_ctx
  Strategy strategy = Strategy::kAuto;  // tensor and hybrid are refused by name
  bool hidden_f16 = false;
  double process_bytes = 48e6;  // a worker that holds nothing
  double headroom = 0.05;       // of a node's memory, never planned for
};

struct NodePlan {
  std::string address;
  std::int64_t layer_begin = 0;
  std::int64_t layer_end = 0;  // equal to layer_begin: the node is not used
  bool embed = false;
  bool head = false;
  double weights_bytes = 0;
  double kv_bytes = 0;
  double scratch_bytes = 0;
  double process_bytes = 0;
  double headroom_bytes = 0;
  double memory_bytes = 0;
  double total_bytes() const { return weights_bytes + kv_bytes + scratch_bytes + process_bytes; }
  bool fits() const { return total_bytes() + headroom_bytes <= memory_bytes; }
};

struct Prediction {
  std::int64_t prompt_tokens = 0;
  double prefill_tokens_per_s = 0;
  double decode_tokens_per_s = 0;  // after that prompt, one sequence
  double time_to_first_token_s = 0;
};

struct Plan {
  std::string model;
  Strategy strategy = Strategy::kPipeline;
  std::int64_t n_ctx = 0;
  std::int64_t kv_tokens = 0;
  std::int64_t micro_batch_rows = 0;
  std::vector<NodePlan> nodes;  // as the facts, used or not
  // Prompts of 512, 4,096 and 16,384 that fit n_ctx, and of n_ctx where that is in between.
  std::vector<Prediction> predictions;
};

// Every node gets a layer when there are enough and it has room for one. Throws OutOfMemoryError
// when the model does not fit: which node lacks how much, and what would help. Throws ArgumentError
// for a strategy that is not there yet and for facts out of range.
Plan make_plan(const ModelCost& model, const std::vector<NodeFacts>& nodes,
               const PlanOptions& options);

// A plan with the layer ranges given (the end of each node's, in order; micro-batches chosen): for
// replays, tests and people who know better. Throws as make_plan().
Plan evaluate_plan(const ModelCost& model, const std::vector<NodeFacts>& nodes,
                   const std::vector<std::int64_t>& layer_ends, const PlanOptions& options);

// How a plan with these ends would do for one prompt. For micro-batches below the plan's.
Prediction predict(const ModelCost& model, const std::vector<NodeFacts>& nodes,
                   const std::vector<std::int64_t>& layer_ends, const PlanOptions& options,
                   std::int64_t micro_batch_rows, std::int64_t prompt_tokens);

}  // namespace moesaic::cluster
