// The worker's listener, its links, and who gets which message; see worker.h.
#include "cluster/worker/worker.h"

#include <malloc.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>

#include "base/aligned_buffer.h"
#include "base/thread_name.h"
#include "base/thread_pool.h"
#include "cluster/measure/measure.h"
#include "cluster/measure/measure_link.h"
#include "cluster/measure/numerics.h"
#include "cluster/measure/rate_book.h"
#include "cluster/step/step_messages.h"
#include "cluster/weights/amounts.h"
#include "cluster/weights/blob_server.h"
#include "cluster/weights/blob_source.h"
#include "cluster/worker/deployment.h"
#include "cluster/worker/endings.h"
#include "cluster/worker/jobs.h"

namespace moesaic::cluster {
namespace {

constexpr double kMemoryShare = 0.9;  // of what is free, when nothing is said
// Why there is no place for one more from a source; empty: there is one.
template <typename Map, typename IsOfSource>
std::string crowd(std::size_t most, const char* what, const Map& all, IsOfSource is_of_source) {
  if (all.size() >= most) {
    return strcat(most, " ", what, " are open already, which is the most");
  }
  const std::size_t most_of_one = std::max<std::size_t>(1, most / 2);
  const auto n = std::count_if(all.begin(), all.end(), is_of_source);
  if (static_cast<std::size_t>(n) < most_of_one) return "";
  return strcat(most_of_one, " ", what, " from its address are open already, which is the most");
}

// How long a status waits for what is being freed; one that stands still is shown as taken.
constexpr std::chrono::milliseconds kFreeingPatience{1000};
constexpr std::size_t kMostSources = 512;

std::string text_of(const std::exception_ptr& why) {
  if (!why) return "this worker has closed the link";
  try {
    std::rethrow_exception(why);
  } catch (const std::exception& e) {
    return net::printable(e.what());
  }
}

std::string host_name() {
  char name[256] = {};
  return ::gethostname(name, sizeof name - 1) == 0 ? name : "";
}

std::uint64_t activation_bytes(const std::array<std::uint64_t, 32>& by_type) {
  return by_type[static_cast<std::size_t>(wire::MessageType::kRun)];
}

class WorkerImpl final : public Worker, public DeploymentHost {
 public:
  explicit WorkerImpl(WorkerOptions options);
  ~WorkerImpl() override;
  std::string address() const override { return address_; }
  void stop() override;
  bool stopped() const override { return stopped_; }

  // --- DeploymentHost
  net::NetThread& net() override { return *net_; }
  const net::LinkOptions& link_options() const override { return link_options_; }
  const WorkerOptions& options() const override { return options_; }
  WeightStore& store() override { return *store_; }
  HeldSlices& held() override { return held_; }
  Turns& turns() override { return turns_; }
  std::mutex& loading() override { return loading_; }
  std::uint64_t memory_bytes() const override { return memory_bytes_; }
  std::mutex& memory() override { return memory_; }
  std::uint64_t taken_bytes(std::uint64_t except_epoch) const override;
  bool frees_memory() const override { return endings_.any(); }
  void log(LogEvent event) override;
  void link_lost(std::uint64_t epoch, const net::Connection* link,
                 const std::exception_ptr& why) override;

 private:
  struct Peer {
    std::shared_ptr<net::Connection> link;
    std::shared_ptr<LinkSource> source;  // a coordinator may be asked for weights
  };
  void accepted(std::shared_ptr<net::Connection> link);
  void closed(const net::Connection* link, const std::exception_ptr& why);
  void take(const net::Connection* link, net::Incoming&& in);
  void load(const Peer& peer, std::uint64_t epoch, wire::Load load);
  std::shared_ptr<Deployment> deployment(std::uint64_t epoch) const;  // throws ProtocolError
  wire::Pong progress(const net::Connection* link) const;
  wire::Status status(std::uint64_t request) const;
  void answer_status(const std::shared_ptr<net::Connection>& link,
                     const wire::StatusRequest& request);
  void log_of_store(const std::string& event, const std::string& text);
  void know_rates();
  LinkRates link_rates(const std::string& peer);
  void answer_measured(const std::shared_ptr<net::Connection>& link,
                       const wire::StatusRequest& request);

  WorkerOptions options_;
  std::uint64_t memory_bytes_ = 0;
  net::LinkOptions link_options_;
  std::string address_;
  FileOps file_ops_;
  std::unique_ptr<RateBook> rate_book_;
  std::unique_ptr<WeightStore> store_;
  std::unique_ptr<BlobServer> blobs_;
  HeldSlices held_;
  Turns turns_{options_.turn};
  std::mutex loading_;
  std::mutex memory_;  // held before mutex_
  std::mutex log_mutex_;
  std::mutex said_mutex_;
  std::set<std::string> said_;  // guarded by said_mutex_
  std::atomic<bool> stopped_{false};

