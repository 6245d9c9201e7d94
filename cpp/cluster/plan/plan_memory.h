// The plan's arithmetic of memory: what a run of layers takes of a node, line by line as the worker
// will allocate it, and, when a model does not fit, who lacks how much. Not for time: plan_time.h.
#pragma once

#include <cstdint>
#include <map>
#include <tuple>
#include <vector>

#include "cluster/plan/plan.h"

namespace moesaic::cluster {

class PlanMemory {
 public:
  // All references must outlive it.
  PlanMemory(const ModelCost& model, const std::vector<NodeFacts>& nodes,
             const PlanOptions& options);

  std::int64_t n_layers() const { return n_layers_; }
  // Layers [begin, end) on a node, in steps of at most `rows` rows.
  NodePlan node_plan(std::size_t node, std::int64_t begin, std::int64_t end,
                     std::int64_t rows) const;
  bool fits(std::size_t node, std::int64_t begin, std::int64_t end, std::int64_t rows) const {
    return begin == end || node_plan(node, begin, end, rows).fits();
  }

  // Nothing fits in steps of `rows` rows: throws OutOfMemoryError. Each node is told what it alone
  // would need more.
  [[noreturn]] void refuse(std::int64_t rows) const;
  // A given cut does not fit: throws OutOfMemoryError naming the nodes that lack memory.
  [[noreturn]] void refuse_cut(const std::vector<std::int64_t>& ends, std::int64_t rows) const;

 private:
  double scratch(const ScratchQuery& query) const;
  std::int64_t fill_from_left(std::size_t n_nodes, std::int64_t rows) const;
  std::int64_t fill_from_right(std::size_t first_node, std::int64_t rows) const;
  std::int64_t largest_n_ctx(std::int64_t rows) const;

  const ModelCost& model_;
  const std::vector<NodeFacts>& nodes_;
  PlanOptions options_;
  std::int64_t n_layers_;
  double kept_bytes_ = 0;  // of a layer
  // Sums over the layers before an index.
  std::vector<double> weights_before_;    // (n_layers + 1)
  std::vector<double> kv_bytes_before_;   // (n_layers + 1), of one cached token
  std::vector<std::int64_t> moe_before_;  // (n_layers + 1), layers with experts
  // By rows, threads, and whether there are the head, layers without and layers with experts.
  mutable std::map<std::tuple<std::int64_t, int, bool, bool, bool>, double> scratch_;
};

}  // namespace moesaic::cluster
