// The pipeline planner. Every cut of the layers over the nodes is looked at through a table over
// (node, layers taken so far): for each bound on the slowest stage, the cut with the least sum of
// stage times. Of these, the one that answers a typical request (a prompt of 4,096 tokens, 256
// generated) soonest is taken. Some 61 layers x 4 nodes: milliseconds.
#include "cluster/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "base/errors.h"

namespace moesaic::cluster {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kTypicalPrompt = 4096;
constexpr double kTypicalAnswer = 256;
constexpr std::int64_t kMicroBatches[] = {32, 64, 128, 256, 512};
constexpr std::int64_t kPrompts[] = {512, 4096, 16384};
// Attention's float work against the int8 rate that was measured: KERNELS.md, decompressed prefill.
constexpr double kAttentionShare = 0.25;
// Norms, routing, barriers: what a layer costs a step beyond its matmuls.
constexpr double kLayerOverhead = 6e-6;

// Seconds a step of `rows` rows spends in a layer, each row seeing `depth` cached positions.
double layer_seconds(const ModelCost& model, const LayerCost& layer, const NodeFacts& node,
                     double rows, double depth) {
  double bytes = layer.dense_bytes;
  if (layer.expert_bytes > 0) {
    // Experts that at least one row chose, were choices even and independent.
    const double n = static_cast<double>(model.n_experts);
    const double share = static_cast<double>(model.n_active) / n;
    bytes += layer.expert_bytes * n * (1.0 - std::pow(1.0 - share, rows));
  }
  const double read = bytes / node.read_bytes_per_s;
  const double compute = rows * layer.ops_per_row / node.matmul_ops_per_s;
  const double attention = std::max(
      rows * depth * layer.attention_ops_per_key / (node.matmul_ops_per_s * kAttentionShare),
      depth * layer.kv_bytes_per_token / node.read_bytes_per_s);
  return std::max(read, compute) + attention + kLayerOverhead;
}

class Planner {
 public:
  Planner(const ModelCost& model, const std::vector<NodeFacts>& nodes, const PlanOptions& options)
      : model_(model),
        nodes_(nodes),
        options_(options),
        n_layers_(static_cast<std::int64_t>(model.layers.size())),
        kv_tokens_(static_cast<double>(options.kv_tokens > 0 ? options.kv_tokens : options.n_ctx)) {
  }

  Plan best() const {
    Plan chosen;
    double least = kInfinity;
    for (const std::int64_t rows : kMicroBatches) {
      if (rows > options_.n_ctx && rows != kMicroBatches[0]) break;
      for (const std::vector<std::int64_t>& ends : candidates(rows)) {
        const double seconds = request_seconds(ends, rows);
        if (seconds < least) {
          least = seconds;
          chosen = describe(ends, rows);
        }
      }
    }
    if (chosen.nodes.empty()) refuse();
    return chosen;
  }

  std::int64_t best_rows(const std::vector<std::int64_t>& ends) const {
    std::int64_t best = kMicroBatches[0];
    for (const std::int64_t rows : kMicroBatches) {
      if (rows <= options_.n_ctx && request_seconds(ends, rows) < request_seconds(ends, best))
        best = rows;
    }
    return best;
  }

  Plan describe(const std::vector<std::int64_t>& ends, std::int64_t rows) const {
    Plan plan;
    plan.model = model_.name;
    plan.n_ctx = options_.n_ctx;
    plan.kv_tokens = static_cast<std::int64_t>(kv_tokens_);
    plan.micro_batch_rows = rows;
    std::int64_t begin = 0;
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      plan.nodes.push_back(node_plan(i, begin, ends[i], rows));
      begin = ends[i];
    }
    for (const std::int64_t prompt : kPrompts) {
      if (prompt > options_.n_ctx && !plan.predictions.empty()) break;
      plan.predictions.push_back(predict(ends, rows, std::min(prompt, options_.n_ctx)));
    }
    return plan;
  }