  mutable std::mutex mutex_;
  std::map<const net::Connection*, Peer> peers_;
  std::map<std::uint64_t, std::shared_ptr<Deployment>> deployments_;  // by epoch
  Rates rates_;
  std::map<std::string, LinkRates> links_;  // measured, by address; of jobs_ only
  std::uint64_t gone_sent_bytes_ = 0;       // activations of links that are closed
  std::uint64_t gone_received_bytes_ = 0;

  CancelFlag ends_;
  Endings endings_{[this](const std::string& text) { log({"stuck", text, {}}); }};
  Jobs jobs_{"moesaic-jobs"};  // measurements and probes

  std::unique_ptr<net::NetThread> net_;
  std::unique_ptr<net::Listener> listener_;
};

WorkerImpl::WorkerImpl(WorkerOptions options) : options_(std::move(options)) {
  if (options_.threads <= 0) options_.threads = available_cpus();
  memory_bytes_ = options_.memory_bytes != 0
                      ? options_.memory_bytes
                      : static_cast<std::uint64_t>(kMemoryShare *
                                                   static_cast<double>(available_memory_bytes()));
  rate_book_ = std::make_unique<RateBook>(
      options_.cache_dir,
      RateKey{options_.release, backend::current_isa(), processor_model(), options_.threads},
      file_ops_, [this](const std::string& event, const std::string& text) {
        log({event, text, {}});
      });
  rates_ = {options_.read_bytes_per_s, options_.matmul_ops_per_s};
  if (!(rates_.read_bytes_per_s > 0)) rates_ = rate_book_->find().value_or(rates_);
  link_options_.key = options_.key;
  link_options_.plain_beyond_loopback = options_.plain_beyond_loopback;
  link_options_.role = wire::Role::kWorker;
  link_options_.release = options_.release;
  link_options_.numerics = numerics_digest(options_.release);
  link_options_.advertise = options_.advertise;
  store_ = WeightStore::make({.models_dir = options_.models_dir,
                              .cache_dir = options_.cache_dir,
                              .cache_bytes = options_.cache_bytes,
                              .log = [this](const std::string& event, const std::string& text) {
                                log_of_store(event, text);
                              }});
  blobs_ = std::make_unique<BlobServer>(*store_);
  net_ = std::make_unique<net::NetThread>();
  listener_ = net::listen(
      *net_, link_options_, options_.listen,
      {.accepted = [this](std::shared_ptr<net::Connection> link) { accepted(std::move(link)); },
       .refused =
           [this](const std::string& why) {
             log({"refused", why, {}});
           }});
  address_ = options_.advertise.empty() ? listener_->address() : options_.advertise;
  std::vector<std::pair<std::string, LogValue>> ready{
      {"address", address_},
      {"release", options_.release},
      {"threads", std::int64_t{options_.threads}},
      {"memory_bytes", static_cast<std::int64_t>(memory_bytes_)},
      {"encrypted", std::int64_t{options_.key ? 1 : 0}}};
  ready.insert(ready.end(), options_.ready_fields.begin(), options_.ready_fields.end());
  log({"ready",
       strcat("Moesaic ", options_.release, " listens on ", listener_->address(),
              address_ == listener_->address() ? "" : strcat(" as ", address_), ", ",
              counted(options_.threads, "thread"), ", ",
              human_bytes(static_cast<double>(memory_bytes_)), " of memory",
              options_.key ? "" : ", WITHOUT ENCRYPTION",
              options_.ready_text.empty() ? "" : strcat("; ", options_.ready_text)),
       std::move(ready)});
}

WorkerImpl::~WorkerImpl() {
  stop();
  std::map<std::uint64_t, std::shared_ptr<Deployment>> deployments;
  {
    const std::scoped_lock lock(mutex_);
    deployments.swap(deployments_);
  }
  for (auto& [epoch, each] : deployments) endings_.add(std::move(each));
  jobs_.end();
  while (endings_.any()) endings_.wait(std::chrono::seconds(1));
  listener_.reset();
  net_.reset();  // its handlers reach into what is declared above
}

void WorkerImpl::stop() {
  if (stopped_.exchange(true)) return;
  ends_.set();
  listener_->close();
  std::vector<std::shared_ptr<net::Connection>> links;
  {
    const std::scoped_lock lock(mutex_);
    for (const auto& [raw, peer] : peers_) links.push_back(peer.link);
    for (const auto& [epoch, each] : deployments_) each->ask_to_stop();
  }
  for (const auto& link : links) link->go_away(wire::Reason::kShutdown, "this worker ends");
  log({"stopped", "ends", {}});
}

void WorkerImpl::log(LogEvent event) {
  if (!options_.log) return;
  const std::scoped_lock lock(log_mutex_);
  options_.log(event);
}

// A file that is not the one asked for is met at each load, and worth one line.
void WorkerImpl::log_of_store(const std::string& event, const std::string& text) {
  constexpr std::size_t kMost = 256;
  if (event == "local") {
    const std::scoped_lock lock(said_mutex_);
    if (said_.size() >= kMost) said_.clear();
    if (!said_.insert(text).second) return;
  }
  log({event, text, {}});
}

std::uint64_t WorkerImpl::taken_bytes(std::uint64_t except_epoch) const {
  const std::scoped_lock lock(mutex_);
  std::uint64_t sum = endings_.taken_bytes();
  for (const auto& [epoch, each] : deployments_) {
    if (epoch != except_epoch) sum += each->taken_bytes();
  }
  return sum;
}

// --- on the net thread

void WorkerImpl::accepted(std::shared_ptr<net::Connection> link) {
  if (stopped_) return;
  const net::PeerInfo& info = link->peer();
  Peer peer{link, nullptr};
  if (info.role == wire::Role::kCoordinator) {
    peer.source = std::make_shared<LinkSource>(link, strcat("coordinator ", info.address));
  }
  net::Connection* const raw = link.get();
  std::string text;  // why not
  {
    const std::scoped_lock lock(mutex_);
    text = crowd(options_.most_links, "links", peers_,
                 [&](const auto& each) { return each.second.link->peer().source == info.source; });
    if (text.empty()) peers_.emplace(raw, std::move(peer));
  }
  if (!text.empty()) {
    log({"refused", strcat(info.address, ": ", text), {{"peer", info.address}}});
    link->start({});  // or it could not be told
    link->go_away(wire::Reason::kBusy, text);
    return;
  }
  link->start({.on_message = [this, raw](net::Incoming&& in) { take(raw, std::move(in)); },
               .on_closed = [this, raw](std::exception_ptr why) { closed(raw, why); },
               .progress = [this, raw] { return progress(raw); }});
}

void WorkerImpl::closed(const net::Connection* link, const std::exception_ptr& why) {
  Peer peer;
  std::vector<std::shared_ptr<Deployment>> all;
  std::vector<std::string> over;  // why
  const std::string why_text = text_of(why);
  {
    const std::scoped_lock lock(mutex_);
    const auto found = peers_.find(link);
    if (found == peers_.end()) return;
    peer = std::move(found->second);
    peers_.erase(found);
    const net::Counters counters = link->counters();
    gone_sent_bytes_ += activation_bytes(counters.sent);
    gone_received_bytes_ += activation_bytes(counters.received);
    for (auto it = deployments_.begin(); it != deployments_.end();) {
      if (it->second->coordinator() == link) {
        gone_sent_bytes_ += activation_bytes(it->second->successor_counters().sent);
        const std::string failure = it->second->failure();
        over.push_back(failure.empty() ? why_text : strcat("it failed: ", failure));
        endings_.add(std::move(it->second));  // under the same lock: its memory stays counted
        it = deployments_.erase(it);
      } else {
        all.push_back(it->second);
        ++it;
      }
    }
  }
  if (peer.source) peer.source->lost(why);
  for (const auto& each : all) each->link_lost(link, why);
  for (const std::string& text : over) {
    log({"ended",
         strcat("the deployment of the coordinator ", peer.link->peer().address, " is over: ", text,
                "; its KV cache is freed, weights stay"),
         {{"peer", peer.link->peer().address}, {"why", text}}});
  }
}

void WorkerImpl::link_lost(std::uint64_t epoch, const net::Connection* link,
                           const std::exception_ptr& why) {
  std::shared_ptr<Deployment> found;
  {
    const std::scoped_lock lock(mutex_);
    const auto at = deployments_.find(epoch);
    if (at == deployments_.end()) return;
    found = at->second;
  }
  found->link_lost(link, why);
}

std::shared_ptr<Deployment> WorkerImpl::deployment(std::uint64_t epoch) const {
  const std::scoped_lock lock(mutex_);
  const auto found = deployments_.find(epoch);
  if (found == deployments_.end())
    fail<ProtocolError>("[cluster] epoch ", epoch, ": not known here");
  return found->second;
}

void WorkerImpl::take(const net::Connection* link, net::Incoming&& in) {
  Peer peer;
  {
    const std::scoped_lock lock(mutex_);
    const auto found = peers_.find(link);
    if (found == peers_.end()) return;
    peer = found->second;
  }
  if (peer.source && peer.source->take(in)) return;
  if (blobs_->take(peer.link, in)) return;
  const wire::Role role = peer.link->peer().role;
  const std::uint64_t epoch = in.header.epoch;
  if (const auto* probe = std::get_if<wire::Blob>(&in.message)) {
    peer.link->send(wire::Blob{probe->request});  // it has arrived: measure_link() times this
    return;
  }
  if (const auto* request = std::get_if<wire::StatusRequest>(&in.message)) {
    answer_status(peer.link, *request);
  } else if (const auto* unload = std::get_if<wire::Unload>(&in.message);
             unload != nullptr && role == wire::Role::kCoordinator) {
    jobs_.add(link, [this, peer_link = peer.link, request = *unload] {
      held_.drop(request.model);
      try {
        peer_link->send(status(request.request));
      } catch (const Error&) {  // it is gone
      }
    });
  } else if (role == wire::Role::kObserver) {
    fail<ProtocolError>("[cluster] ", wire::type_name(in.header.type), ": not for an observer");
  } else if (auto* wanted = std::get_if<wire::Load>(&in.message)) {
    load(peer, epoch, std::move(*wanted));
  } else if (const auto* join = std::get_if<wire::Join>(&in.message);
             join != nullptr && role == wire::Role::kWorker) {
    deployment(epoch)->set_predecessor(peer.link, *join);
  } else {
    deployment(epoch)->take(link, std::move(in));
  }
}

void WorkerImpl::load(const Peer& peer, std::uint64_t epoch, wire::Load load) {
  if (peer.link->peer().role != wire::Role::kCoordinator || epoch == 0) {
    fail<ProtocolError>("[cluster] Load: needs a coordinator and an epoch");
  }
  if (load.sources.size() > kMostSources) {
    fail<ProtocolError>("[cluster] Load: sources: got ", load.sources.size(), ", need at most ",
                        kMostSources);
  }
  {
    const std::scoped_lock lock(mutex_);
    for (const auto& [other, each] : deployments_) {
      if (other == epoch || each->coordinator() == peer.link.get()) {
        fail<ProtocolError>("[cluster] Load: this epoch or link has a deployment already");
      }
    }
    const std::string text =
        crowd(options_.most_deployments, "deployments", deployments_, [&](const auto& each) {
          return each.second->coordinator()->peer().source == peer.link->peer().source;
        });
    if (!text.empty()) fail<ProtocolError>("[cluster] Load: ", text, "; close other models");
  }
  log({"load",
       strcat("the coordinator ", peer.link->peer().address, " deploys ", net::printable(load.name),
              " as stage ", load.stage + 1, " of ", load.stages.size()),
       {{"peer", peer.link->peer().address},
        {"model", net::printable(load.name)},
        {"stage", std::int64_t{load.stage} + 1},
        {"stages", static_cast<std::int64_t>(load.stages.size())}}});
  peer.link->set_epoch(epoch);
  auto made = std::make_shared<Deployment>(*this, epoch, std::move(load), peer.link, peer.source);
  const std::scoped_lock lock(mutex_);
  deployments_.emplace(epoch, std::move(made));
}

wire::Pong WorkerImpl::progress(const net::Connection* link) const {
  wire::Pong pong;
  pong.activity = "idle";
  const std::scoped_lock lock(mutex_);
  for (const auto& [epoch, each] : deployments_) {
    if (each->coordinator() == link) return each->progress();
  }
  return pong;
}

wire::Status WorkerImpl::status(std::uint64_t request) const {
  wire::Status status;
  status.request = request;
  status.host = host_name();
  status.pid = static_cast<std::uint64_t>(::getpid());
  status.release = options_.release;
  status.isa = backend::current_isa();
  status.threads = static_cast<std::uint32_t>(options_.threads);
  status.memory_bytes = memory_bytes_;
  const std::uint64_t used = held_.n_bytes() + taken_bytes(0);
  status.memory_free_bytes = memory_bytes_ > used ? memory_bytes_ - used : 0;
  status.bytes_read_weights = store_->bytes_read();
  status.state = "idle";
  std::map<const HeldSlice*, std::uint32_t> sessions;
  {
    const std::scoped_lock lock(mutex_);
    status.read_bytes_per_s = rates_.read_bytes_per_s;
    status.matmul_ops_per_s = rates_.matmul_ops_per_s;
    status.bytes_sent_activations = gone_sent_bytes_;
    status.bytes_received_activations = gone_received_bytes_;
    for (const auto& [raw, peer] : peers_) {
      const net::Counters counters = raw->counters();
      status.bytes_sent_activations += activation_bytes(counters.sent);
      status.bytes_received_activations += activation_bytes(counters.received);
    }
    for (const auto& [epoch, each] : deployments_) {
      const net::Counters counters = each->successor_counters();
      status.bytes_sent_activations += activation_bytes(counters.sent);
      if (each->loading()) {
        status.state = "loading";
      } else if (status.state == "idle") {
        status.state = "ready";
      }
      if (const auto held = each->held()) {
        sessions[held.get()] += static_cast<std::uint32_t>(each->n_sequences());
      }
    }
  }
  for (const auto& slice : held_.all()) {
    wire::HeldModel held;
    held.identity = slice->key.identity;
    held.name = slice->name;
    held.layer_begin = static_cast<std::uint32_t>(slice->key.slice.layer_begin);
    held.layer_end = static_cast<std::uint32_t>(slice->key.slice.layer_end);
    held.weights_bytes = slice->bytes.mapped + slice->bytes.derived;
    held.sessions = sessions[slice.get()];
    status.models.push_back(std::move(held));
  }
  return status;
}

void WorkerImpl::answer_status(const std::shared_ptr<net::Connection>& link,
                               const wire::StatusRequest& request) {
  bool measured = false;
  {
    const std::scoped_lock lock(mutex_);
    measured = rates_.read_bytes_per_s > 0;
  }
  const bool measures = request.measure && (!measured || !request.probe.empty());
  if (!measures && !endings_.any()) {
    link->send(status(request.request));
    return;
  }
  try {
    jobs_.add(link.get(), [this, link, request] { answer_measured(link, request); });
  } catch (const OutOfMemoryError&) {
    link->send(error_reply(request.request, std::current_exception()));
  }
}

// What is on its way out counts as taken: a plan must not count it as free.
void WorkerImpl::answer_measured(const std::shared_ptr<net::Connection>& link,
                                 const wire::StatusRequest& request) {
  try {
    try {
      if (request.measure) know_rates();
      std::optional<LinkRates> rates;
      if (request.measure && !request.probe.empty()) {
        try {
          rates = link_rates(request.probe);
        } catch (const Error&) {  // not measured: the peer's own state says why
        }
      }
      endings_.wait(kFreeingPatience);
      wire::Status answer = status(request.request);
      if (rates) {
        answer.probe_rtt_s = rates->rtt_s;
        answer.probe_bytes_per_s = rates->bytes_per_s;
      }
      link->send(answer);
    } catch (const CancelledError&) {  // this worker ends
    } catch (const std::exception&) {
      link->send(error_reply(request.request, std::current_exception()));
    }
  } catch (const Error&) {  // it is gone
  }
}

// --- jobs that may take long

// Measured, unless they are known or another worker of this machine has remembered them since.
void WorkerImpl::know_rates() {
  {
    const std::scoped_lock lock(mutex_);
    if (rates_.read_bytes_per_s > 0) return;
  }
  std::optional<Rates> rates = rate_book_->find();
  if (!rates) {
    {
      const Turn turn(turns_, &ends_);
      rates = measure(options_.threads);
    }
    rate_book_->add(*rates);
    const std::string path = rate_book_->path();
    log({"rates",
         strcat("measured: reads ", std::round(rates->read_bytes_per_s / 1e8) / 10,
                " GB/s, computes ", std::round(rates->matmul_ops_per_s / 1e9), " GOP/s",
                path.empty() ? "" : "; remembered, to be measured again without ", path),
         {{"read_bytes_per_s", rates->read_bytes_per_s},
          {"matmul_ops_per_s", rates->matmul_ops_per_s}}});
  }
  const std::scoped_lock lock(mutex_);
  rates_ = *rates;
}

LinkRates WorkerImpl::link_rates(const std::string& peer) {
  const auto known = links_.find(peer);
  if (known != links_.end()) return known->second;
  constexpr std::size_t kMost = 256;  // a coordinator may name any address
  if (links_.size() >= kMost) links_.clear();
  return links_[peer] = measure_link(*net_, link_options_, peer, &ends_);
}

}  // namespace

std::unique_ptr<Worker> Worker::start(WorkerOptions options) {
  // Activations come and go in pieces of megabytes. Left to itself the allocator keeps them in its
  // heap once they were freed, and the process stays larger than its plan says.
  constexpr int kMmapThreshold = 1 << 20;
  mallopt(M_MMAP_THRESHOLD, kMmapThreshold);
  return std::make_unique<WorkerImpl>(std::move(options));
}

}  // namespace moesaic::cluster
