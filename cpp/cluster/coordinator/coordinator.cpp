// See coordinator.h.
#include "cluster/coordinator/coordinator.h"

#include <algorithm>
#include <filesystem>
#include <future>
#include <map>
#include <mutex>

#include "base/digest.h"
#include "base/process.h"
#include "cluster/coordinator/cluster_runner.h"
#include "cluster/coordinator/ring.h"
#include "cluster/coordinator/step_deadline.h"
#include "cluster/measure/numerics.h"
#include "cluster/plan/plan_time.h"
#include "cluster/step/step_messages.h"
#include "cluster/weights/blob_server.h"
#include "cluster/weights/blob_source.h"
#include "cluster/weights/known_contents.h"
#include "cluster/weights/slice_pull.h"
#include "cluster/weights/weight_store.h"

namespace moesaic::cluster {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kPoll{10};
constexpr std::chrono::seconds kStatusDeadline{4};
constexpr std::chrono::seconds kMeasureDeadline{30};
constexpr std::chrono::milliseconds kDialDeadline{5000};
constexpr std::chrono::milliseconds kLeastDialDeadline{1000};

// A worker as the coordinator's own link to it knows it. Guarded by the coordinator's mutex.
struct Node {
  std::string address;
  std::shared_ptr<net::Connection> link;  // null or closed: to be dialled
  std::shared_ptr<LinkSource> source;
  wire::Status status;
  double answer_s = 0;  // how long it took to answer
  double probe_rtt_s = 0;
  double probe_bytes_per_s = 0;
  std::string error;
};

// "10.0.0.11:9777: cannot be reached: ...": most errors of links name their peer themselves.
std::string named_error(const Node& node) {
  std::string text = node.error;
  const std::size_t tag = text.starts_with('[') ? text.find("] ") : std::string::npos;
  if (tag != std::string::npos) text.erase(0, tag + 2);  // "[net] "
  return text.find(node.address) == std::string::npos ? strcat(node.address, ": ", text) : text;
}

struct Inbox {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::uint64_t, wire::Status> answers;
  std::map<std::uint64_t, wire::ErrorReply> errors;
};

class CoordinatorImpl final : public Coordinator,
                              public std::enable_shared_from_this<CoordinatorImpl> {
 public:
  explicit CoordinatorImpl(const CoordinatorOptions& options);
  ~CoordinatorImpl() override { close(); }
  void connect_all(const CancelFlag* cancel);

  std::vector<NodeInfo> nodes(bool measure, const CancelFlag* cancel) override;
  std::shared_ptr<const gguf::File> remote_file(const std::string& name,
                                                const CancelFlag* cancel) override;
  std::unique_ptr<model::Runner> deploy(std::shared_ptr<const gguf::File> file, const Plan& plan,
                                        const DeployOptions& options) override;
  std::string fingerprint(const std::shared_ptr<const gguf::File>& file) override {
    return contents_.fingerprint(file);
  }
  std::vector<NodeFacts> facts(const CancelFlag* cancel) override;
  void add(const std::string& address, const CancelFlag* cancel) override;
  std::vector<NodeInfo> unload(const std::string& model, const CancelFlag* cancel) override {
    return ask_nodes({.unload = model}, cancel);
  }
  void close() override;

 private:
  // Of all workers, or after a loss of those whose links live: nothing is dialled.
  struct Asked {
    bool measure = false;
    bool dial = true;
    std::vector<std::string> lost{};      // these are not asked
    std::optional<std::string> unload{};  // which weights they let go of
  };
  std::vector<NodeInfo> ask_nodes(const Asked& asked, const CancelFlag* cancel);
  void dial(Node& node, const CancelFlag* cancel);
  void dial_lost(const CancelFlag* cancel);
  void check_apart() const;
  void ask(const std::vector<std::size_t>& which, bool measure, const CancelFlag* cancel,
           const std::optional<std::string>& unload = std::nullopt);
  void check_open() const;
  std::vector<NodeFacts> alive_facts(const Asked& asked, const CancelFlag* cancel);
  std::vector<std::string> addresses();
  std::vector<NodeFacts> measured_rates();

  CoordinatorOptions options_;
  net::LinkOptions link_options_;
  std::unique_ptr<WeightStore> store_;
  std::unique_ptr<BlobServer> blobs_;
  std::unique_ptr<net::NetThread> net_;
  std::mutex mutex_;  // of nodes_, held while asking: callers take turns
  std::vector<Node> nodes_;
  KnownContents contents_;
  std::shared_ptr<Inbox> inbox_ = std::make_shared<Inbox>();
  std::atomic<std::uint64_t> next_request_{1};
  std::atomic<bool> closed_{false};
};

CoordinatorImpl::CoordinatorImpl(const CoordinatorOptions& options) : options_(options) {
  if (options_.addresses.empty()) fail<ArgumentError>("[Cluster] addresses: got none, need one");
  for (std::size_t i = 0; i < options_.addresses.size(); ++i) {
    net::split_address(options_.addresses[i]);
    for (std::size_t j = 0; j < i; ++j) {
      if (options_.addresses[i] == options_.addresses[j]) {
        fail<ArgumentError>("[Cluster] addresses: ", options_.addresses[i], " is given twice");
      }
    }
    Node node;
    node.address = options_.addresses[i];
    nodes_.push_back(std::move(node));
  }
  link_options_.key = options_.key;
  link_options_.plain_beyond_loopback = options_.plain_beyond_loopback;
  link_options_.role = wire::Role::kCoordinator;
  link_options_.release = options_.release;
  link_options_.numerics = numerics_digest(options_.release);
  store_ = WeightStore::make(
      {.models_dir = "", .cache_dir = options_.cache_dir, .cache_bytes = 0, .log = {}});
  blobs_ = std::make_unique<BlobServer>(*store_);
  net_ = std::make_unique<net::NetThread>();
}

void CoordinatorImpl::check_open() const {
  if (closed_) fail<ClosedError>("[Cluster] it is closed; make a new one");
}

void CoordinatorImpl::close() {
  if (closed_.exchange(true)) return;
  const std::scoped_lock lock(mutex_);
  for (Node& node : nodes_) {
    if (node.link) node.link->close();
  }
}

// --- links and what workers say

void CoordinatorImpl::dial(Node& node, const CancelFlag* cancel) {
  node.link = net::dial(*net_, link_options_, node.address, kDialDeadline, cancel);
  node.source = std::make_shared<LinkSource>(node.link, node.address);
  node.error.clear();
  node.link->start({.on_message =
                        [inbox = inbox_, source = node.source](net::Incoming&& in) {
                          if (source->take(in)) return;
                          const std::scoped_lock lock(inbox->mutex);
                          if (auto* status = std::get_if<wire::Status>(&in.message)) {
                            inbox->answers[status->request] = std::move(*status);
                          } else if (auto* error = std::get_if<wire::ErrorReply>(&in.message)) {
                            inbox->errors[error->request] = std::move(*error);
                          } else {
                            fail<ProtocolError>("[cluster] ", wire::type_name(in.header.type),
                                                ": was not asked");
                          }
                          inbox->changed.notify_all();
                        },
                    .on_closed =
                        [inbox = inbox_, source = node.source](std::exception_ptr why) {
                          source->lost(why);
                          inbox->changed.notify_all();
                        },
                    .progress = {}});
}

void CoordinatorImpl::connect_all(const CancelFlag* cancel) {
  const std::scoped_lock lock(mutex_);
  for (Node& node : nodes_) dial(node, cancel);
  check_apart();
  std::vector<std::size_t> all(nodes_.size());
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = i;
  ask(all, false, cancel);
}

// One worker under two addresses would get two parts of a model, and refuse the second one.
void CoordinatorImpl::check_apart() const {
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (nodes_[i].link->peer().node != nodes_[j].link->peer().node) continue;
      fail<ArgumentError>("[Cluster] addresses: ", nodes_[j].address, " and ", nodes_[i].address,
                          " lead to the same worker, need each worker once");
    }
  }
}