  NodePlan node_plan(std::size_t node, std::int64_t begin, std::int64_t end,
                     std::int64_t rows) const {
    NodePlan p;
    p.address = nodes_[node].address;
    p.layer_begin = begin;
    p.layer_end = end;
    p.memory_bytes = nodes_[node].memory_bytes;
    p.headroom_bytes = options_.headroom * p.memory_bytes;
    p.process_bytes = options_.process_bytes;
    if (begin == end) return p;
    p.embed = begin == 0;
    p.head = end == n_layers_;
    if (p.embed) p.weights_bytes += model_.embed.weights_bytes;
    if (p.head) p.weights_bytes += model_.head.weights_bytes;
    for (std::int64_t l = begin; l < end; ++l) {
      const LayerCost& layer = model_.layers[static_cast<std::size_t>(l)];
      p.weights_bytes += layer.weights_bytes;
      p.kv_bytes += layer.kv_bytes_per_token * kv_tokens_;
    }
    p.scratch_bytes =
        model_.scratch_bytes_fixed + model_.scratch_bytes_per_row * static_cast<double>(rows);
    return p;
  }

  bool fits(std::size_t node, std::int64_t begin, std::int64_t end, std::int64_t rows) const {
    if (begin == end) return true;
    const NodePlan p = node_plan(node, begin, end, rows);
    return p.total_bytes() + p.headroom_bytes <= p.memory_bytes;
  }

  // Seconds of one step in a stage, its hop to the next stage not included.
  double stage_seconds(std::size_t node, std::int64_t begin, std::int64_t end, double rows,
                       double depth) const {
    if (begin == end) return 0;
    double seconds = 0;
    for (std::int64_t l = begin; l < end; ++l) {
      seconds += layer_seconds(model_, model_.layers[static_cast<std::size_t>(l)], nodes_[node],
                               rows, depth);
    }
    return seconds;
  }

  double head_seconds(std::size_t node) const {
    return layer_seconds(model_, model_.head, nodes_[node], 1, 0);
  }

  double hop_seconds(std::size_t node, double rows) const {
    const double bytes = rows * static_cast<double>(model_.d_model) * (options_.hidden_f16 ? 2 : 4);
    return nodes_[node].rtt_s / 2 +
           (nodes_[node].link_bytes_per_s > 0 ? bytes / nodes_[node].link_bytes_per_s : 0);
  }

  // Time from the prompt to the first token: micro-batches follow each other through the stages;
  // the slowest stage (or link) sets the pace, and the first one has to pass all of them.
  double first_token_seconds(const std::vector<std::int64_t>& ends, double rows,
                             double prompt) const {
    const double n_batches = std::ceil(prompt / rows);
    const double in_last = prompt - (n_batches - 1) * rows;
    double pass = 0;  // the last micro-batch's way through the pipeline
    double slowest = 0;
    std::int64_t begin = 0;
    for (std::size_t i = 0; i < nodes_.size(); begin = ends[i], ++i) {
      if (begin == ends[i]) continue;
      // A row sees half the prompt on average; the last micro-batch sees all of it.
      slowest = std::max(slowest, stage_seconds(i, begin, ends[i], rows, prompt / 2));
      pass += stage_seconds(i, begin, ends[i], in_last, prompt);
      if (used_stages(ends) > 1) {
        slowest = std::max(slowest, hop_seconds(i, rows) - nodes_[i].rtt_s / 2);
        pass += hop_seconds(i, in_last);
      }
    }
    return (n_batches - 1) * slowest + pass + head_seconds(last_used(ends));
  }

  double token_seconds(const std::vector<std::int64_t>& ends, double depth) const {
    double seconds = head_seconds(last_used(ends));
    std::int64_t begin = 0;
    for (std::size_t i = 0; i < nodes_.size(); begin = ends[i], ++i) {
      if (begin == ends[i]) continue;
      seconds += stage_seconds(i, begin, ends[i], 1, depth);
      if (used_stages(ends) > 1) seconds += hop_seconds(i, 1);
    }
    return seconds;
  }

  double request_seconds(const std::vector<std::int64_t>& ends, std::int64_t rows) const {
    const double prompt = std::min(kTypicalPrompt, static_cast<double>(options_.n_ctx));
    return first_token_seconds(ends, static_cast<double>(rows), prompt) +
           kTypicalAnswer * token_seconds(ends, prompt);
  }

  Prediction predict(const std::vector<std::int64_t>& ends, std::int64_t rows,
                     std::int64_t prompt) const {
    Prediction p;
    p.prompt_tokens = prompt;
    const double depth = static_cast<double>(prompt);
    p.time_to_first_token_s = first_token_seconds(ends, static_cast<double>(rows), depth);
    p.prefill_tokens_per_s = depth / p.time_to_first_token_s;
    p.decode_tokens_per_s = 1.0 / token_seconds(ends, depth);
    return p;
  }

