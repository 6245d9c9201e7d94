// The one thread on which all sockets of a process are served.
#include "net/net_thread.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <future>
#include <utility>

#include "base/thread_name.h"

namespace moesaic::net {
namespace {

// How long links may take to say goodbye before the thread ends without them.
constexpr std::chrono::seconds kEndDeadline{3};

void run(asio::io_context& io) {
  for (;;) {
    try {
      io.run();
      return;
    } catch (...) {
      // Every coroutine and handler keeps its own errors (link.cpp, listener.cpp); what still gets
      // here, as an allocation that failed in a completion, must not take the process down.
    }
  }
}

}  // namespace

bool NetThread::Impl::run_and_wait(const std::function<void()>& task) {
  if (is_current()) {
    task();
    return true;
  }
  std::promise<void> done;
  const std::future<void> future = done.get_future();
  asio::post(io, [&done, &task] {
    task();
    done.set_value();
  });
  while (future.wait_for(std::chrono::milliseconds(20)) != std::future_status::ready) {
    if (has_ended) return false;  // and what was posted will be dropped, not run
  }
  return true;
}

bool NetThread::Impl::add(const std::shared_ptr<Closable>& closable) {
  if (ending_) return false;
  if (open_.size() >= prune_at_) {
    std::erase_if(open_, [](const std::weak_ptr<Closable>& weak) { return weak.expired(); });
    prune_at_ = std::max<std::size_t>(64, 2 * open_.size());
  }
  open_.push_back(closable);
  return true;
}

void NetThread::Impl::end() {
  ending_ = true;
  for (const std::weak_ptr<Closable>& weak : std::exchange(open_, {})) {
    if (const std::shared_ptr<Closable> closable = weak.lock()) closable->net_thread_ends();
  }
}

NetThread::NetThread() : impl_(std::make_shared<Impl>()) {
  // Signals are for the threads of the program, not for this one.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  impl_->thread = std::thread([impl = impl_.get()] {
    name_this_thread("moesaic-net");
    run(impl->io);
  });
  impl_->id = impl_->thread.get_id();
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

NetThread::~NetThread() {
  const std::shared_ptr<Impl> impl = std::move(impl_);
  // run() returns when nothing is left to do; should something never end, it is left behind.
  std::promise<void> ended;
  asio::post(impl->io, [impl = impl.get(), &ended] {
    impl->end();
    impl->work.reset();
    ended.set_value();
  });
  ended.get_future().wait();
  const auto deadline = std::chrono::steady_clock::now() + kEndDeadline;
  while (!impl->io.stopped() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  impl->io.stop();
  impl->thread.join();
  impl->has_ended = true;
}

}  // namespace moesaic::net
