// The coordinator's side of a cluster for Python: links to workers, what they say, and models
// deployed on them as engines. python/moesaic/cluster.py is the public face.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <map>
#include <mutex>
#include <optional>
#include <tuple>

#include "base/errors.h"
#include "bindings/engine_types.h"
#include "bindings/gguf_file.h"
#include "bindings/interruptible.h"
#include "bindings/news_board.h"
#include "bindings/plan.h"
#include "bindings/register.h"
#include "cluster/coordinator/coordinator.h"
#include "model/arch/identity.h"

namespace py = pybind11;

namespace moesaic::bindings {
namespace {

using cluster::Coordinator;
using cluster::HeldModelInfo;
using cluster::NodeInfo;
using cluster::NodeProgress;
using CoordinatorPtr = std::shared_ptr<Coordinator>;

// progress(address, what, done_bytes, total_bytes)
using Progress =
    py::typing::Callable<py::object(std::string, std::string, std::uint64_t, std::uint64_t)>;

CoordinatorPtr connect(const std::vector<std::string>& addresses,
                       const std::optional<net::ClusterKey>& key, bool plain_beyond_loopback,
                       const std::string& release, const py::bytes& cache) {
  cluster::CoordinatorOptions options;
  options.addresses = addresses;
  options.key = key;
  options.plain_beyond_loopback = plain_beyond_loopback;
  options.release = release;
  options.cache_dir = std::string(cache);
  CoordinatorPtr coordinator;
  run_interruptible(
      [&](const CancelFlag& cancel) { coordinator = Coordinator::connect(options, &cancel); });
  return coordinator;
}

std::vector<NodeInfo> nodes(const CoordinatorPtr& self, bool measure) {
  std::vector<NodeInfo> out;
  run_interruptible([&](const CancelFlag& cancel) { out = self->nodes(measure, &cancel); });
  return out;
}

void add(const CoordinatorPtr& self, const std::string& address) {
  run_interruptible([&](const CancelFlag& cancel) { self->add(address, &cancel); });
}

std::vector<NodeInfo> unload(const CoordinatorPtr& self, const std::string& model) {
  std::vector<NodeInfo> out;
  run_interruptible([&](const CancelFlag& cancel) { out = self->unload(model, &cancel); });
  return out;
}

// The next news as (model, what, address, text, done, total).
using NewsTuple = std::tuple<std::int64_t, std::string, std::string, std::string, double, double>;
std::optional<NewsTuple> next_news(NewsBoard& board, double seconds) {
  std::optional<NewsBoard::Item> item;
  {
    const GilRelease free_gil;
    item = board.next(std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1e3)));
  }
  if (!item) return std::nullopt;
  const cluster::News& news = item->second;
  return NewsTuple{item->first, news.what, news.address, news.text, news.done, news.total};
}

// As plan() takes them (plan.cpp).
std::vector<Dict> facts(const CoordinatorPtr& self) {
  std::vector<cluster::NodeFacts> nodes;
  run_interruptible([&](const CancelFlag& cancel) { nodes = self->facts(&cancel); });
  std::vector<Dict> out;
  for (const cluster::NodeFacts& node : nodes) {
    Dict facts;
    facts["address"] = node.address;
    facts["memory_bytes"] = node.memory_bytes;
    facts["read_bytes_per_s"] = node.read_bytes_per_s;
    facts["matmul_ops_per_s"] = node.matmul_ops_per_s;
    facts["rtt_s"] = node.rtt_s;
    facts["link_bytes_per_s"] = node.link_bytes_per_s;
    facts["threads"] = node.threads;
    out.push_back(std::move(facts));
  }
  return out;
}

GGUFFile remote_file(const CoordinatorPtr& self, const std::string& name) {
  std::shared_ptr<const gguf::File> file;
  run_interruptible([&](const CancelFlag& cancel) { file = self->remote_file(name, &cancel); });
  return GGUFFile(std::move(file));
}

