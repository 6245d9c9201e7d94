// One deployment as its coordinator sees it: links of its own to every stage, loaded and joined to
// a ring, under one epoch. Sends frames and collects what comes back; the first lost worker ends
// it. Not for what steps mean: cluster_runner.h.
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
#include <vector>

#include "base/cancel.h"
#include "cluster/weights/blob_server.h"
#include "net/connection.h"
#include "wire/messages.h"

namespace moesaic::cluster {

struct RingStage {
  std::string address;
  std::int64_t layer_begin = 0;
  std::int64_t layer_end = 0;
};

struct RingProgress {
  std::size_t stage = 0;
  std::uint64_t done_bytes = 0;
  std::uint64_t total_bytes = 0;
  std::string what;  // "pull", "verify", "map"; "ready" at the end
};

struct RingOptions {
  net::LinkOptions link;
  std::vector<RingStage> stages;  // in order, all layers
  wire::Load load;                // all but stage, stages and request
  std::uint32_t payload_limit = 0;
  bool same_numerics = false;                     // refuse workers whose kernels differ
  std::chrono::milliseconds dial_deadline{5000};  // of one worker
  // A load that moves no byte for so long, because others hold it up, is given up; 0: never.
  std::chrono::milliseconds patience{0};
  std::function<void(const RingProgress&)> progress;  // on the calling thread
  const CancelFlag* cancel = nullptr;
};

class Ring {
 public:
  // Dials, loads and joins. Throws what went wrong, naming the node: NetError, OutOfMemoryError,
  // WorkerLost, FormatError, IoError, ArgumentError (numerics), CancelledError.
  static std::unique_ptr<Ring> make(net::NetThread& net, BlobServer* blobs,
                                    const RingOptions& options);
  ~Ring();  // closes the links: the workers free what the deployment took

  std::size_t n_stages() const { return stages_.size(); }
  const RingStage& stage(std::size_t i) const { return stages_[i]->what; }
  const wire::Loaded& loaded(std::size_t i) const { return stages_[i]->loaded; }

  // Frames to the first stage, or to one of them. Throws WorkerLost.
  template <typename M>
  void send(std::size_t stage, const M& message, std::vector<std::uint8_t> payload = {}) {
    send_frame(stage, wire::message_type<M>(), wire::encode(message), std::move(payload));
  }
  void cancel(std::uint64_t through_step) noexcept;  // this step and all before it, at all stages

  struct Event {
    std::size_t stage = 0;
    net::Incoming in;
  };
  // What comes next; nothing when the time is up. Throws WorkerLost.
  std::optional<Event> next(std::chrono::milliseconds timeout);
  // Drops what has come and nobody waits for.
  void drop_events();
  void check() const;  // throws WorkerLost when a worker is lost
  // Ends the ring: this stage counts as lost, and its link is closed. Throws WorkerLost.
  [[noreturn]] void lose(std::size_t stage, const std::string& why);
  std::uint64_t units_done() const;  // by all stages, as their last pings said
  // The stage whose computing has not moved for longest, if that is longer than `deadline`.
  std::optional<std::size_t> stuck(std::chrono::milliseconds deadline) const;
  // The first stage that has done fewer steps than the one before it: what is missing is there.
  std::size_t furthest_behind() const;
  std::string activities() const;  // "10.0.0.1:9777: step 4, ..."
  std::vector<net::Counters> counters() const;

 private:
  struct Member {
    RingStage what;
    std::shared_ptr<net::Connection> link;
    wire::Loaded loaded;
  };
  // What the links' handlers share; they may run a moment longer than the Ring lives.
  struct Inbox {
    mutable std::mutex mutex;
    std::condition_variable changed;
    std::deque<Event> events;
    std::optional<std::size_t> lost_stage;
    std::string lost_why;
    bool over = false;
  };
  Ring() : inbox_(std::make_shared<Inbox>()) {}
  void dial_all(net::NetThread& net, BlobServer* blobs, const RingOptions& options);
  void load_all(const RingOptions& options);
  void join_all(const RingOptions& options);
  void send_frame(std::size_t stage, wire::MessageType type, std::vector<std::uint8_t> fields,
                  std::vector<std::uint8_t> payload);
  Event wait(const RingOptions& options, std::chrono::steady_clock::time_point deadline,
             const char* what);
  [[noreturn]] void throw_lost(std::size_t stage, const std::string& why) const;

  std::uint64_t epoch_ = 0;
  std::uint32_t payload_limit_ = 0;
  std::vector<std::unique_ptr<Member>> stages_;
  std::shared_ptr<Inbox> inbox_;
};

}  // namespace moesaic::cluster
