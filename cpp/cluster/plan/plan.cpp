// The pipeline planner. A table over (node, layers taken so far) gives, for a bound on the slowest
// stage, the cut with the least sum of stage times (what a decoded token takes). The least bound
// that can be met and some above it are tried for each size of micro-batch; the cut and size that
// answer a typical request soonest are taken. 61 layers x 4 nodes: some milliseconds.
#include "cluster/plan/plan.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "base/errors.h"
#include "cluster/plan/plan_memory.h"
#include "cluster/plan/plan_time.h"

namespace moesaic::cluster {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kTypicalPrompt = 4096;
constexpr double kTypicalAnswer = 256;
// With many experts a micro-batch touches nearly all of them, whatever its size: large ones read
// the weights less often, small ones fill the pipeline sooner.
constexpr std::int64_t kMicroBatches[] = {32,  64,  96,  128,  192,  256,
                                          384, 512, 768, 1024, 1536, 2048};
constexpr std::int64_t kPrompts[] = {512, 4096, 16384};
// Times the least bound on the slowest stage: a little slower a prefill may buy a faster decode.
// Not more: several sequences fill the pipeline in decode as well, and then the slowest stage sets
// the pace of all.
constexpr double kBounds[] = {1.0, 1.02, 1.05, 1.1};
// What another cut or a larger micro-batch must save to be worth it.
constexpr double kWorthwhile = 0.99;

using Ends = std::vector<std::int64_t>;  // (n_nodes) of each node's layers

struct Choice {
  double seconds = kInfinity;
  Ends ends;
  std::int64_t rows = 0;

  void consider(double its_seconds, const Ends& its_ends, std::int64_t its_rows) {
    if (its_seconds < seconds * kWorthwhile) *this = {its_seconds, its_ends, its_rows};
  }
};

class Planner {
 public:
  Planner(const ModelCost& model, const std::vector<NodeFacts>& nodes, const PlanOptions& options)
      : model_(model), nodes_(nodes), options_(options), memory_(model, nodes, options) {}

  Plan best() const {
    Choice chosen;
    for (const std::int64_t rows : micro_batches()) {
      Choice of_size;  // the most even cut first
      for (const Ends& ends : candidates(rows))
        of_size.consider(request_seconds(ends, rows), ends, rows);
      if (!of_size.ends.empty()) chosen.consider(of_size.seconds, of_size.ends, rows);
    }
    if (chosen.ends.empty()) memory_.refuse(kMicroBatches[0]);
    return describe(chosen.ends, chosen.rows);
  }

  // With the size of micro-batch that suits the cut.
  Plan evaluated(const Ends& ends) const {
    Choice chosen;
    for (const std::int64_t rows : micro_batches()) {
      if (all_fit(ends, rows)) chosen.consider(request_seconds(ends, rows), ends, rows);
    }
    if (chosen.ends.empty()) memory_.refuse_cut(ends, kMicroBatches[0]);
    return describe(ends, chosen.rows);
  }

  Prediction predict(const Ends& ends, std::int64_t rows, std::int64_t prompt) const {
    const Pipeline pipeline(model_, nodes_, ends, options_.hidden_f16);
    Prediction p;
    p.prompt_tokens = prompt;
    p.time_to_first_token_s = pipeline.first_token_seconds(prompt, rows);
    p.prefill_tokens_per_s = static_cast<double>(prompt) / p.time_to_first_token_s;
    p.decode_tokens_per_s = 1.0 / pipeline.token_seconds(static_cast<double>(prompt));
    return p;
  }

 private:
  std::vector<std::int64_t> micro_batches() const {
    std::vector<std::int64_t> sizes{kMicroBatches[0]};
    for (const std::int64_t rows : kMicroBatches) {
      if (rows > sizes.back() && rows <= options_.n_ctx) sizes.push_back(rows);
    }
    return sizes;
  }

  // Those that fit, and the whole context where it is clearly longer than these.
  std::vector<std::int64_t> prompts() const {
    std::vector<std::int64_t> fitting;
    for (const std::int64_t prompt : kPrompts) {
      if (prompt <= options_.n_ctx) fitting.push_back(prompt);
    }
    if (fitting.empty() || (fitting.back() != kPrompts[std::size(kPrompts) - 1] &&
                            options_.n_ctx >= fitting.back() + fitting.back() / 4)) {
      fitting.push_back(options_.n_ctx);
    }
    return fitting;
  }

  bool all_fit(const Ends& ends, std::int64_t rows) const {
    std::int64_t begin = 0;
    for (std::size_t i = 0; i < nodes_.size(); begin = ends[i], ++i) {
      if (!memory_.fits(i, begin, ends[i], rows)) return false;
    }
    return true;
  }

