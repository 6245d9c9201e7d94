// A worker's part in one deployment of a model: it loads its slice, joins the ring, and then runs
// what comes, in order, on a thread of its own. Frames arrive on the net thread, which is this one
// while it has nothing to run (net::NetSeat); the compute of all deployments of a worker takes
// turns. It ends with its coordinator's link: the KV cache goes, the
// weights stay with the worker (HeldSlices).
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <variant>

#include "base/cancel.h"
#include "base/failpoint.h"
#include "cluster/weights/held_slices.h"
#include "cluster/weights/weight_store.h"
#include "cluster/worker/stage.h"
#include "cluster/worker/turns.h"
#include "cluster/worker/worker.h"
#include "net/connection.h"

namespace moesaic::cluster {

// What a deployment uses of its worker. All of it outlives the deployments.
class DeploymentHost {
 public:
  virtual ~DeploymentHost() = default;
  virtual net::NetThread& net() = 0;
  virtual const net::LinkOptions& link_options() const = 0;
  virtual const WorkerOptions& options() const = 0;
  virtual WeightStore& store() = 0;
  virtual HeldSlices& held() = 0;
  virtual Turns& turns() = 0;         // at the machine's cores
  virtual std::mutex& loading() = 0;  // held while weights are loaded
  virtual std::uint64_t memory_bytes() const = 0;
  // Held while memory is counted and taken, so that two deployments do not take the same.
  virtual std::mutex& memory() = 0;
  // KV cache, scratch and weights under way of all deployments but `except`, those included whose
  // end is not over yet.
  virtual std::uint64_t taken_bytes(std::uint64_t except_epoch) const = 0;
  virtual bool frees_memory() const = 0;  // some deployment is ending
  virtual void log(LogEvent event) = 0;
  // A link that a deployment has dialled is closed: hands it to that deployment's link_lost().
  virtual void link_lost(std::uint64_t epoch, const net::Connection* link,
                         const std::exception_ptr& why) = 0;
};

class Deployment {
 public:
  // coordinator_source: asks the coordinator for weights over its own link.
  Deployment(DeploymentHost& host, std::uint64_t epoch, wire::Load load,
             std::shared_ptr<net::Connection> coordinator,
             std::shared_ptr<BlobSource> coordinator_source);
  ~Deployment();  // stop()

  std::uint64_t epoch() const { return epoch_; }
  const net::Connection* coordinator() const { return coordinator_.get(); }
  // KV cache and scratch, and weights that are being loaded and not held yet.
  std::uint64_t taken_bytes() const { return working_bytes_ + arriving_bytes_; }
  std::int64_t n_sequences() const { return n_sequences_; }
  std::shared_ptr<const HeldSlice> held() const;  // null before it is loaded
  bool loading() const { return !ready_ && !stopping_; }
  const std::string& name() const { return load_.name; }
  std::string failure() const;                   // why it ended by itself; empty: it has not
  bool has_ended() const { return has_ended_; }  // stop() does not wait any more

  // --- on the net thread
  // A frame of the coordinator or of the predecessor in the ring. Throws ProtocolError for what
  // this sender may not say.
  void take(const net::Connection* from, net::Incoming&& in);
  // The predecessor's first frame; throws ProtocolError when it is not the one.
  void set_predecessor(std::shared_ptr<net::Connection> link, const wire::Join& join);
  void link_lost(const net::Connection* link, const std::exception_ptr& why);
  wire::Pong progress() const;
  net::Counters successor_counters() const;  // any thread

  // Ends the work and the thread; any thread but its own and the net's.
  void stop();
  void ask_to_stop();  // returns at once; any thread
  void free();         // after stop(): the cache and the share in the weights

 private:
  // What the thread is at; what its silence means differs.
  enum class Phase : std::uint8_t { kLoading, kIdle, kTask, kWaiting, kComputing, kSending };
  class InPhase {
   public:
    InPhase(Deployment& deployment, Phase phase)
        : deployment_(deployment), before_(deployment.phase_.exchange(phase)) {}
    ~InPhase() {
      deployment_.moved();
      deployment_.phase_ = before_;
    }
    InPhase(const InPhase&) = delete;
    InPhase& operator=(const InPhase&) = delete;

   private:
    Deployment& deployment_;
    const Phase before_;
  };

