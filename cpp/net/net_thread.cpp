// The thread on which all sockets of a process are served, and the seats from which others serve.
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

// How long a seat that was left may stay empty. Links are silent for so long at worst, against
// pings twice a second. Also how long a seat waits awake, when it has not waited longer the last
// time.
constexpr std::chrono::milliseconds kBackSoon{20};
// After the last event of a seat, the own thread looks for so long whether it is needed; then it
// sleeps until it is told.
constexpr std::chrono::seconds kWatch{1};
// Handlers that a flush may run: some of them make more of themselves.
constexpr int kFlushHandlers = 64;

// One event, or at once with `poll`. False: none was there, or the io_context has been stopped.
bool run_one(asio::io_context& io, bool poll) {
  try {
    return (poll ? io.poll_one() : io.run_one()) > 0;
  } catch (...) {
    // Every coroutine and handler keeps its own errors (link.cpp, listener.cpp); what still gets
    // here, as an allocation that failed in a completion, must not take the process down.
    return true;
  }
}

}  // namespace

bool NetThread::Impl::run_and_wait(const std::function<void()>& task) {
  if (is_over()) return false;
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

void NetThread::Impl::sit(const void* who) {
  server_ = who;
  server_id_ = std::this_thread::get_id();
}

void NetThread::Impl::rise() {
  server_ = nullptr;
  server_id_ = std::thread::id{};
  if (asked_ != nullptr) seat_free_.notify_all();
}

void NetThread::Impl::main() {
  std::unique_lock lock(seat_mutex_);
  while (!io.stopped()) {
    if (server_ == nullptr && asked_ == nullptr && Clock::now() >= back_by_) {
      sit(this);
      lock.unlock();
      while (asked_ == nullptr && !io.stopped()) run_one(io, false);
      lock.lock();
      rise();
    } else if (Clock::now() < watch_until_) {
      own_turn_.wait_for(lock, kBackSoon);
    } else {
      watches_ = false;
      own_turn_.wait(lock);
      watches_ = true;
    }
  }
}

void NetThread::Impl::stop() {
  io.stop();
  const std::scoped_lock lock(seat_mutex_);
  own_turn_.notify_all();
}

void NetThread::Impl::kick() {
  asio::post(io, [] {});
}

bool NetThread::Impl::serve(const NetSeat* seat, const std::function<bool()>& ready) {
  if (ready()) return true;
  std::unique_lock lock(seat_mutex_);
  asked_ = seat;
  seat_free_.notify_all();  // for one that asked before: it is too late
  while (server_ != nullptr) {
    kick();
    seat_free_.wait(lock);
    if (asked_ != seat) return false;
  }
  asked_ = nullptr;
  const bool stays_awake = last_ == seat && last_wait_ < kBackSoon;
  last_ = seat;
  sit(seat);
  lock.unlock();
  const auto begin = Clock::now();
  bool is_ready = ready();
  while (!is_ready && asked_ == nullptr && !io.stopped()) {
    const bool awake = stays_awake && Clock::now() < begin + kBackSoon;
    if (run_one(io, awake)) {
      is_ready = ready();
    } else if (awake) {
      std::this_thread::yield();
    }
  }
  lock.lock();
  rise();
  const auto now = Clock::now();
  last_wait_ = now - begin;
  back_by_ = is_ready ? now + kBackSoon : now;
  watch_until_ = now + kWatch;
  if (!watches_ || io.stopped()) own_turn_.notify_one();
  return is_ready;
}

void NetThread::Impl::flush(const NetSeat* seat) {
  {
    const std::scoped_lock lock(seat_mutex_);
    if (server_ != nullptr || asked_ != nullptr || last_ != seat) return;
    sit(seat);
  }
  for (int i = 0; i < kFlushHandlers && run_one(io, true); ++i) {
  }
  const std::scoped_lock lock(seat_mutex_);
  rise();
}

void NetThread::Impl::leave(const NetSeat* seat) {
  const std::scoped_lock lock(seat_mutex_);
  if (last_ != seat) return;
  last_ = nullptr;
  back_by_ = {};
  own_turn_.notify_one();
}

NetThread::NetThread() : impl_(std::make_shared<Impl>()) {
  // Signals are for the threads of the program, not for this one.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  // Faults of its own are not: a blocked one ends the process (base/mapped_file.h answers SIGBUS).
  for (const int fault : {SIGBUS, SIGSEGV, SIGFPE, SIGILL}) sigdelset(&all, fault);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  impl_->thread = std::thread([impl = impl_.get()] {
    name_this_thread("moesaic-net");
    impl->main();
  });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

NetThread::~NetThread() {
  if (!impl_->process.is_current()) {
    new std::shared_ptr<Impl>(std::move(impl_));  // the parent's: left as it is
    return;
  }
  const std::shared_ptr<Impl> impl = std::move(impl_);
  // It ends when nothing is left to do; should something never end, it is left behind.
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
  impl->stop();
  impl->thread.join();
  impl->has_ended = true;
}

NetSeat::NetSeat(NetThread& net) : net_(net.impl()) {}
NetSeat::~NetSeat() { leave(); }
bool NetSeat::serve(const std::function<bool()>& ready) { return net_->serve(this, ready); }
void NetSeat::leave() { net_->leave(this); }
void NetSeat::flush() { net_->flush(this); }
void NetSeat::kick() { net_->kick(); }

}  // namespace moesaic::net
