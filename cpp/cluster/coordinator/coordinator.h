// The coordinator's side: links to workers, what they say of themselves, and deployments of models
// on them. A deployment is driven as a model::Runner (cluster_runner.h). Not for plans: plan.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "cluster/plan/plan.h"
#include "gguf/file.h"
#include "model/run/memory.h"
#include "model/runner.h"
#include "net/connection.h"

namespace moesaic::cluster {

struct HeldModelInfo {
  std::string name;
  std::string identity;  // hex
  std::int64_t layer_begin = 0;
  std::int64_t layer_end = 0;
  std::uint64_t weights_bytes = 0;
  std::int64_t sessions = 0;
};

// What a worker said last, and what the link to it measured.
struct NodeInfo {
  std::string address;
  std::string host;
  std::uint64_t pid = 0;
  std::string release;
  std::string isa;
  int threads = 0;
  std::uint64_t memory_bytes = 0;
  std::uint64_t memory_free_bytes = 0;
  double read_bytes_per_s = 0;  // 0: not measured
  double matmul_ops_per_s = 0;
  double rtt_s = 0;
  double link_bytes_per_s = 0;  // 0: not measured
  std::string state;            // "idle", "loading", "ready", "lost"
  std::string error;            // with "lost": why
  bool encrypted = false;
  std::uint64_t bytes_sent_activations = 0;
  std::uint64_t bytes_received_activations = 0;
  std::uint64_t bytes_read_weights = 0;
  std::vector<HeldModelInfo> models;
};

struct CoordinatorOptions {
  std::vector<std::string> addresses;  // "host:port", in ring order
  std::optional<net::ClusterKey> key;
  bool plain_beyond_loopback = false;
  std::string release;
  std::string cache_dir;  // digests of this machine's files; empty: not remembered
};

enum class OnLoss { kRaise, kWait, kReplan };

struct NodeProgress {
  std::string address;  // "this machine": the coordinator's
  std::uint64_t done_bytes = 0;
  std::uint64_t total_bytes = 0;
  std::string what;  // "identify" (this machine), "pull", "verify", "map", "ready"
};

// What a deployed model tells while its caller waits. From the thread that drives it, seldom.
struct News {
  std::string what;     // "lost", "waiting", "re-planning", "back", "gave up", or as NodeProgress
  std::string address;  // of the worker that it is about
  std::string text;     // a sentence for people, or empty
  double done = 0;      // seconds of the patience, or bytes
  double total = 0;
};
using NewsSink = std::function<void(const News&)>;

struct DeployOptions {
  model::LoadOptions load;  // n_ctx, kv_tokens, deterministic, kv_type, page_tokens; cancel
  OnLoss on_loss = OnLoss::kRaise;
  // Each loss: kWait and kReplan then give WorkerLost after all, and the next call tries anew.
  // Others have as much work to do when one is lost; a plan without it that does not stand soon
  // will not stand later.
  std::chrono::milliseconds wait_for_worker{600000};
  std::chrono::milliseconds replan_patience{20000};
  bool hidden_f16 = false;
  wire::DigestPolicy digests = wire::DigestPolicy::kFirst;
  std::int64_t micro_batch_rows = 0;                  // 0: the plan's
  std::function<void(const NodeProgress&)> progress;  // on the calling thread
  NewsSink news;                                      // may be empty
  // A stage that computes nothing for so long, and for ten times what its plan says, is lost.
  std::chrono::milliseconds least_step_deadline{10000};
};

class Coordinator {
 public:
  // Links to all workers; throws what the first unreachable one gave, naming it. Interruptible.
  static std::shared_ptr<Coordinator> connect(const CoordinatorOptions& options,
                                              const CancelFlag* cancel);
  virtual ~Coordinator() = default;
  // Asks every worker, dialling lost ones again; those that do not answer are "lost". measure: with
  // rates (once per worker, about a second) and links.
  virtual std::vector<NodeInfo> nodes(bool measure, const CancelFlag* cancel) = 0;
  // A file by its name under the workers' models folders: its headers, without weights. Throws
  // IoError when no worker has it, FormatError when they have different ones, naming both.
  virtual std::shared_ptr<const gguf::File> remote_file(const std::string& name,
                                                        const CancelFlag* cancel) = 0;
  // Loads `file` as the plan says: each worker uses its own copy, or pulls its slice. `file` may
  // have no weights (remote_file). The runner keeps the coordinator alive.
  virtual std::unique_ptr<model::Runner> deploy(std::shared_ptr<const gguf::File> file,
                                                const Plan& plan, const DeployOptions& options) = 0;
  // What a file is whose model has been deployed, in hex; "" for others.
  virtual std::string fingerprint(const std::shared_ptr<const gguf::File>& file) = 0;
  // Plain facts for make_plan().
  virtual std::vector<NodeFacts> facts(const CancelFlag* cancel) = 0;
  // One more worker, linked and asked. One that is there already is only dialled when it is lost.
  virtual void add(const std::string& address, const CancelFlag* cancel) = 0;
  // Workers let go of weights that no deployment uses: of one model, by its file's name or its
  // identity in hex, or of all when it is empty. What they hold then.
  virtual std::vector<NodeInfo> unload(const std::string& model, const CancelFlag* cancel) = 0;
  virtual void close() = 0;  // links; deployments end
};

}  // namespace moesaic::cluster
