// Memory of plans; see plan_memory.h.
#include "cluster/plan/plan_memory.h"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <sstream>

#include "base/errors.h"

namespace moesaic::cluster {
namespace {

constexpr std::int64_t kContextStep = 256;  // advice on n_ctx is rounded down to it

std::string in_gb(double bytes) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(bytes < 1e9 ? 2 : 1) << bytes / 1e9 << " GB";
  return out.str();
}

// Never too little for what it says.
std::string in_gb_up(double bytes) {
  const double unit = bytes < 1e9 ? 1e7 : 1e8;
  return in_gb(std::ceil(bytes / unit) * unit);
}

std::string layers_text(const NodePlan& p) {
  return p.layer_end - p.layer_begin == 1
             ? strcat("layer ", p.layer_begin)
             : strcat("layers ", p.layer_begin, " to ", p.layer_end - 1);
}

}  // namespace

PlanMemory::PlanMemory(const ModelCost& model, const std::vector<NodeFacts>& nodes,
                       const PlanOptions& options)
    : model_(model),
      nodes_(nodes),
      options_(options),
      n_layers_(static_cast<std::int64_t>(model.layers.size())),
      weights_before_(1, 0.0),
      kv_bytes_before_(1, 0.0),
      moe_before_(1, 0) {
  if (options_.kv_tokens == 0) options_.kv_tokens = options_.n_ctx;
  if (model.kept_bytes) kept_bytes_ = model.kept_bytes(options_.n_ctx);
  for (const LayerCost& layer : model.layers) {
    weights_before_.push_back(weights_before_.back() + layer.weights_bytes);
    kv_bytes_before_.push_back(kv_bytes_before_.back() + layer.kv_bytes_per_token);
    moe_before_.push_back(moe_before_.back() + (layer.expert_bytes > 0 ? 1 : 0));
  }
}

double PlanMemory::scratch(const ScratchQuery& query) const {
  const std::int64_t n_moe = moe_before_[static_cast<std::size_t>(query.layer_end)] -
                             moe_before_[static_cast<std::size_t>(query.layer_begin)];
  const bool has_dense = n_moe < query.layer_end - query.layer_begin;
  const auto [it, is_new] =
      scratch_.try_emplace({query.rows, query.threads, query.head, has_dense, n_moe > 0}, 0.0);
  if (is_new) it->second = model_.scratch_bytes(query);
  return it->second;
}

NodePlan PlanMemory::node_plan(std::size_t node, std::int64_t begin, std::int64_t end,
                               std::int64_t rows) const {
  const NodeFacts& facts = nodes_[node];
  NodePlan p;
  p.address = facts.address;
  p.layer_begin = begin;
  p.layer_end = end;
  p.memory_bytes = facts.memory_bytes;
  p.headroom_bytes = options_.headroom * p.memory_bytes;
  p.process_bytes = options_.process_bytes;
  if (begin == end) return p;
  p.embed = begin == 0;
  p.head = end == n_layers_;
  const auto from = static_cast<std::size_t>(begin);
  const auto to = static_cast<std::size_t>(end);
  p.weights_bytes = weights_before_[to] - weights_before_[from];
  if (p.embed) p.weights_bytes += model_.embed.weights_bytes;
  if (p.head) p.weights_bytes += model_.head.weights_bytes;
  if (p.embed && p.head && model_.tied_head) p.weights_bytes -= model_.embed.weights_bytes;
  const std::int64_t page = model_.page_tokens;
  const auto cached = static_cast<double>((options_.kv_tokens + page - 1) / page * page);
  p.kv_bytes = (kv_bytes_before_[to] - kv_bytes_before_[from]) * cached;
  p.scratch_bytes = scratch({.layer_begin = begin,
                             .layer_end = end,
                             .rows = rows,
                             .n_ctx = options_.n_ctx,
                             .threads = facts.threads,
                             .head = p.head});
  // The worker keeps keys where it has room for them; no plan fails for them.
  const double without = p.scratch_bytes;
  p.scratch_bytes += static_cast<double>(end - begin) * kept_bytes_;
  if (!p.fits()) p.scratch_bytes = without;
  return p;
}

