// See endings.h.
#include "cluster/worker/endings.h"

#include <algorithm>
#include <utility>

#include "base/errors.h"
#include "base/thread_name.h"
#include "cluster/worker/deployment.h"
#include "net/connection.h"

namespace moesaic::cluster {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kPoll{2};
constexpr std::chrono::seconds kStuckAfter{30};

}  // namespace

Endings::Endings(std::function<void(const std::string& text)> stuck)
    : stuck_(std::move(stuck)), thread_([this] { main(); }) {}

Endings::~Endings() {
  {
    const std::scoped_lock lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Endings::add(std::shared_ptr<Deployment> deployment) {
  deployment->ask_to_stop();
  {
    const std::scoped_lock lock(mutex_);
    endings_.push_back({std::move(deployment), Clock::now()});
  }
  changed_.notify_all();
}

std::uint64_t Endings::taken_bytes() const {
  const std::scoped_lock lock(mutex_);
  std::uint64_t sum = 0;
  for (const Ending& each : endings_) sum += each.deployment->taken_bytes();
  return sum;
}

bool Endings::any() const {
  const std::scoped_lock lock(mutex_);
  return !endings_.empty();
}

void Endings::wait(std::chrono::milliseconds patience) const {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, patience, [this] { return endings_.empty(); });
}

void Endings::main() {
  name_this_thread("moesaic-endings");
  std::unique_lock lock(mutex_);
  while (true) {
    if (endings_.empty()) {
      if (ends_) return;
      changed_.wait(lock);
      continue;
    }
    changed_.wait_for(lock, kPoll);
    std::vector<std::string> stuck;
    for (std::size_t i = 0; i < endings_.size();) {
      Ending& each = endings_[i];
      // The net thread may be looking at it for a moment more; its end is not for that thread.
      if (each.deployment->has_ended() && each.deployment.use_count() == 1) {
        // Still in the list, so still counted, while its memory goes.
        std::shared_ptr<Deployment> gone = each.deployment;
        lock.unlock();
        gone->stop();
        gone->free();
        lock.lock();
        const auto at = std::find_if(endings_.begin(), endings_.end(),
                                     [&](const Ending& e) { return e.deployment == gone; });
        endings_.erase(at);
        lock.unlock();
        gone.reset();
        lock.lock();
        changed_.notify_all();
        i = 0;
        continue;
      }
      if (!each.told && Clock::now() - each.since > kStuckAfter) {
        each.told = true;
        stuck.push_back(strcat("the deployment of ", net::printable(each.deployment->name()),
                               " does not end: its stage stands still (a disk that does not "
                               "answer?), and its memory stays taken; restart this worker"));
      }
      ++i;
    }
    if (!stuck.empty()) {
      lock.unlock();
      for (const std::string& text : stuck) stuck_(text);
      lock.lock();
    }
  }
}

}  // namespace moesaic::cluster