  void main() noexcept;
  void end_with(const std::exception_ptr& why) noexcept;
  static bool is_of_request(const std::exception_ptr& why);
  void moved() { moved_at_ = std::chrono::steady_clock::now().time_since_epoch().count(); }
  bool answering(std::uint64_t request, const std::function<void()>& work);
  void load();
  std::shared_ptr<HeldSlice> obtain(const SliceKey& key, const model::LoadOptions& options,
                                    std::uint64_t& bytes_read);
  Content content() const;  // of the model, as the coordinator says
  OpenSlice slice_request();
  std::shared_ptr<HeldSlice> find_held(const SliceKey& key, std::uint64_t& bytes_read);
  std::shared_ptr<HeldSlice> load_slice(const SliceKey& key, const model::LoadOptions& options,
                                        std::uint64_t& bytes_read);
  std::vector<std::shared_ptr<BlobSource>> sources() const;
  // Takes memory for what a stage needs; false: there is not enough. With `evict`, held weights
  // that nobody uses are thrown out where they must go.
  bool take_memory(const model::MemoryNeed& need, const SliceKey& key, bool evict);
  // Bytes of weights that loading would add: none for a held slice.
  std::uint64_t weights_to_load(const model::MemoryNeed& need, const SliceKey& key) const;
  // Room for the slice and its stage; the options without kept keys where only that fits. Throws
  // OutOfMemoryError.
  model::LoadOptions reserve(const HeldSlice& slice, model::LoadOptions options);
  void report(std::uint64_t done, std::uint64_t total, const char* what);
  // While it waits for others: the coordinator hears so about once a second.
  void report_waiting(const char* what);
  void wait_for_turn();  // is called while the turn is another's; throws DeadlineError
  void serve();
  bool has_work() const;  // or is to end
  void process(net::Incoming& task);
  void put(net::Incoming&& task);
  void fail_link(const std::exception_ptr& why, std::size_t stage);
  void join_ring(const wire::Join& join);
  void run(wire::Run run, std::span<const std::uint8_t> payload);
  void finish_run(wire::Run& run, const std::vector<model::SequenceResult>& results);
  // At the last stage: what a generation samples with, which comes with its first pass only.
  void keep_sampling(wire::Run& run, const std::vector<std::int32_t>& tokens);
  void restore_sampling(wire::Run& run);
  void send_result(const wire::Run& run, const std::vector<model::SequenceResult>& results,
                   const std::vector<bool>& alive);
  void send_captures(const wire::Run& run, const std::vector<model::SequenceResult>& results);
  void run_ahead(const wire::Tokens& tokens);
  void forget(std::uint64_t step);  // no pass of it comes any more
  void read_rows(const wire::KvOp& op);
  bool is_first() const { return load_.stage == 0; }
  bool is_last() const { return load_.stage + 1 == load_.stages.size(); }
  template <typename M>
  void tell_coordinator(const M& message, std::vector<std::uint8_t> payload = {}) {
    failpoint::pass(failpoint::Site::kTellCoordinator);
    const InPhase sending(*this, phase_ == Phase::kLoading ? Phase::kLoading : Phase::kSending);
    coordinator_->send(message, std::move(payload), epoch_);
  }
  template <typename M>
  void pass_on(const M& message, std::vector<std::uint8_t> payload = {});

  DeploymentHost& host_;
  const std::uint64_t epoch_;
  const wire::Load load_;
  const std::shared_ptr<net::Connection> coordinator_;
  const std::shared_ptr<BlobSource> coordinator_source_;

  std::atomic<bool> ready_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> has_ended_{false};
  std::atomic<Phase> phase_{Phase::kLoading};
  std::atomic<std::uint64_t> working_bytes_{0};
  std::atomic<std::uint64_t> arriving_bytes_{0};
  std::atomic<std::int64_t> n_sequences_{0};
  std::atomic<std::uint64_t> steps_done_{0};
  std::atomic<std::uint64_t> rows_done_{0};
  std::atomic<std::uint64_t> bytes_loaded_{0};
  std::atomic<std::uint64_t> step_now_{0};
  std::atomic<std::uint64_t> units_done_{0};
  // When the thread began what it is at, or its first task came.
  std::atomic<std::chrono::steady_clock::rep> moved_at_{0};
  CancelFlag stop_flag_;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<net::Incoming> tasks_;               // guarded by mutex_
  std::shared_ptr<net::Connection> predecessor_;  // guarded by mutex_
  std::shared_ptr<net::Connection> successor_;    // guarded by mutex_
  std::uint64_t cancelled_through_ = 0;           // guarded by mutex_
  std::uint64_t running_step_ = 0;                // guarded by mutex_; 0: none
  CancelFlag* running_flag_ = nullptr;            // guarded by mutex_
  std::shared_ptr<HeldSlice> held_;               // guarded by mutex_
  std::string failure_;                           // guarded by mutex_

  // The deployment's thread only:
  net::NetSeat seat_;
  std::unique_ptr<Stage> stage_;
  std::uint32_t payload_limit_ = 0;
  // Of generations that go on, by step: at the first stage the pass before, without what it samples
  // with; at the last stage the next pass, with nothing else.
  std::unordered_map<std::uint64_t, wire::Run> ahead_;
  std::unordered_map<std::uint64_t, wire::Run> sampling_;
  std::chrono::steady_clock::duration few_took_{};  // a step of few rows, the last time
  std::chrono::steady_clock::time_point reported_{};

  std::thread thread_;  // last
};

template <typename M>
void Deployment::pass_on(const M& message, std::vector<std::uint8_t> payload) {
  std::shared_ptr<net::Connection> link;
  {
    const std::scoped_lock lock(mutex_);
    link = successor_;
  }
  const std::size_t next = (load_.stage + 1) % load_.stages.size();
  if (!link) fail<ProtocolError>("[cluster] work came before the ring was joined");
  failpoint::pass(failpoint::Site::kPassOn);
  const InPhase sending(*this, Phase::kSending);
  try {
    link->send(message, std::move(payload), epoch_);
    seat_.flush();  // not behind what is still to be done here
  } catch (const Error&) {
    fail_link(std::current_exception(), next);
  }
}

}  // namespace moesaic::cluster
