// Plans: which node holds what of a model, on paper or for a cluster. The public class is
// moesaic.Plan.
#include "bindings/plan.h"

#include <pybind11/stl.h>

#include "bindings/interruptible.h"
#include "bindings/register.h"
#include "bindings/text.h"
#include "cluster/measure/measure.h"
#include "cluster/plan/cost.h"

namespace py = pybind11;

namespace moesaic::bindings {
namespace {

// A value of a dict that came from outside.
template <typename T>
T field(const py::dict& dict, const char* key, const char* of) {
  if (!dict.contains(key)) fail<ArgumentError>("[Plan] ", of, ": got no \"", key, "\"");
  try {
    return dict[key].cast<T>();
  } catch (const py::cast_error&) {
    fail<ArgumentError>("[Plan] ", of, ": ", key, ": got ", py::repr(dict[key]).cast<std::string>(),
                        ", which is of a wrong type");
  }
}

const char* strategy_name(cluster::Strategy strategy) {
  switch (strategy) {
    case cluster::Strategy::kAuto:
      return "auto";
    case cluster::Strategy::kPipeline:
      return "pipeline";
    case cluster::Strategy::kTensor:
      return "tensor";
    case cluster::Strategy::kHybrid:
      return "hybrid";
  }
  return "unknown";
}

Dict node_dict(const cluster::NodePlan& node) {
  Dict out;
  out["address"] = node.address;
  out["layers"] = std::vector<std::int64_t>{node.layer_begin, node.layer_end};
  out["embed"] = node.embed;
  out["head"] = node.head;
  // Whole bytes: they are sums of such.
  out["weights_bytes"] = static_cast<std::int64_t>(node.weights_bytes);
  out["kv_bytes"] = static_cast<std::int64_t>(node.kv_bytes);
  out["scratch_bytes"] = static_cast<std::int64_t>(node.scratch_bytes);
  out["process_bytes"] = static_cast<std::int64_t>(node.process_bytes);
  out["headroom_bytes"] = static_cast<std::int64_t>(node.headroom_bytes);
  out["memory_bytes"] = static_cast<std::int64_t>(node.memory_bytes);
  return out;
}

cluster::NodePlan node_from(const py::dict& dict) {
  constexpr const char* kOf = "a node";
  cluster::NodePlan node;
  node.address = field<std::string>(dict, "address", kOf);
  const auto layers = field<std::vector<std::int64_t>>(dict, "layers", kOf);
  if (layers.size() != 2) {
    fail<ArgumentError>("[Plan] node ", node.address, ": layers: got ", layers.size(),
                        " numbers, need [first, end)");
  }
  node.layer_begin = layers[0];
  node.layer_end = layers[1];
  node.weights_bytes = field<double>(dict, "weights_bytes", kOf);
  node.kv_bytes = field<double>(dict, "kv_bytes", kOf);
  node.scratch_bytes = field<double>(dict, "scratch_bytes", kOf);
  node.process_bytes = field<double>(dict, "process_bytes", kOf);
  node.headroom_bytes = field<double>(dict, "headroom_bytes", kOf);
  node.memory_bytes = field<double>(dict, "memory_bytes", kOf);
  return node;
}

cluster::NodeFacts facts_from(const py::dict& dict) {
  constexpr const char* kOf = "facts of a node";
  cluster::NodeFacts facts;
  facts.address = field<std::string>(dict, "address", kOf);
  facts.memory_bytes = field<double>(dict, "memory_bytes", kOf);
  facts.read_bytes_per_s = field<double>(dict, "read_bytes_per_s", kOf);
  facts.matmul_ops_per_s = field<double>(dict, "matmul_ops_per_s", kOf);
  facts.rtt_s = field<double>(dict, "rtt_s", kOf);
  facts.link_bytes_per_s = field<double>(dict, "link_bytes_per_s", kOf);
  facts.threads = field<int>(dict, "threads", kOf);
  return facts;
}

struct Request {
  std::vector<cluster::NodeFacts> nodes;
  model::LoadOptions load;
  cluster::PlanOptions options;
};

Request request_from(const std::vector<Dict>& nodes, const Dict& options) {
  constexpr const char* kOf = "options";
  Request request;
  for (const Dict& node : nodes) request.nodes.push_back(facts_from(node));
  request.load.deterministic = field<bool>(options, "deterministic", kOf);
  request.load.kv_type = kv_type_from(field<std::string>(options, "kv_type", kOf), "plan");
  cluster::PlanOptions& plan = request.options;
  plan.n_ctx = field<std::int64_t>(options, "n_ctx", kOf);
  plan.kv_tokens = field<std::int64_t>(options, "kv_tokens", kOf);
  plan.strategy = strategy_from(field<std::string>(options, "strategy", kOf));
  plan.hidden_f16 = field<bool>(options, "hidden_f16", kOf);
  plan.headroom = field<double>(options, "headroom", kOf);
  if (options.contains("process_bytes")) {
    plan.process_bytes = field<double>(options, "process_bytes", kOf);
  }
  return request;
}

Dict plan(const PlanModel& model, const std::vector<Dict>& nodes, const Dict& options,
          const std::optional<std::vector<std::int64_t>>& ends) {
  const Request request = request_from(nodes, options);
  cluster::Plan made;
  {
    const GilRelease free_gil;
    const cluster::ModelCost cost = cluster::model_cost(model.model(), request.load);
    made = ends ? cluster::evaluate_plan(cost, request.nodes, *ends, request.options)
                : cluster::make_plan(cost, request.nodes, request.options);
  }
  return plan_to_dict(made);
}

}  // namespace

Dict plan_to_dict(const cluster::Plan& plan) {
  Dict out;
  out["model"] = readable(plan.model);
  out["strategy"] = strategy_name(plan.strategy);
  out["n_ctx"] = plan.n_ctx;
  out["kv_tokens"] = plan.kv_tokens;
  out["micro_batch_rows"] = plan.micro_batch_rows;
  py::list nodes;
  for (const cluster::NodePlan& node : plan.nodes) nodes.append(node_dict(node));
  out["nodes"] = std::move(nodes);
  py::list predictions;
  for (const cluster::Prediction& p : plan.predictions) {
    Dict row;
    row["prompt_tokens"] = p.prompt_tokens;
    row["prefill_tokens_per_s"] = p.prefill_tokens_per_s;
    row["decode_tokens_per_s"] = p.decode_tokens_per_s;
    row["time_to_first_token_s"] = p.time_to_first_token_s;
    predictions.append(std::move(row));
  }
  out["predictions"] = std::move(predictions);
  return out;
}

cluster::Plan plan_from_dict(const py::dict& dict) {
  constexpr const char* kOf = "a plan";
  cluster::Plan plan;
  plan.model = field<std::string>(dict, "model", kOf);
  plan.strategy = strategy_from(field<std::string>(dict, "strategy", kOf));
  plan.n_ctx = field<std::int64_t>(dict, "n_ctx", kOf);
  plan.kv_tokens = field<std::int64_t>(dict, "kv_tokens", kOf);
  plan.micro_batch_rows = field<std::int64_t>(dict, "micro_batch_rows", kOf);
  std::int64_t begin = 0;
  for (const py::dict& node : field<std::vector<py::dict>>(dict, "nodes", kOf)) {
    plan.nodes.push_back(node_from(node));
    const cluster::NodePlan& p = plan.nodes.back();
    if (p.layer_begin != begin || p.layer_end < begin) {
      fail<ArgumentError>("[Plan] node ", p.address, ": layers: got [", p.layer_begin, ", ",
                          p.layer_end, "), need them to go on from ", begin);
    }
    begin = p.layer_end;
  }
  for (cluster::NodePlan& node : plan.nodes) {  // follow from the layers, which people edit
    const bool is_used = node.layer_end > node.layer_begin;
    node.embed = is_used && node.layer_begin == 0;
    node.head = is_used && node.layer_end == begin;
  }
  for (const py::dict& row : field<std::vector<py::dict>>(dict, "predictions", kOf)) {
    constexpr const char* kPrediction = "a prediction";
    plan.predictions.push_back(
        {.prompt_tokens = field<std::int64_t>(row, "prompt_tokens", kPrediction),
         .prefill_tokens_per_s = field<double>(row, "prefill_tokens_per_s", kPrediction),
         .decode_tokens_per_s = field<double>(row, "decode_tokens_per_s", kPrediction),
         .time_to_first_token_s = field<double>(row, "time_to_first_token_s", kPrediction)});
  }
  return plan;
}

std::vector<std::int64_t> layer_ends(const cluster::Plan& plan) {
  std::vector<std::int64_t> ends;
  for (const cluster::NodePlan& node : plan.nodes) ends.push_back(node.layer_end);
  return ends;
}

cluster::Strategy strategy_from(const std::string& name) {
  using cluster::Strategy;
  for (const Strategy strategy :
       {Strategy::kAuto, Strategy::kPipeline, Strategy::kTensor, Strategy::kHybrid}) {
    if (name == strategy_name(strategy)) return strategy;
  }
  fail<ArgumentError>("[plan] strategy: got \"", name, "\", need \"auto\" or \"pipeline\"");
}

void register_plan(py::module_& m) {
  py::class_<PlanModel>(m, "PlanModel", "A model to plan for, of its headers alone.")
      .def(py::init([](const py::bytes& path, const Dict& overrides) {
             return PlanModel(gguf::File::open(std::string(path)), overrides);
           }),
           py::arg("path"), py::arg("overrides") = Dict(), "Of a file by its encoded path.")
      .def_static(
          "from_gguf",
          [](const GGUFFile& file, const Dict& overrides) {
            return PlanModel(file.shared(), overrides);
          },
          py::arg("file"), py::arg("overrides") = Dict(),
          "Of an open file, which may be without weights.")
      .def_static(
          "from_headers",
          [](const py::bytes& headers, const std::string& name, const Dict& overrides) {
            const std::string bytes = headers;
            const auto* data = reinterpret_cast<const std::uint8_t*>(bytes.data());
            return PlanModel(
                gguf::File::from_headers(std::span<const std::uint8_t>(data, bytes.size()), name),
                overrides);
          },
          py::arg("headers"), py::arg("name"), py::arg("overrides") = Dict(),
          "Of the headers of all parts, one after the other.")
      .def_property_readonly("n_layers",
                             [](const PlanModel& self) { return self.model().config.n_layers; })
      .def_property_readonly("n_ctx_train",
                             [](const PlanModel& self) { return self.model().config.n_ctx_train; });
  m.def("plan", &plan, py::arg("model"), py::arg("nodes"), py::arg("options"),
        py::arg("layer_ends") = py::none(),
        "A plan as a dict: the best one, or that with the given end of each node's layers.");
  m.def(
      "check_plan", [](const Dict& dict) { return plan_to_dict(plan_from_dict(dict)); },
      py::arg("plan"), "A plan's dict with every value checked and of its type.");
  m.def(
      "measure",
      [](int threads) {
        cluster::Rates rates;
        run_interruptible(
            [&](const CancelFlag& cancel) { rates = cluster::measure(threads, &cancel); });
        return py::make_tuple(rates.read_bytes_per_s, rates.matmul_ops_per_s);
      },
      py::arg("threads"), "This machine's (weights bytes per second, int8 operations per second).");
  m.def(
      "qtype_ids",
      [] {
        std::map<std::string, std::uint32_t> ids;
        for (const quant::QtypeTraits& row : quant::all_qtypes()) {
          ids[std::string(row.name)] = static_cast<std::uint32_t>(row.type);
        }
        return ids;
      },
      "Element types by name, as a file numbers them.");
}

}  // namespace moesaic::bindings
