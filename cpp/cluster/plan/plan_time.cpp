// Time of steps; see plan_time.h. A matmul reads its weights at the measured rate or computes at
// the measured rate, whichever takes longer; with few rows a weight, unpacking it is a part of the
// computing.
#include "cluster/plan/plan_time.h"

#include <algorithm>
#include <cmath>

namespace moesaic::cluster {
namespace {

// Unpacking a panel of weights costs as much as computing this many rows with it (KERNELS.md: 450
// GOP/s with 8 rows, 672 with 32, 752 with 128).
constexpr double kUnpackRows = 6;
// Float activations between matmuls: how often each is moved (quantised, activated, scattered).
constexpr double kRowPasses = 1.0;
// Norms, routing, barriers: what a layer costs a step beyond its matmuls.
constexpr double kLayerOverhead = 10e-6;
// Below, MLA stays in its absorbed form, and grouped attention has few queries to share keys.
constexpr double kFewRows = 16;

// `rows` rows through weights of `bytes`, with `ops` of each row and unpack_ops of the weights.
// Never slower than row by row.
double matmul_seconds(const NodeFacts& node, double bytes, double ops, double unpack_ops,
                      double rows) {
  const double read = bytes / node.read_bytes_per_s;
  const double one = std::max(read, unpack_ops / node.matmul_ops_per_s);
  const double many = (ops * (rows + kUnpackRows) + unpack_ops) / node.matmul_ops_per_s;
  return std::max(read, std::min(many, rows * one));
}

// Experts that at least one of the rows chose, were choices even and independent.
double experts_touched(const ModelCost& model, const LayerCost& layer, double rows) {
  const auto n = static_cast<double>(model.n_experts);
  const double share = static_cast<double>(layer.n_active) / n;
  return n * (1.0 - std::pow(1.0 - share, rows));
}

double attention_seconds(const LayerCost& layer, const NodeFacts& node, double rows, double depth) {
  const AttentionCost& cost = layer.attention;
  if (cost.window > 0) depth = std::min(depth, static_cast<double>(cost.window));
  double ops = rows * depth * (rows < kFewRows ? cost.ops_per_key_of_few : cost.ops_per_key);
  if (cost.decompressed_ops_per_key > 0 && rows >= kFewRows) {
    // Its own rows, and those of before that there was no room to keep.
    const double end = depth + rows / 2;
    const double made = rows + std::max(0.0, end - rows - cost.kept_tokens);
    ops = std::min(
        ops, rows * depth * cost.decompressed_ops_per_key + made * cost.decompress_ops_per_key);
  }
  return std::max(ops / node.matmul_ops_per_s,
                  depth * layer.kv_bytes_per_token / node.read_bytes_per_s);
}

}  // namespace

double layer_seconds(const ModelCost& model, const LayerCost& layer, const NodeFacts& node,
                     double rows, double depth) {
  double seconds = matmul_seconds(node, layer.dense_bytes, layer.dense_ops_per_row,
                                  layer.dense_unpack_ops, rows);
  if (layer.expert_bytes > 0) {
    const double touched = experts_touched(model, layer, rows);
    const double rows_each = rows * static_cast<double>(layer.n_active) / touched;
    seconds += touched * matmul_seconds(node, layer.expert_bytes, layer.expert_ops_per_row,
                                        layer.expert_unpack_ops, rows_each);
  }
  return seconds + attention_seconds(layer, node, rows, depth) +
         rows * layer.row_bytes * kRowPasses / node.read_bytes_per_s + kLayerOverhead;
}

BatchCost batch_cost(const ModelCost& model, std::int64_t micro_batch_rows) {
  NodeFacts node;
  node.read_bytes_per_s = 1e15;
  node.matmul_ops_per_s = 1e12;
  const auto seconds = [&](double rows, double depth) {
    double sum = 0;
    for (const LayerCost& layer : model.layers) {
      sum += layer_seconds(model, layer, node, rows, depth);
    }
    return sum;
  };
  // Four points of fixed + rows + per_position * depth + per_key * rows * depth, as far as keys are
  // kept, where they are.
  double depth = 4096;
  for (const LayerCost& layer : model.layers) {
    if (layer.attention.kept_tokens > 0) depth = std::min(depth, layer.attention.kept_tokens);
  }
  const auto rows = static_cast<double>(micro_batch_rows);
  const double half = rows / 2;
  const double row = (seconds(rows, 0) - seconds(half, 0)) / half;
  if (!(row > 0)) return {};
  const double deep_half = (seconds(half, depth) - seconds(half, 0)) / depth;
  const double deep = (seconds(rows, depth) - seconds(rows, 0)) / depth;
  return {.fixed = std::max(0.0, seconds(rows, 0) / row - rows),
          .per_position = std::max(0.0, (2 * deep_half - deep) / row),
          .per_key = std::max(0.0, (deep - deep_half) / half / row)};
}

Pipeline::Pipeline(const ModelCost& model, std::span<const NodeFacts> nodes,
                   std::span<const std::int64_t> ends, bool hidden_f16)
    : model_(model), value_bytes_(hidden_f16 ? 2 : 4) {
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < nodes.size(); begin = ends[i], ++i) {
    if (ends[i] == begin) continue;
    Stage stage{&nodes[i], {}};
    for (std::int64_t l = begin; l < ends[i]; ++l) {
      const LayerCost& layer = model.layers[static_cast<std::size_t>(l)];
      const auto same = std::find_if(stage.kinds.begin(), stage.kinds.end(),
                                     [&](const Kind& kind) { return *kind.layer == layer; });
      if (same == stage.kinds.end()) {
        stage.kinds.push_back({&layer, 1});
      } else {
        same->count += 1;
      }
    }
    stages_.push_back(std::move(stage));
  }
}

