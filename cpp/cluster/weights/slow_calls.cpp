// See slow_calls.h.
#include "cluster/weights/slow_calls.h"

#include <chrono>
#include <condition_variable>
#include <exception>
#include <utility>

#include "base/thread_name.h"

namespace moesaic::cluster {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kSayAgain{1};
// What takes no longer is not worth a word.
constexpr std::chrono::milliseconds kShort{200};
constexpr std::chrono::milliseconds kCancelPoll{20};

}  // namespace

WaitingVoice::WaitingVoice(const Waiting& waiting, std::chrono::milliseconds silent_for)
    : waiting_(waiting), next_(Clock::now() + silent_for) {}

void WaitingVoice::say(const char* what) {
  if (!waiting_.say || Clock::now() < next_) return;
  next_ = Clock::now() + kSayAgain;
  waiting_.say(what);
}

struct SlowCalls::State {
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  std::exception_ptr error;
  CancelFlag is_left;
};

SlowCalls::~SlowCalls() {
  for (Left& left : left_) left.thread.join();
}

void SlowCalls::leave(Left left) {
  left.state->is_left.set();
  const std::scoped_lock lock(mutex_);
  std::erase_if(left_, [](Left& each) {
    {
      const std::scoped_lock state(each.state->mutex);
      if (!each.state->done) return false;
    }
    each.thread.join();
    return true;
  });
  left_.push_back(std::move(left));
}

SlowCalls::Left SlowCalls::start(Call call) {
  const auto state = std::make_shared<State>();
  return {state, std::thread([state, call = std::move(call)] {
            name_this_thread("moesaic-disk");
            std::exception_ptr error;
            try {
              call(state->is_left);
            } catch (...) {
              error = std::current_exception();
            }
            const std::scoped_lock lock(state->mutex);
            state->error = error;
            state->done = true;
            state->changed.notify_all();
          })};
}

void SlowCalls::wait(State& state, const Waiting& waiting, const char* what) {
  WaitingVoice voice(waiting, kShort);
  for (;;) {
    {
      std::unique_lock lock(state.mutex);
      if (state.changed.wait_for(lock, kCancelPoll, [&] { return state.done; })) return;
    }
    if (waiting.cancel != nullptr) waiting.cancel->check();
    voice.say(what);
  }
}

void SlowCalls::run(const Waiting& waiting, const char* what, Call call) {
  Left running = start(std::move(call));
  const std::shared_ptr<State> state = running.state;
  try {
    wait(*state, waiting, what);
  } catch (...) {
    leave(std::move(running));
    throw;
  }
  running.thread.join();
  if (state->error) std::rethrow_exception(state->error);
}

void SlowCalls::finish(const Waiting& waiting, const char* what,
                       const std::function<void()>& call) {
  Left running = start([&call](const CancelFlag&) { call(); });
  std::exception_ptr heard;
  try {
    wait(*running.state, waiting, what);
  } catch (...) {
    heard = std::current_exception();
  }
  running.thread.join();
  if (running.state->error) std::rethrow_exception(running.state->error);
  if (heard) std::rethrow_exception(heard);
}

}  // namespace moesaic::cluster
