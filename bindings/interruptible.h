// Waiting without holding the GIL, and still hearing Ctrl-C: the waiting thread looks for signals
// every 25 ms. Off the main thread Python reports none, and the waits are plain waits.
#pragma once

#include <pybind11/pybind11.h>

#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <future>
#include <mutex>
#include <thread>
#include <utility>

#include "base/cancel.h"
#include "base/errors.h"

namespace moesaic::bindings {

constexpr std::chrono::milliseconds kSignalPoll{25};

// Throws error_already_set (KeyboardInterrupt, as a rule) when a signal handler raised. GIL held.
inline void check_signals() {
  if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
}

// The future's value. The engine answers between two steps; an interrupted wait is finished before
// it throws (abandon(value) then undoes what was made), since the engine works on the caller's
// data.
template <typename T, typename Abandon>
T wait_future(std::future<T> future, const Abandon& abandon) {
  std::exception_ptr interruption;
  {
    const pybind11::gil_scoped_release free_gil;
    while (future.wait_for(kSignalPoll) != std::future_status::ready) {
      const pybind11::gil_scoped_acquire gil;
      try {
        if (!interruption) check_signals();
      } catch (...) {
        interruption = std::current_exception();
      }
    }
  }
  try {
    if constexpr (std::is_void_v<T>) {
      future.get();
      if (interruption) std::rethrow_exception(interruption);
    } else {
      T value = future.get();
      if (interruption) {
        abandon(value);
        std::rethrow_exception(interruption);
      }
      return value;
    }
  } catch (const std::future_error&) {
    fail<ClosedError>("[Model] it was closed meanwhile; load it again");
  }
}
template <typename T>
T wait_future(std::future<T> future) {
  return wait_future(std::move(future), [](const auto&) {});
}

// Runs work(flag) on a thread of its own. on_poll is called with the GIL every 25 ms (progress).
// A signal, or an exception of on_poll, sets the flag, waits for the work to end and is rethrown.
inline void run_interruptible(const std::function<void(const CancelFlag&)>& work,
                              const std::function<void()>& on_poll = nullptr) {
  CancelFlag flag;
  std::mutex mutex;
  std::condition_variable changed;
  bool done = false;
  std::exception_ptr error;
  std::exception_ptr interruption;
  {
    const pybind11::gil_scoped_release free_gil;
    std::thread thread([&] {
      try {
        work(flag);
      } catch (...) {
        error = std::current_exception();
      }
      const std::scoped_lock lock(mutex);
      done = true;
      changed.notify_all();
    });
    while (true) {
      {
        std::unique_lock lock(mutex);
        if (changed.wait_for(lock, kSignalPoll, [&] { return done; })) break;
      }
      if (interruption) continue;
      const pybind11::gil_scoped_acquire gil;
      try {
        check_signals();
        if (on_poll) on_poll();
      } catch (...) {
        interruption = std::current_exception();
        flag.set();
      }
    }
    thread.join();
  }
  if (interruption) std::rethrow_exception(interruption);
  if (error) std::rethrow_exception(error);
}

}  // namespace moesaic::bindings
