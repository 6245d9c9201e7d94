// Turns at the compute of one worker. Deployments of several coordinators share its cores: turns
// are given in order of arrival, and work that has lasted a while lets others in between two
// layers. A waiting deployment is thus served after at most one quantum (or one layer, where that
// takes longer) of each user before it. Also knows when the compute last moved: a turn that stands
// still is what makes a worker stuck. Thread-safe. Not for the cores themselves:
// base/thread_pool.h.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>

#include "base/cancel.h"

namespace moesaic::cluster {

class Turns {
 public:
  using Clock = std::chrono::steady_clock;
  // quantum: what a turn may last while others wait, at the ends of layers.
  explicit Turns(Clock::duration quantum = std::chrono::milliseconds(5)) : quantum_(quantum) {}

  // Waits for its turn. Throws CancelledError when `cancel` (may be null) is set meanwhile. `waits`
  // is called first, and then about once a second, when the turn is not free at once.
  void acquire(const CancelFlag* cancel, const std::function<void()>& waits = {});
  void release();
  // The owner of the turn, between two pieces of its work: lets those in who wait when the turn has
  // lasted a quantum, and comes back after them. True: others may have run meanwhile. Throws
  // CancelledError, the turn given up then.
  bool yield(const CancelFlag* cancel);
  // The owner: its work has moved.
  void moved() { moved_at_ = Clock::now().time_since_epoch().count(); }

  std::size_t n_waiting() const;
  // Somebody waits for the turn, or has within the last second: who decodes is back for the next
  // token a moment after the turn was free.
  bool is_shared() const;
  // How long the turn's work has not moved; 0 while the turn is free.
  Clock::duration still_for() const;
  std::uint64_t n_yields() const { return n_yields_; }

 private:
  void wait_for(std::unique_lock<std::mutex>& lock, std::uint64_t ticket, const CancelFlag* cancel,
                const std::function<void()>& waits);
  void start();

  const Clock::duration quantum_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::uint64_t> waiting_;  // tickets, in order of arrival
  std::uint64_t next_ticket_ = 0;
  std::optional<Clock::time_point> waited_;  // when somebody last had to
  std::atomic<bool> taken_{false};           // changes under mutex_
  Clock::time_point began_;                  // this turn
  std::atomic<Clock::rep> moved_at_{0};
  std::atomic<std::uint64_t> n_yields_{0};
};

// One turn, given back at its end.
class Turn {
 public:
  Turn(Turns& turns, const CancelFlag* cancel, const std::function<void()>& waits = {})
      : turns_(turns), cancel_(cancel) {
    turns_.acquire(cancel, waits);
  }
  ~Turn() {
    if (owned_) turns_.release();
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

  // Between two layers. True: others may have used what deployments share.
  bool yield() {
    owned_ = false;
    const bool shared = turns_.yield(cancel_);
    owned_ = true;
    return shared;
  }

 private:
  Turns& turns_;
  const CancelFlag* cancel_;
  bool owned_ = true;
};

}  // namespace moesaic::cluster
