// What is behind a NetThread: the io_context, its thread, and those that must be closed before it
// ends. Inside net only.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "net/asio.h"
#include "net/connection.h"

namespace moesaic::net {

// Something with coroutines on the net thread.
class Closable {
 public:
  virtual ~Closable() = default;
  virtual void net_thread_ends() = 0;  // on the net thread; leaves nothing running behind
};

struct NetThread::Impl {
  asio::io_context io{1};
  asio::executor_work_guard<asio::io_context::executor_type> work = asio::make_work_guard(io);
  std::thread thread;
  std::thread::id id;                  // of `thread`
  std::atomic<bool> has_ended{false};  // joined: nothing posted runs any more

  bool is_current() const { return !has_ended && std::this_thread::get_id() == id; }
  // Runs it on the net thread and waits for its end; at once when this is the net thread. False:
  // the thread has ended, nothing was run. The task does not throw.
  bool run_and_wait(const std::function<void()>& task);
  // On the net thread. False: the thread is about to end, start nothing.
  bool add(const std::shared_ptr<Closable>& closable);
  void end();  // on the net thread

 private:
  bool ending_ = false;
  std::vector<std::weak_ptr<Closable>> open_;
  std::size_t prune_at_ = 64;
};

}  // namespace moesaic::net
