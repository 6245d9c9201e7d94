// See turns.h.
#include "cluster/worker/turns.h"

#include <algorithm>

namespace moesaic::cluster {
namespace {

// How late a set flag is heard. A turn that comes free wakes the first in the queue at once.
constexpr std::chrono::milliseconds kFlagPoll{20};
constexpr std::chrono::seconds kSayAgain{1};
constexpr std::chrono::seconds kSharedFor{1};

}  // namespace

void Turns::start() {
  taken_ = true;
  began_ = Clock::now();
  moved();
}

void Turns::wait_for(std::unique_lock<std::mutex>& lock, std::uint64_t ticket,
                     const CancelFlag* cancel, const std::function<void()>& waits) {
  waiting_.push_back(ticket);
  waited_ = Clock::now();
  const auto leave = [&] {
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), ticket));
    changed_.notify_all();
  };
  const auto is_next = [&] { return !taken_ && waiting_.front() == ticket; };
  Clock::time_point say_at = Clock::now();
  while (!is_next()) {
    try {
      if (cancel != nullptr) cancel->check();
      if (waits && Clock::now() >= say_at) {
        say_at = Clock::now() + kSayAgain;
        lock.unlock();
        try {
          waits();
        } catch (...) {
          lock.lock();
          throw;
        }
        lock.lock();
        continue;
      }
    } catch (...) {
      leave();
      throw;
    }
    changed_.wait_for(lock, kFlagPoll, is_next);
  }
  waiting_.pop_front();
  start();
}

void Turns::acquire(const CancelFlag* cancel, const std::function<void()>& waits) {
  std::unique_lock lock(mutex_);
  if (!taken_ && waiting_.empty()) return start();
  wait_for(lock, next_ticket_++, cancel, waits);
}

void Turns::release() {
  {
    const std::scoped_lock lock(mutex_);
    taken_ = false;
  }
  changed_.notify_all();
}

bool Turns::yield(const CancelFlag* cancel) {
  moved();
  std::unique_lock lock(mutex_);
  if (waiting_.empty() || Clock::now() - began_ < quantum_) return false;
  ++n_yields_;
  taken_ = false;
  changed_.notify_all();
  wait_for(lock, next_ticket_++, cancel, {});
  return true;
}

std::size_t Turns::n_waiting() const {
  const std::scoped_lock lock(mutex_);
  return waiting_.size();
}

bool Turns::is_shared() const {
  const std::scoped_lock lock(mutex_);
  return !waiting_.empty() || (waited_ && Clock::now() - *waited_ < kSharedFor);
}

Turns::Clock::duration Turns::still_for() const {
  if (!taken_) return {};
  const Clock::duration moved{moved_at_.load()};
  return std::max(Clock::duration{}, Clock::now().time_since_epoch() - moved);
}

}  // namespace moesaic::cluster