double Pipeline::first_token_seconds(std::int64_t prompt, std::int64_t micro_batch_rows) const {
  model::Step step;
  step.sequences.resize(1);
  step.sequences[0].tokens.resize(static_cast<std::size_t>(prompt));
  const auto n_stages = static_cast<std::int64_t>(stages_.size());
  std::vector<double> stage_free(stages_.size(), 0.0);
  std::vector<double> link_free(stages_.size(), 0.0);
  double there = 0;  // when the micro-batch is at the next stage
  const CutOptions cut{.max_rows = micro_batch_rows,
                       .n_stages = n_stages,
                       .cost = batch_cost(model_, micro_batch_rows)};
  for (const MicroBatch& batch : cut_step(step, cut)) {
    const auto rows = static_cast<double>(batch[0].n_rows);
    const double depth = static_cast<double>(batch[0].offset) + rows / 2;
    there = 0;
    for (std::size_t s = 0; s < stages_.size(); ++s) {
      stage_free[s] = std::max(there, stage_free[s]) + stage_seconds(stages_[s], rows, depth);
      // Sending overlaps with computing the next one.
      link_free[s] = std::max(stage_free[s], link_free[s]) + link_seconds(stages_[s], rows);
      there = link_free[s] + (n_stages > 1 ? stages_[s].node->rtt_s / 2 : 0.0);
    }
  }
  return there + head_seconds();
}

double Pipeline::token_seconds(double depth) const {
  double seconds = head_seconds();
  for (const Stage& stage : stages_) {
    seconds += stage_seconds(stage, 1, depth);
    if (stages_.size() > 1) seconds += stage.node->rtt_s / 2 + link_seconds(stage, 1);
  }
  return seconds;
}

double Pipeline::stage_seconds(const Stage& stage, double rows, double depth) const {
  double seconds = 0;
  for (const Kind& kind : stage.kinds) {
    seconds += kind.count * layer_seconds(model_, *kind.layer, *stage.node, rows, depth);
  }
  return seconds;
}

double Pipeline::head_seconds() const {
  return layer_seconds(model_, model_.head, *stages_.back().node, 1, 0);
}

// Hidden rows to the next stage; the last one sends token ids, which is nothing.
double Pipeline::link_seconds(const Stage& stage, double rows) const {
  if (&stage == &stages_.back() || !(stage.node->link_bytes_per_s > 0)) return 0;
  return rows * static_cast<double>(model_.d_model) * value_bytes_ / stage.node->link_bytes_per_s;
}

}  // namespace moesaic::cluster