// Nodes whose links are gone, all at once: those that are dead cost their deadline only once.
void CoordinatorImpl::dial_lost(const CancelFlag* cancel) {
  std::vector<std::future<void>> dials;
  for (Node& node : nodes_) {
    if (node.link && !node.link->closed()) continue;
    dials.push_back(std::async(std::launch::async, [this, &node, cancel] {
      try {
        dial(node, cancel);
      } catch (const CancelledError&) {
        throw;
      } catch (const Error& e) {
        node.link.reset();
        node.error = e.what();
      }
    }));
  }
  std::exception_ptr error;
  for (auto& each : dials) {
    try {
      each.get();
    } catch (...) {
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

void CoordinatorImpl::ask(const std::vector<std::size_t>& which, bool measure,
                          const CancelFlag* cancel, const std::optional<std::string>& unload) {
  const auto begin = Clock::now();
  std::map<std::uint64_t, std::size_t> asked;
  for (const std::size_t i : which) {
    Node& node = nodes_[i];
    if (!node.link) continue;
    wire::StatusRequest request;
    request.request = next_request_++;
    request.measure = measure;
    for (std::size_t k = 1; measure && k < nodes_.size() && request.probe.empty(); ++k) {
      const Node& next = nodes_[(i + k) % nodes_.size()];  // to the next one that lives
      if (next.link && !next.link->closed()) request.probe = next.address;
    }
    try {
      if (unload) {
        node.link->send(wire::Unload{request.request, *unload});
      } else {
        node.link->send(request);
      }
      asked[request.request] = i;
    } catch (const Error& e) {
      node.error = e.what();
      node.link.reset();
    }
  }
  const auto deadline = begin + (measure ? kMeasureDeadline : kStatusDeadline);
  while (!asked.empty()) {
    if (cancel != nullptr) cancel->check();
    std::unique_lock lock(inbox_->mutex);
    inbox_->changed.wait_for(lock, kPoll);
    for (auto it = asked.begin(); it != asked.end();) {
      Node& node = nodes_[it->second];
      bool over = false;
      if (const auto answer = inbox_->answers.find(it->first); answer != inbox_->answers.end()) {
        node.status = std::move(answer->second);
        node.answer_s = std::chrono::duration<double>(Clock::now() - begin).count();
        if (node.status.probe_rtt_s > 0) {
          node.probe_rtt_s = node.status.probe_rtt_s;
          node.probe_bytes_per_s = node.status.probe_bytes_per_s;
        }
        node.error.clear();
        inbox_->answers.erase(answer);
        over = true;
      } else if (const auto error = inbox_->errors.find(it->first); error != inbox_->errors.end()) {
        node.error = net::printable(error->second.text);
        inbox_->errors.erase(error);
        over = true;
      } else if (node.link->closed() || Clock::now() > deadline) {
        node.error = node.link->closed() ? "its link was closed" : "it did not answer in time";
        node.link.reset();
        over = true;
      }
      it = over ? asked.erase(it) : std::next(it);
    }
  }
}

std::vector<NodeInfo> CoordinatorImpl::nodes(bool measure, const CancelFlag* cancel) {
  return ask_nodes({.measure = measure}, cancel);
}

std::vector<std::string> CoordinatorImpl::addresses() {
  const std::scoped_lock lock(mutex_);
  std::vector<std::string> all;
  for (const Node& node : nodes_) all.push_back(node.address);
  return all;
}

std::vector<NodeFacts> CoordinatorImpl::measured_rates() {
  const std::scoped_lock lock(mutex_);
  std::vector<NodeFacts> rates(nodes_.size());
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    rates[i].read_bytes_per_s = nodes_[i].status.read_bytes_per_s;
    rates[i].matmul_ops_per_s = nodes_[i].status.matmul_ops_per_s;
  }
  return rates;
}

void CoordinatorImpl::add(const std::string& address, const CancelFlag* cancel) {
  check_open();
  net::split_address(address);
  const std::scoped_lock lock(mutex_);
  for (Node& node : nodes_) {
    if (node.address != address) continue;
    if (!node.link || node.link->closed()) dial(node, cancel);
    return;
  }
  Node node;
  node.address = address;
  dial(node, cancel);
  for (const Node& other : nodes_) {
    if (!other.link || other.link->peer().node != node.link->peer().node) continue;
    fail<ArgumentError>("[Cluster.add] ", address, " leads to the same worker as ", other.address,
                        ", need each worker once");
  }
  nodes_.push_back(std::move(node));
  ask({nodes_.size() - 1}, false, cancel);
}

std::vector<NodeInfo> CoordinatorImpl::ask_nodes(const Asked& asked, const CancelFlag* cancel) {
  check_open();
  const std::scoped_lock lock(mutex_);
  for (Node& node : nodes_) {
    const bool lost =
        std::find(asked.lost.begin(), asked.lost.end(), node.address) != asked.lost.end();
    if (!lost && (asked.dial || (node.link && !node.link->closed()))) continue;
    if (node.link) node.link->close();
    node.link.reset();
    if (node.error.empty()) node.error = "it was lost";
  }
  if (asked.dial) dial_lost(cancel);
  std::vector<std::size_t> all(nodes_.size());
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = i;
  ask(all, false, cancel, asked.unload);
  if (asked.measure) {
    // Workers of one host would measure each other: they take turns, hosts do not.
    std::vector<std::vector<std::size_t>> rounds;
    std::map<std::string, std::size_t> seen;
    for (const std::size_t i : all) {
      if (!nodes_[i].link) continue;
      if (nodes_[i].status.read_bytes_per_s > 0 &&
          (nodes_[i].probe_rtt_s > 0 || nodes_.size() == 1)) {
        continue;
      }
      const std::size_t round = seen[nodes_[i].status.host]++;
      if (round == rounds.size()) rounds.emplace_back();
      rounds[round].push_back(i);
    }
    for (const auto& round : rounds) ask(round, true, cancel);
  }
  std::vector<NodeInfo> infos;
  for (const Node& node : nodes_) {
    NodeInfo info;
    const wire::Status& status = node.status;
    info.address = node.address;
    info.host = net::printable(status.host);
    info.pid = status.pid;
    info.release = net::printable(status.release);
    info.isa = net::printable(status.isa);
    info.threads = static_cast<int>(status.threads);
    info.memory_bytes = status.memory_bytes;
    info.memory_free_bytes = status.memory_free_bytes;
    info.read_bytes_per_s = status.read_bytes_per_s;
    info.matmul_ops_per_s = status.matmul_ops_per_s;
    info.link_bytes_per_s = node.probe_bytes_per_s;
    info.bytes_sent_activations = status.bytes_sent_activations;
    info.bytes_received_activations = status.bytes_received_activations;
    info.bytes_read_weights = status.bytes_read_weights;
    info.error = node.error;
    info.state = node.error.empty() ? net::printable(status.state) : "lost";
    if (node.link) {
      info.encrypted = node.link->peer().encrypted;
      const auto pinged = std::chrono::duration<double>(node.link->round_trip()).count();
      info.rtt_s = pinged > 0 ? pinged : node.answer_s;
    }
    for (const wire::HeldModel& held : status.models) {
      info.models.push_back({net::printable(held.name), to_hex(held.identity), held.layer_begin,
                             held.layer_end, held.weights_bytes, held.sessions});
    }
    infos.push_back(std::move(info));
  }
  return infos;
}

std::vector<NodeFacts> CoordinatorImpl::alive_facts(const Asked& asked, const CancelFlag* cancel) {
  const std::vector<NodeInfo> infos = ask_nodes(asked, cancel);
  std::vector<NodeFacts> facts;
  const std::scoped_lock lock(mutex_);
  for (std::size_t i = 0; i < infos.size(); ++i) {
    const NodeInfo& info = infos[i];
    if (info.state == "lost") continue;
    NodeFacts fact;
    fact.address = info.address;
    // Weights that it holds are used again, or make room.
    fact.memory_bytes = static_cast<double>(info.memory_free_bytes);
    for (const HeldModelInfo& held : info.models) {
      fact.memory_bytes += static_cast<double>(held.weights_bytes);
    }
    fact.read_bytes_per_s = info.read_bytes_per_s;
    fact.matmul_ops_per_s = info.matmul_ops_per_s;
    fact.rtt_s = nodes_[i].probe_rtt_s;
    fact.link_bytes_per_s = nodes_[i].probe_bytes_per_s;
    fact.threads = info.threads;
    facts.push_back(std::move(fact));
  }
  return facts;
}

std::vector<NodeFacts> CoordinatorImpl::facts(const CancelFlag* cancel) {
  std::vector<NodeFacts> facts = alive_facts({.measure = true}, cancel);
  if (facts.size() == nodes_.size()) return facts;
  std::string lost;
  {
    const std::scoped_lock lock(mutex_);
    for (const Node& node : nodes_) {
      if (!node.error.empty()) lost += (lost.empty() ? "" : "; ") + named_error(node);
    }
  }
  fail<NetError>("[Cluster] not all workers answer: ", lost,
                 "; start them, or make a Cluster without them");
}

// --- models

std::shared_ptr<const gguf::File> CoordinatorImpl::remote_file(const std::string& name,
                                                               const CancelFlag* cancel) {
  check_open();
  std::vector<std::shared_ptr<BlobSource>> sources;
  {
    const std::scoped_lock lock(mutex_);
    dial_lost(cancel);
    for (const Node& node : nodes_) {
      if (node.link) sources.push_back(node.source);
    }
  }
  const Manifests manifests = ask_manifests(sources, {}, name, cancel);
  const Content content = agreed_content(manifests, name);
  std::atomic<std::uint64_t> n_bytes{0};
  auto headers = pull_headers(manifests, content.headers, name, cancel, &n_bytes);
  if (!has_headers_of(*headers, content)) {
    fail<ProtocolError>("[Cluster.load] ", name, ": its headers and its digests do not fit");
  }
  OpenSlice values;
  values.tensors = model::tensors_to_understand(*headers);
  values.content = content;
  values.name = name;
  values.sources = sources;
  values.cancel = cancel;
  const auto file = values.tensors.empty() ? headers : store_->open(values).file;
  contents_.remember(file, content);
  return file;
}

std::unique_ptr<model::Runner> CoordinatorImpl::deploy(std::shared_ptr<const gguf::File> file,
                                                       const Plan& plan,
                                                       const DeployOptions& options) {
  check_open();
  RunnerSetup setup;
  setup.model = model::understand(file, options.load.overrides);
  setup.load = options.load;
  setup.load.where = "Cluster.load";
  if (setup.load.kv_tokens == 0) {
    setup.load.kv_tokens = std::max(plan.kv_tokens, setup.load.n_ctx);
  }
  const std::int64_t page = setup.load.page_tokens;
  const std::int64_t whole = (setup.load.n_ctx + page - 1) / page * page;
  setup.micro_batch_rows = std::min(
      options.micro_batch_rows > 0 ? options.micro_batch_rows : plan.micro_batch_rows, whole);
  setup.load.max_step_rows = setup.micro_batch_rows;
  model::validate(setup.load);
  const ModelCost cost = model_cost(setup.model, setup.load);
  setup.batch_cost = batch_cost(cost, setup.micro_batch_rows);
  setup.payload_limit = payload_limit(setup.model.config, setup.micro_batch_rows);
  setup.step_deadline =
      std::max(options.least_step_deadline,
               step_deadline(cost, measured_rates(), setup.micro_batch_rows, setup.load.n_ctx));
  setup.news = options.news;
  setup.on_loss = options.on_loss;
  setup.wait_for_worker =
      options.on_loss == OnLoss::kReplan ? options.replan_patience : options.wait_for_worker;

  const std::string name = file->paths().empty()
                               ? "model.gguf"
                               : std::filesystem::path(file->paths().front()).filename().string();
  RingOptions ring;
  ring.link = link_options_;
  ring.payload_limit = setup.payload_limit;
  ring.same_numerics = setup.load.deterministic;
  ring.cancel = options.load.cancel;
  ReadOptions read;
  read.cancel = options.load.cancel;
  read.progress = [&](std::uint64_t done, std::uint64_t total) {
    if (options.progress) options.progress({"this machine", done, total, "identify"});
  };
  const Content content = contents_.identify(file, *store_, read);
  wire::Load& load = ring.load;
  load.identity = content.identity;
  load.headers = content.headers;
  load.tensors = content.tensors;
  load.name = name;
  load.n_ctx = setup.load.n_ctx;
  load.kv_tokens = setup.load.kv_tokens;
  load.max_step_rows = static_cast<std::uint32_t>(setup.load.max_step_rows);
  load.deterministic = setup.load.deterministic;
  load.kv_type = static_cast<std::uint8_t>(setup.load.kv_type);
  load.overrides = to_wire(options.load.overrides);
  load.hidden = options.hidden_f16 ? wire::HiddenType::kF16 : wire::HiddenType::kF32;
  load.digests = options.digests;
  load.sources = addresses();
  if (has_weights(*file)) {
    store_->offer(file, content, name);
    load.sources.push_back("");
  }
  const auto stages_of = [](const Plan& of) {
    std::vector<RingStage> stages;
    for (const NodePlan& node : of.nodes) {
      if (node.layer_end > node.layer_begin) {
        stages.push_back({node.address, node.layer_begin, node.layer_end});
      }
    }
    return stages;
  };
  ring.stages = stages_of(plan);
  if (ring.stages.empty() || ring.stages.back().layer_end != setup.model.config.n_layers) {
    fail<ArgumentError>("[Cluster.load] plan: it is for ",
                        ring.stages.empty() ? 0 : ring.stages.back().layer_end, " layers, ", name,
                        " has ", setup.model.config.n_layers);
  }
  if (options.progress) {
    ring.progress = [&](const RingProgress& progress) {
      options.progress({ring.stages[progress.stage].address, progress.done_bytes,
                        progress.total_bytes, progress.what});
    };
  }
  std::unique_ptr<Ring> made;
  try {
    made = Ring::make(*net_, blobs_.get(), ring);
  } catch (const WorkerLost& lost) {
    throw WorkerLost(strcat(lost.what(),
                            "; start it again and load the model again (weights that "
                            "are still held are not read again)"),
                     lost.node, lost.layers, lost.tokens);
  }

  ring.progress = nullptr;
  ring.cancel = nullptr;
  PlanOptions plan_options;
  plan_options.n_ctx = setup.load.n_ctx;
  plan_options.kv_tokens = setup.load.kv_tokens;
  plan_options.hidden_f16 = options.hidden_f16;
  model::LoadOptions cost_options = setup.load;
  cost_options.cancel = nullptr;
  cost_options.progress = nullptr;
  setup.load = cost_options;
  setup.remake = [self = shared_from_this(), ring, plan_options, cost_options, stages_of,
                  on_loss = options.on_loss, news = options.news,
                  model = setup.model](const RemakeQuery& query) {
    RingOptions now = ring;
    now.cancel = query.cancel;
    now.patience = query.patience;
    now.dial_deadline = std::clamp(query.patience, kLeastDialDeadline, kDialDeadline);
    if (on_loss == OnLoss::kReplan) {
      const Asked asked = query.again ? Asked{.measure = true}
                                      : Asked{.measure = true, .dial = false, .lost = query.lost};
      now.stages = stages_of(make_plan(model_cost(model, cost_options),
                                       self->alive_facts(asked, query.cancel), plan_options));
      std::erase_if(now.load.sources, [&](const std::string& source) {
        return !query.again &&
               std::find(query.lost.begin(), query.lost.end(), source) != query.lost.end();
      });
    }
    if (news) {
      now.progress = [&](const RingProgress& progress) {
        news({progress.what, now.stages[progress.stage].address, "",
              static_cast<double>(progress.done_bytes), static_cast<double>(progress.total_bytes)});
      };
    }
    return Ring::make(*self->net_, self->blobs_.get(), now);
  };
  return std::make_unique<ClusterRunner>(std::move(setup), std::move(made));
}

}  // namespace

std::shared_ptr<Coordinator> Coordinator::connect(const CoordinatorOptions& options,
                                                  const CancelFlag* cancel) {
  // A forked child leaves it alone: its threads are the parent's.
  const std::shared_ptr<CoordinatorImpl> made(new CoordinatorImpl(options),
                                              DeleteInOwningProcess{});
  made->connect_all(cancel);
  return made;
}

}  // namespace moesaic::cluster