 private:
  std::size_t last_used(const std::vector<std::int64_t>& ends) const {
    std::size_t last = nodes_.size() - 1;
    while (last > 0 && ends[last - 1] == n_layers_) --last;
    return last;
  }

  int used_stages(const std::vector<std::int64_t>& ends) const {
    int n = 0;
    std::int64_t begin = 0;
    for (const std::int64_t end : ends) {
      n += end > begin ? 1 : 0;
      begin = end;
    }
    return n;
  }

  // Cuts worth looking at: for each of some bounds on the slowest stage, the one with the least
  // sum.
  std::vector<std::vector<std::int64_t>> candidates(std::int64_t rows) const {
    std::vector<double> bounds;
    for (std::size_t node = 0; node < nodes_.size(); ++node) {
      for (std::int64_t n = 1; n <= n_layers_; ++n) {
        bounds.push_back(stage_seconds(node, n_layers_ - n, n_layers_, static_cast<double>(rows),
                                       kTypicalPrompt / 2) *
                         1.02);
      }
    }
    std::sort(bounds.begin(), bounds.end());
    std::vector<std::vector<std::int64_t>> found;
    constexpr std::size_t kMostBounds = 64;
    const std::size_t stride = std::max<std::size_t>(1, bounds.size() / kMostBounds);
    for (std::size_t i = 0; i < bounds.size(); i += stride) {
      std::vector<std::int64_t> ends = cut(rows, bounds[i]);
      if (!ends.empty() && (found.empty() || found.back() != ends))
        found.push_back(std::move(ends));
    }
    std::vector<std::int64_t> ends = cut(rows, kInfinity);
    if (!ends.empty()) found.push_back(std::move(ends));
    return found;
  }

  // The cut with the least decode time whose stages all fit their nodes and take at most `bound` a
  // micro-batch; empty when there is none. Every node gets a layer when there are enough.
  std::vector<std::int64_t> cut(std::int64_t rows, double bound) const {
    const std::size_t n_nodes = nodes_.size();
    const std::int64_t width = n_layers_ + 1;
    const std::int64_t least_layers = n_layers_ >= static_cast<std::int64_t>(n_nodes) ? 1 : 0;
    std::vector<double> best(n_nodes * static_cast<std::size_t>(width),
                             kInfinity);  // (node, layers taken)
    std::vector<std::int64_t> from(best.size(), -1);
    const auto at = [&](std::size_t node, std::int64_t taken) {
      return node * static_cast<std::size_t>(width) + static_cast<std::size_t>(taken);
    };
    for (std::size_t node = 0; node < n_nodes; ++node) {
      for (std::int64_t begin = 0; begin <= n_layers_; ++begin) {
        const double before =
            node == 0 ? (begin == 0 ? 0.0 : kInfinity) : best[at(node - 1, begin)];
        if (before == kInfinity) continue;
        double decode = 0;
        double prefill = 0;
        for (std::int64_t end = begin; end <= n_layers_; ++end) {
          if (end > begin) {
            const LayerCost& layer = model_.layers[static_cast<std::size_t>(end - 1)];
            decode += layer_seconds(model_, layer, nodes_[node], 1, kTypicalPrompt);
            prefill += layer_seconds(model_, layer, nodes_[node], static_cast<double>(rows),
                                     kTypicalPrompt / 2);
          }
          if (prefill > bound || !fits(node, begin, end, rows)) break;
          if (end - begin < least_layers) continue;
          if (before + decode < best[at(node, end)]) {
            best[at(node, end)] = before + decode;
            from[at(node, end)] = begin;
          }
        }
      }
    }
    if (best[at(n_nodes - 1, n_layers_)] == kInfinity) return {};
    std::vector<std::int64_t> ends(n_nodes);
    std::int64_t end = n_layers_;
    for (std::size_t node = n_nodes; node-- > 0; end = from[at(node, end)]) ends[node] = end;
    return ends;
  }

  [[noreturn]] void refuse() const;

  const ModelCost& model_;
  const std::vector<NodeFacts>& nodes_;
  const PlanOptions& options_;
  const std::int64_t n_layers_;
  const double kv_tokens_;
};