cluster::OnLoss on_loss_from(const std::string& name) {
  if (name == "raise") return cluster::OnLoss::kRaise;
  if (name == "wait") return cluster::OnLoss::kWait;
  if (name == "replan") return cluster::OnLoss::kReplan;
  fail<ArgumentError>("[Cluster.load] on_loss: got \"", name,
                      "\", need \"raise\", \"wait\" or \"replan\"");
}

wire::DigestPolicy digests_from(const std::string& name) {
  if (name == "first") return wire::DigestPolicy::kFirst;
  if (name == "always") return wire::DigestPolicy::kAlways;
  if (name == "never") return wire::DigestPolicy::kNever;
  fail<ArgumentError>("[Cluster.load] verify: got \"", name,
                      "\", need \"first\", \"always\" or \"never\"");
}

// What each worker said last about its loading: written by the thread that deploys, shown by the
// one that waits.
class ProgressBoard {
 public:
  void set(const NodeProgress& news) {
    const std::scoped_lock lock(mutex_);
    news_[news.address] = news;
  }
  void show(const Progress& progress) {
    std::map<std::string, NodeProgress> news;
    {
      const std::scoped_lock lock(mutex_);
      news.swap(news_);
    }
    for (const auto& [address, node] : news) {
      progress(address, node.what, node.done_bytes, node.total_bytes);
    }
  }

 private:
  std::mutex mutex_;
  std::map<std::string, NodeProgress> news_;  // not yet shown
};

std::shared_ptr<EngineHandle> deploy(const CoordinatorPtr& self, const GGUFFile& file,
                                     const Dict& plan_dict, std::int64_t n_ctx,
                                     std::int64_t kv_tokens, bool deterministic,
                                     const std::string& kv_type, const std::string& on_loss,
                                     double wait_s, bool hidden_f16, const std::string& verify,
                                     std::int64_t micro_batch_rows, const Dict& overrides,
                                     const std::shared_ptr<NewsBoard>& news, std::int64_t news_id,
                                     const std::optional<Progress>& progress) {
  const cluster::Plan plan = plan_from_dict(plan_dict);
  cluster::DeployOptions options;
  options.load.n_ctx = n_ctx;
  options.load.kv_tokens = kv_tokens;
  options.load.deterministic = deterministic;
  options.load.kv_type = kv_type_from(kv_type, "Cluster.load");
  options.load.overrides = overrides_from(overrides);
  options.on_loss = on_loss_from(on_loss);
  options.wait_for_worker = std::chrono::milliseconds(static_cast<std::int64_t>(wait_s * 1e3));
  options.hidden_f16 = hidden_f16;
  options.digests = digests_from(verify);
  options.micro_batch_rows = micro_batch_rows;
  if (news) {
    options.news = [news, news_id](const cluster::News& each) { news->put(news_id, each); };
  }
  ProgressBoard board;
  options.progress = [&board](const NodeProgress& each) { board.set(each); };
  const auto show = [&] {
    if (progress) board.show(*progress);
  };
  std::unique_ptr<model::Runner> runner;
  run_interruptible(
      [&](const CancelFlag& cancel) {
        options.load.cancel = &cancel;
        runner = self->deploy(file.shared(), plan, options);
      },
      show);
  show();
  std::size_t n_used = 0;
  for (const cluster::NodePlan& node : plan.nodes) {
    n_used += node.layer_end > node.layer_begin ? 1U : 0U;
  }
  auto handle = std::make_shared<EngineHandle>();
  handle->device = strcat("cluster: ", n_used, n_used == 1 ? " worker" : " workers");
  handle->fingerprint = model::overridden_identity(self->fingerprint(file.shared()), *file.shared(),
                                                   options.load.overrides);
  const GilRelease free_gil;
  handle->engine = share_engine(std::move(runner));
  return handle;
}

