// What is behind a NetThread: the io_context, its thread, and those that must be closed before it
// ends. Inside net only.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "base/process.h"
#include "net/asio.h"
#include "net/connection.h"

namespace moesaic::net {

// Something with coroutines on the net thread.
class Closable {
 public:
  virtual ~Closable() = default;
  virtual void net_thread_ends() = 0;  // on the net thread; leaves nothing running behind
};

// Who serves the io_context: the net's own thread or one seat, never two at once. All handlers thus
// run one after the other, each after the one before (`seat_mutex_` is between them).
struct NetThread::Impl {
  asio::io_context io{1};
  asio::executor_work_guard<asio::io_context::executor_type> work = asio::make_work_guard(io);
  std::thread thread;
  std::atomic<bool> has_ended{false};  // joined: nothing posted runs any more
  const OwningProcess process;         // a forked child has no net thread
  // Bytes of received frames of all links that are being read or that users hold; outlives both.
  const std::shared_ptr<std::atomic<std::size_t>> held =
      std::make_shared<std::atomic<std::size_t>>(0);

  bool is_over() const { return has_ended || !process.is_current(); }
  bool is_current() const { return !has_ended && server_id_ == std::this_thread::get_id(); }
  // Runs it on the net thread and waits for its end; at once when this is the net thread. False:
  // the thread has ended, nothing was run. The task does not throw.
  bool run_and_wait(const std::function<void()>& task);
  // On the net thread. False: the thread is about to end, start nothing.
  bool add(const std::shared_ptr<Closable>& closable);
  void end();  // on the net thread
  void main();
  void stop();  // any thread

  // --- for seats
  bool serve(const NetSeat* seat, const std::function<bool()>& ready);
  void flush(const NetSeat* seat);
  void leave(const NetSeat* seat);
  void kick();

 private:
  using Clock = std::chrono::steady_clock;
  void sit(const void* who);  // under seat_mutex_
  void rise();                // under seat_mutex_

  bool ending_ = false;
  std::vector<std::weak_ptr<Closable>> open_;
  std::size_t prune_at_ = 64;

  std::mutex seat_mutex_;
  std::condition_variable seat_free_;  // for a seat that has asked
  std::condition_variable own_turn_;   // for the net's own thread
  const void* server_ = nullptr;       // serves now: a seat, this for the own thread, nobody
  std::atomic<const NetSeat*> asked_{nullptr};  // wants to serve next; whoever serves rises for it
  const NetSeat* last_ = nullptr;               // the seat that served last
  Clock::duration last_wait_{};                 // in that seat
  Clock::time_point back_by_{};                 // until then `last_` is expected back
  Clock::time_point watch_until_{};             // until then the own thread looks by itself
  bool watches_ = true;                         // and is doing so
  std::atomic<std::thread::id> server_id_{};
};

}  // namespace moesaic::net