std::string in_gb(double bytes) {
  std::ostringstream out;
  out.setf(std::ios::fixed);
  out.precision(1);
  out << bytes / 1e9 << " GB";
  return out.str();
}

// The model does not fit: says what each node could take, what is missing in all, and what would
// help.
void Planner::refuse() const {
  const std::int64_t rows = kMicroBatches[0];
  double need = 0;
  double room = 0;
  std::ostringstream text;
  text << "[plan] " << model_.name << " does not fit:";
  const NodePlan whole = node_plan(0, 0, n_layers_, rows);
  need = whole.weights_bytes + whole.kv_bytes;
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const double fixed = node_plan(i, 0, 1, rows).scratch_bytes + options_.process_bytes;
    const double usable = std::max(0.0, nodes_[i].memory_bytes * (1 - options_.headroom) - fixed);
    room += usable;
    const double share = need / static_cast<double>(nodes_.size());
    text << " " << nodes_[i].address << " has room for " << in_gb(usable);
    if (usable < share) text << " (" << in_gb(share - usable) << " less than an even share)";
    text << ";";
  }
  const double missing = need - room;
  text << " weights and a KV cache of " << static_cast<std::int64_t>(kv_tokens_) << " tokens need "
       << in_gb(need) << ".";
  if (missing > 0) {
    const double fixed = model_.scratch_bytes_fixed + options_.process_bytes;
    text << " What would help: another node with "
         << in_gb((missing + fixed) / (1 - options_.headroom));
    const double kv_per_token = whole.kv_bytes / kv_tokens_;
    const double spare = room - whole.weights_bytes;
    if (spare > kv_per_token * 256) {
      text << ", or n_ctx at most " << static_cast<std::int64_t>(spare / kv_per_token) / 256 * 256;
    }
    text << ".";
  } else {
    text << " The sum would do, but layers cannot be cut so that each node's share fits: give the "
            "smallest node more "
            "memory or leave it out.";
  }
  throw OutOfMemoryError(text.str(), static_cast<std::uint64_t>(need),
                         static_cast<std::uint64_t>(room));
}

void check(const ModelCost& model, const std::vector<NodeFacts>& nodes,
           const PlanOptions& options) {
  if (nodes.empty()) fail<ArgumentError>("[plan] no nodes: give at least one");
  if (model.layers.empty()) fail<ArgumentError>("[plan] the model has no layers");
  if (options.strategy == Strategy::kTensor || options.strategy == Strategy::kHybrid) {
    fail<ArgumentError>("[plan] strategy '",
                        options.strategy == Strategy::kTensor ? "tensor" : "hybrid",
                        "' is not in this version: use 'auto' or 'pipeline'");
  }
  if (options.n_ctx < 1)
    fail<ArgumentError>("[plan] n_ctx: got ", options.n_ctx, ", need at least 1");
  for (const NodeFacts& node : nodes) {
    if (!(node.memory_bytes > 0) || !(node.read_bytes_per_s > 0) || !(node.matmul_ops_per_s > 0) ||
        !(node.rtt_s >= 0) || !(node.link_bytes_per_s >= 0)) {
      fail<ArgumentError>("[plan] node ", node.address,
                          ": memory, bandwidth and matmul rate must be above 0, round trip and "
                          "link rate not below");
    }
  }
}

}  // namespace

Plan make_plan(const ModelCost& model, const std::vector<NodeFacts>& nodes,
               const PlanOptions& options) {
  check(model, nodes, options);
  return Planner(model, nodes, options).best();
}

Plan evaluate_plan(const ModelCost& model, const std::vector<NodeFacts>& nodes,
                   const std::vector<std::int64_t>& layer_ends, const PlanOptions& options) {
  check(model, nodes, options);
  const auto n_layers = static_cast<std::int64_t>(model.layers.size());
  if (layer_ends.size() != nodes.size() || layer_ends.back() != n_layers ||
      !std::is_sorted(layer_ends.begin(), layer_ends.end()) || layer_ends.front() < 0) {
    fail<ArgumentError>("[plan] layer_ends: need one end per node, ascending, the last being ",
                        n_layers);
  }
  const Planner planner(model, nodes, options);
  return planner.describe(layer_ends, planner.best_rows(layer_ends));
}

}  // namespace moesaic::cluster