void register_nodes(py::module_& m) {
  py::class_<HeldModelInfo>(m, "HeldModelInfo", "A model of which a worker holds layers (private).")
      .def_readonly("name", &HeldModelInfo::name)
      .def_readonly("identity", &HeldModelInfo::identity)
      .def_readonly("layer_begin", &HeldModelInfo::layer_begin)
      .def_readonly("layer_end", &HeldModelInfo::layer_end)
      .def_readonly("weights_bytes", &HeldModelInfo::weights_bytes)
      .def_readonly("sessions", &HeldModelInfo::sessions);
  py::class_<NodeInfo>(m, "NodeInfo", "What a worker said last (private: use moesaic.Node).")
      .def_readonly("address", &NodeInfo::address)
      .def_readonly("host", &NodeInfo::host)
      .def_readonly("pid", &NodeInfo::pid)
      .def_readonly("release", &NodeInfo::release)
      .def_readonly("isa", &NodeInfo::isa)
      .def_readonly("threads", &NodeInfo::threads)
      .def_readonly("memory_bytes", &NodeInfo::memory_bytes)
      .def_readonly("memory_free_bytes", &NodeInfo::memory_free_bytes)
      .def_readonly("read_bytes_per_s", &NodeInfo::read_bytes_per_s)
      .def_readonly("matmul_ops_per_s", &NodeInfo::matmul_ops_per_s)
      .def_readonly("rtt_s", &NodeInfo::rtt_s)
      .def_readonly("link_bytes_per_s", &NodeInfo::link_bytes_per_s)
      .def_readonly("state", &NodeInfo::state)
      .def_readonly("error", &NodeInfo::error)
      .def_readonly("encrypted", &NodeInfo::encrypted)
      .def_readonly("bytes_sent_activations", &NodeInfo::bytes_sent_activations)
      .def_readonly("bytes_received_activations", &NodeInfo::bytes_received_activations)
      .def_readonly("bytes_read_weights", &NodeInfo::bytes_read_weights)
      .def_readonly("models", &NodeInfo::models);
}

}  // namespace

void register_cluster(py::module_& m) {
  register_nodes(m);
  py::class_<NewsBoard, std::shared_ptr<NewsBoard>>(
      m, "NewsBoard", "News of a cluster's models (private: use the logger of moesaic).")
      .def(py::init<>())
      .def("next", &next_news, py::arg("seconds"),
           "The next news, or None when the time is up or the board is closed.")
      .def_property_readonly("closed", &NewsBoard::closed, "Whether it was closed.")
      .def("close", &NewsBoard::close, "Take no more news; next() returns at once.");
  py::class_<Coordinator, CoordinatorPtr>(m, "Coordinator",
                                          "Links to workers (private: use moesaic.Cluster).")
      .def("nodes", &nodes, py::arg("measure"), "Ask every worker; dials lost ones again.")
      .def("facts", &facts, "What a plan needs to know of every worker.")
      .def("remote_file", &remote_file, py::arg("name"), "The headers of a file that workers have.")
      .def("deploy", &deploy, py::kw_only(), py::arg("file"), py::arg("plan"), py::arg("n_ctx"),
           py::arg("kv_tokens"), py::arg("deterministic"), py::arg("kv_type"), py::arg("on_loss"),
           py::arg("wait_s"), py::arg("hidden_f16"), py::arg("verify"), py::arg("micro_batch_rows"),
           py::arg("overrides"), py::arg("news"), py::arg("news_id"),
           py::arg("progress") = py::none(), "Load a model on the workers as the plan says.")
      .def("add", &add, py::arg("address"), "Link to one more worker.")
      .def("unload", &unload, py::arg("model"),
           "Let workers drop unused weights, of one model or (empty) of all.")
      .def(
          "close",
          [](const CoordinatorPtr& self) {
            const GilRelease free_gil;
            self->close();
          },
          "Close the links; deployments end. Idempotent.");
  m.def("connect_cluster", &connect, py::kw_only(), py::arg("addresses"), py::arg("key"),
        py::arg("plain_beyond_loopback"), py::arg("release"), py::arg("cache"),
        "Link to all workers.");
}

}  // namespace moesaic::bindings
