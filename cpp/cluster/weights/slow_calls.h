// Calls of the disk that may take minutes (the fsync of a slice of 90 GB, the room for it), made on
// a thread of their own: who waits says so once a second, and hears of a cancel. Not for reading:
// that says how far it is by itself.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/cancel.h"

namespace moesaic::cluster {

// How somebody waits for others: for another load, or for the disk.
struct Waiting {
  const CancelFlag* cancel = nullptr;
  std::function<void(const char* what)> say{};  // about once a second, by the waiting thread
};

// Says what is waited for: at once, and then once a second.
class WaitingVoice {
 public:
  explicit WaitingVoice(const Waiting& waiting, std::chrono::milliseconds silent_for = {});
  void say(const char* what);  // as often as one likes

 private:
  const Waiting& waiting_;
  std::chrono::steady_clock::time_point next_;
};

class SlowCalls {
 public:
  // is_left: set once nobody waits for the call any more; it may end early then.
  using Call = std::function<void(const CancelFlag& is_left)>;
  SlowCalls() = default;
  ~SlowCalls();  // waits for calls that were left
  SlowCalls(const SlowCalls&) = delete;
  SlowCalls& operator=(const SlowCalls&) = delete;

  // Throws what the call throws; CancelledError when the wait is cancelled: the call goes on then,
  // and what it uses must live as long as this object. Any thread, several at once.
  void run(const Waiting& waiting, const char* what, Call call);
  // The same for a call that uses what does not live so long: a cancel is heard after it.
  void finish(const Waiting& waiting, const char* what, const std::function<void()>& call);

 private:
  struct State;
  struct Left {
    std::shared_ptr<State> state;
    std::thread thread;
  };
  static void wait(State& state, const Waiting& waiting, const char* what);
  static Left start(Call call);
  void leave(Left left);

  std::mutex mutex_;
  std::vector<Left> left_;
};

}  // namespace moesaic::cluster