  Plan describe(const Ends& ends, std::int64_t rows) const {
    Plan plan;
    plan.model = model_.name;
    plan.n_ctx = options_.n_ctx;
    plan.kv_tokens = options_.kv_tokens > 0 ? options_.kv_tokens : options_.n_ctx;
    plan.micro_batch_rows = rows;
    std::int64_t begin = 0;
    for (std::size_t i = 0; i < nodes_.size(); begin = ends[i], ++i) {
      plan.nodes.push_back(memory_.node_plan(i, begin, ends[i], rows));
    }
    for (const std::int64_t prompt : prompts()) {
      plan.predictions.push_back(predict(ends, rows, prompt));
    }
    return plan;
  }

  double request_seconds(const Ends& ends, std::int64_t rows) const {
    const std::int64_t prompt = std::min(kTypicalPrompt, options_.n_ctx);
    const Pipeline pipeline(model_, nodes_, ends, options_.hidden_f16);
    return pipeline.first_token_seconds(prompt, rows) +
           kTypicalAnswer * pipeline.token_seconds(static_cast<double>(prompt));
  }

  // What the table of cuts is filled from: (n_nodes, n_layers + 1) each.
  struct Tables {
    std::vector<std::vector<double>> decode;   // seconds of the layers before an index
    std::vector<std::vector<double>> prefill;  // of a micro-batch
    std::vector<Ends> room;  // the last layer's end that fits the node, by its first layer
  };

  Tables tables(std::int64_t rows) const {
    const auto prompt = static_cast<double>(std::min(kTypicalPrompt, options_.n_ctx));
    Tables tables;
    for (const NodeFacts& node : nodes_) {
      std::vector<double> decode{0};
      std::vector<double> prefill{0};
      for (const LayerCost& layer : model_.layers) {
        decode.push_back(decode.back() + layer_seconds(model_, layer, node, 1, prompt));
        prefill.push_back(prefill.back() + layer_seconds(model_, layer, node,
                                                         static_cast<double>(rows), prompt / 2));
      }
      // The head is the last layer's companion in decode; prefill makes one row of it.
      decode.back() += layer_seconds(model_, model_.head, node, 1, 0);
      tables.decode.push_back(std::move(decode));
      tables.prefill.push_back(std::move(prefill));
    }
    for (std::size_t node = 0; node < nodes_.size(); ++node) {
      Ends room;
      for (std::int64_t begin = 0; begin <= memory_.n_layers(); ++begin) {
        std::int64_t end = begin;
        while (end < memory_.n_layers() && memory_.fits(node, begin, end + 1, rows)) ++end;
        room.push_back(end);
      }
      tables.room.push_back(std::move(room));
    }
    return tables;
  }

  // Cuts worth looking at, by falling bound on the slowest stage.
  std::vector<Ends> candidates(std::int64_t rows) const {
    const Tables tables = this->tables(rows);
    std::int64_t least_layers =
        memory_.n_layers() >= static_cast<std::int64_t>(nodes_.size()) ? 1 : 0;
    if (least_layers == 1 && cut(tables, kInfinity, 1).empty()) least_layers = 0;
    if (cut(tables, kInfinity, least_layers).empty()) return {};

    std::vector<double> stages;  // every time a stage can take
    for (const std::vector<double>& before : tables.prefill) {
      for (std::size_t begin = 0; begin < before.size(); ++begin) {
        for (std::size_t end = begin + 1; end < before.size(); ++end) {
          stages.push_back(before[end] - before[begin]);
        }
      }
    }
    std::sort(stages.begin(), stages.end());
    const auto least = std::partition_point(stages.begin(), stages.end(), [&](double bound) {
      return cut(tables, bound, least_layers).empty();
    });
    std::vector<Ends> found;
    for (const double factor : kBounds) {
      Ends ends = cut(tables, least == stages.end() ? kInfinity : *least * factor, least_layers);
      if (!ends.empty() && (found.empty() || found.back() != ends))
        found.push_back(std::move(ends));
    }
    return found;
  }

  // The cut with the least decode time whose stages all fit their nodes and take at most `bound` a
  // micro-batch, each node at least least_layers; empty when there is none.
  Ends cut(const Tables& tables, double bound, std::int64_t least_layers) const {
    const std::size_t n_nodes = nodes_.size();
    const std::int64_t n_layers = memory_.n_layers();
    const auto width = static_cast<std::size_t>(n_layers + 1);
    std::vector<double> best(n_nodes * width, kInfinity);  // (node, layers taken)
    std::vector<std::int64_t> from(n_nodes * width, -1);   // where the node's layers begin
    for (std::size_t node = 0; node < n_nodes; ++node) {
      for (std::int64_t begin = 0; begin <= n_layers; ++begin) {
        const auto b = static_cast<std::size_t>(begin);
        const double before =
            node > 0 ? best[(node - 1) * width + b] : (begin == 0 ? 0.0 : kInfinity);
        if (before == kInfinity) continue;
        for (std::int64_t end = begin; end <= tables.room[node][b]; ++end) {
          const auto e = static_cast<std::size_t>(end);
          // Rounding: a sum of differences must not miss the bound that it is.
          if (tables.prefill[node][e] - tables.prefill[node][b] > bound * (1 + 1e-12)) break;
          if (end - begin < least_layers) continue;
          const double seconds = before + tables.decode[node][e] - tables.decode[node][b];
          const std::size_t at = node * width + e;
          if (seconds < best[at]) {
            best[at] = seconds;
            from[at] = begin;
          }
        }
      }
    }
    if (best.back() == kInfinity) return {};
    Ends ends(n_nodes);
    std::int64_t end = n_layers;
    for (std::size_t node = n_nodes; node-- > 0;) {
      ends[node] = end;
      end = from[node * width + static_cast<std::size_t>(end)];
    }
    return ends;
  }

