// Waiting without holding the GIL, and still hearing Ctrl-C: the waiting thread looks for signals
// every 25 ms. Off the main thread Python reports none, and the waits are plain waits.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <exception>
#include <functional>
#include <future>
#include <thread>
#include <utility>

#include "base/cancel.h"
#include "base/errors.h"

namespace moesaic::bindings {

constexpr std::chrono::milliseconds kSignalPoll{25};

// gil_scoped_release whose destructor may be left by an unwinding: when the interpreter ends, a
// daemon thread that wants the GIL back is ended right there (pthread_exit), and a noexcept
// destructor would make that an abort of the process.
class GilRelease {
 public:
  GilRelease() : state_(PyEval_SaveThread()) {}
  ~GilRelease() noexcept(false) { PyEval_RestoreThread(state_); }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

// Throws error_already_set (KeyboardInterrupt, as a rule) when a signal handler raised. GIL held.
inline void check_signals() {
  if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
}

// The future's value, which the engine's thread makes between two steps. An interrupted wait ends
// at once, and abandon(future) says what becomes of the value.
template <typename T, typename Abandon>
T wait_future(std::future<T> future, const Abandon& abandon) {
  while (true) {
    {
      const GilRelease free_gil;
      if (future.wait_for(kSignalPoll) == std::future_status::ready) break;
    }
    try {
      check_signals();
    } catch (const pybind11::error_already_set&) {
      abandon(std::move(future));
      throw;
    }
  }
  try {
    return future.get();
  } catch (const std::future_error&) {
    fail<ClosedError>("[Model] it was closed meanwhile; load it again");
  }
}
template <typename T>
T wait_future(std::future<T> future) {
  return wait_future(std::move(future), [](const std::future<T>&) {});
}

// Runs work(flag) on a thread of its own. on_poll is called with the GIL every 25 ms (progress).
// A signal, or an exception of on_poll, sets the flag, waits for the work to end and is rethrown.
inline void run_interruptible(const std::function<void(const CancelFlag&)>& work,
                              const std::function<void()>& on_poll = nullptr) {
  CancelFlag flag;
  std::promise<void> promise;
  std::future<void> done = promise.get_future();
  std::exception_ptr interruption;
  {
    struct Worker {  // joined also when this thread is unwound at the interpreter's end
      CancelFlag& flag;
      std::thread thread;
      ~Worker() {
        flag.set();  // no effect on work that is done
        thread.join();
      }
    } worker{flag, std::thread([&] {
               try {
                 work(flag);
                 promise.set_value();
               } catch (...) {
                 promise.set_exception(std::current_exception());
               }
             })};
    while (true) {
      {
        const GilRelease free_gil;
        if (done.wait_for(kSignalPoll) == std::future_status::ready) break;
      }
      if (interruption) continue;
      try {
        check_signals();
        if (on_poll) on_poll();
      } catch (const std::exception&) {
        interruption = std::current_exception();
        flag.set();
      }
    }
  }
  if (interruption) std::rethrow_exception(interruption);
  done.get();
}

}  // namespace moesaic::bindings