// The first layer that the first n_nodes nodes have no room for, each taking all it can.
std::int64_t PlanMemory::fill_from_left(std::size_t n_nodes, std::int64_t rows) const {
  std::int64_t begin = 0;
  for (std::size_t node = 0; node < n_nodes; ++node) {
    std::int64_t end = begin;
    // The last layer brings the head: a run that reaches it may be too much where the one before
    // it is not.
    while (end < n_layers_ && fits(node, begin, end + 1, rows)) ++end;
    begin = end;
  }
  return begin;
}

// The end of the layers that the nodes from first_node on have no room for.
std::int64_t PlanMemory::fill_from_right(std::size_t first_node, std::int64_t rows) const {
  std::int64_t end = n_layers_;
  for (std::size_t node = nodes_.size(); node-- > first_node;) {
    std::int64_t begin = end;
    while (begin > 0 && fits(node, begin - 1, end, rows)) --begin;
    end = begin;
  }
  return end;
}

std::int64_t PlanMemory::largest_n_ctx(std::int64_t rows) const {
  std::int64_t low = 0;
  std::int64_t high = (options_.n_ctx - 1) / kContextStep;
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    PlanOptions smaller = options_;
    smaller.n_ctx = smaller.kv_tokens = middle * kContextStep;
    const bool is_enough =
        PlanMemory(model_, nodes_, smaller).fill_from_left(nodes_.size(), rows) == n_layers_;
    if (is_enough) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low * kContextStep;
}

void PlanMemory::refuse(std::int64_t rows) const {
  double need = 0;
  double have = 0;
  std::ostringstream nodes;
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    // What the nodes before it and behind it cannot hold would be this one's.
    const std::int64_t begin = fill_from_left(i, rows);
    const std::int64_t end = std::max(begin + 1, fill_from_right(i + 1, rows));
    const NodePlan p = node_plan(i, begin, std::min(end, n_layers_), rows);
    const double lacks = p.total_bytes() - p.memory_bytes * (1 - options_.headroom);
    nodes << (i == 0 ? " " : ", ") << p.address << " (" << in_gb(p.memory_bytes) << ") lacks "
          << in_gb_up(lacks);
    have += p.memory_bytes;
    need += p.scratch_bytes + options_.process_bytes + p.headroom_bytes;
  }
  const NodePlan whole = node_plan(0, 0, n_layers_, rows);
  need += whole.weights_bytes + whole.kv_bytes;

  std::ostringstream help;
  const std::int64_t placed = fill_from_left(nodes_.size(), rows);
  // A node more, at the end: with the threads of the last one.
  const NodePlan more = node_plan(nodes_.size() - 1, placed, n_layers_, rows);
  help << "another node of " << in_gb_up(more.total_bytes() / (1 - options_.headroom));
  if (const std::int64_t n_ctx = largest_n_ctx(rows); n_ctx > 0) {
    help << ", or " << (options_.kv_tokens == options_.n_ctx ? "n_ctx" : "n_ctx and kv_tokens")
         << " of at most " << n_ctx;
  }
  throw OutOfMemoryError(
      strcat("[plan] ", model_.name, " does not fit: ", in_gb(whole.weights_bytes),
             " of weights and ", in_gb(whole.kv_bytes), " of KV cache (", options_.kv_tokens,
             " tokens), with scratch and headroom ", in_gb(need), " on nodes of ", in_gb(have),
             " together. Were all others filled to their brim,", nodes.str(),
             ". What would help: ", help.str()),
      static_cast<std::uint64_t>(need), static_cast<std::uint64_t>(have));
}

void PlanMemory::refuse_cut(const std::vector<std::int64_t>& ends, std::int64_t rows) const {
  double need = 0;
  double have = 0;
  std::ostringstream nodes;
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < nodes_.size(); begin = ends[i], ++i) {
    const NodePlan p = node_plan(i, begin, ends[i], rows);
    if (begin == ends[i] || p.fits()) continue;
    nodes << (need > 0 ? "; " : " ") << p.address << " (" << in_gb(p.memory_bytes) << ") lacks "
          << in_gb_up(p.total_bytes() + p.headroom_bytes - p.memory_bytes) << " for "
          << layers_text(p);
    need += p.total_bytes() + p.headroom_bytes;
    have += p.memory_bytes;
  }
  throw OutOfMemoryError(
      strcat("[plan] ", model_.name, " does not fit as it is cut:", nodes.str(),
             ". What would help: fewer layers there, or no layer_ends, which lets the plan choose"),
      static_cast<std::uint64_t>(need), static_cast<std::uint64_t>(have));
}

}  // namespace moesaic::cluster