  const ModelCost& model_;
  const std::vector<NodeFacts>& nodes_;
  const PlanOptions& options_;
  const PlanMemory memory_;
};

void check(const ModelCost& model, const std::vector<NodeFacts>& nodes,
           const PlanOptions& options) {
  if (nodes.empty()) fail<ArgumentError>("[plan] nodes: got none, need at least one");
  if (model.layers.empty()) fail<ArgumentError>("[plan] the model has no layers");
  if (options.strategy == Strategy::kTensor || options.strategy == Strategy::kHybrid) {
    fail<ArgumentError>("[plan] strategy: got \"",
                        options.strategy == Strategy::kTensor ? "tensor" : "hybrid",
                        "\", which is not in this version; use \"auto\" or \"pipeline\"");
  }
  model::LoadOptions load;
  load.n_ctx = options.n_ctx;
  load.kv_tokens = options.kv_tokens;
  model::validate(load);
  if (!(options.headroom >= 0 && options.headroom < 1)) {
    fail<ArgumentError>("[plan] headroom: got ", options.headroom, ", need from 0 to below 1");
  }
  const auto need = [](const NodeFacts& node, const char* fact, double got, double least,
                       double most, const char* range) {
    if (!(got >= least && got <= most)) {  // also NaN
      fail<ArgumentError>("[plan] node ", node.address, ": ", fact, ": got ", got, ", need ",
                          range);
    }
  };
  // What no machine comes near, in either direction, is damage or a lie, and would otherwise only
  // be seen as "does not fit" or as a node without layers.
  constexpr double kLeastRate = 1e3;
  constexpr double kMostRate = 1e18;
  for (const NodeFacts& node : nodes) {
    need(node, "memory", node.memory_bytes, 1, 1e18, "1 to 1e18 bytes");
    need(node, "bandwidth", node.read_bytes_per_s, kLeastRate, kMostRate, "1e3 to 1e18 bytes/s");
    need(node, "matmul rate", node.matmul_ops_per_s, kLeastRate, kMostRate, "1e3 to 1e18 ops/s");
    need(node, "round trip", node.rtt_s, 0, 3600, "0 to 3600 seconds");
    if (node.link_bytes_per_s != 0) {  // 0: not known
      need(node, "link rate", node.link_bytes_per_s, 1, kMostRate, "1 to 1e18 bytes/s, or 0");
    }
    if (node.threads < 1 || node.threads > 1024) {
      fail<ArgumentError>("[plan] node ", node.address, ": threads: got ", node.threads,
                          ", need 1 to 1024");
    }
  }
}

void check_ends(const ModelCost& model, const std::vector<NodeFacts>& nodes, const Ends& ends) {
  const auto n_layers = static_cast<std::int64_t>(model.layers.size());
  if (ends.size() != nodes.size() || ends.back() != n_layers || ends.front() < 0 ||
      !std::is_sorted(ends.begin(), ends.end())) {
    std::string got;
    for (const std::int64_t end : ends) got += strcat(got.empty() ? "" : ", ", end);
    fail<ArgumentError>("[plan] layer ends: got [", got, "], need ", nodes.size(),
                        ", one for each node, that do not fall, the last one ", n_layers);
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
  check_ends(model, nodes, layer_ends);
  return Planner(model, nodes, options).evaluated(layer_ends);
}

Prediction predict(const ModelCost& model, const std::vector<NodeFacts>& nodes,
                   const std::vector<std::int64_t>& layer_ends, const PlanOptions& options,
                   std::int64_t micro_batch_rows, std::int64_t prompt_tokens) {
  check(model, nodes, options);
  check_ends(model, nodes, layer_ends);
  if (micro_batch_rows < 1 || prompt_tokens < 1) {
    fail<ArgumentError>("[plan] got micro-batches of ", micro_batch_rows, " rows and a prompt of ",
                        prompt_tokens, " tokens, need at least 1 of each");
  }
  return Planner(model, nodes, options).predict(layer_ends, micro_batch_rows, prompt_tokens);
}

}  // namespace moesaic::cluster
