// The engine's thread: drain the inbox, admit, run a step, again.
#include "engine/core.h"

#include <algorithm>
#include <utility>

#include "base/thread_name.h"

namespace moesaic::engine {

Core::Core(std::unique_ptr<model::Runner> runner, const EngineOptions& options,
           const EngineFacts& facts)
    : runner_(std::move(runner)),
      options_(options),
      facts_(facts),
      limit_(std::min(facts.n_ctx, facts.kv_tokens)),
      cache_(options.max_cached),
      pacer_(facts.max_step_rows, options.step_target) {
  active_.reserve(max_active());
  thread_ = std::thread([this] { loop(); });
}

Core::~Core() { close(); }

void Core::close() {
  {
    const std::scoped_lock lock(mutex_);
    closing_.store(true, std::memory_order_release);
    if (running_flag_ != nullptr) running_flag_->set();
    if (command_flag_ != nullptr) command_flag_->set();
  }
  wake_.notify_all();
  const std::scoped_lock lock(join_mutex_);
  if (thread_.joinable()) thread_.join();
}

void Core::post(std::function<void()> command) {
  {
    const std::scoped_lock lock(mutex_);
    if (closed()) return;  // the command is dropped; a future made from it is broken
    inbox_.push_back(std::move(command));
  }
  wake_.notify_all();
}

void Core::enqueue(std::vector<std::shared_ptr<Request>> requests) {
  const auto now = Clock::now();
  const std::size_t n = requests.size();
  {
    const std::scoped_lock lock(mutex_);
    if (closed()) fail<ClosedError>("[Model] it is closed; load it again");
    if (n_open_ + requests.size() > options_.max_queue) {
      throw QueueFullError(strcat("[", requests.front()->spec().where, "] queue: ", n_open_,
                                  " requests are open and ", requests.size(),
                                  " more would pass the bound of ", options_.max_queue,
                                  "; wait for some to end"));
    }
    inbox_.emplace_back([this, now, requests = std::move(requests)] {
      for (const auto& request : requests) request->set_submitted(now);
      try {
        waiting_.reserve(waiting_.size() + requests.size());
      } catch (const std::bad_alloc&) {
        for (const auto& request : requests) {
          reject(*request, Finish::kFailed, std::current_exception());
        }
        return;
      }
      for (const auto& request : requests) {
        const auto place = std::upper_bound(
            waiting_.begin(), waiting_.end(), request,
            [](const auto& a, const auto& b) { return a->spec().priority > b->spec().priority; });
        waiting_.insert(place, request);
      }
    });
    n_open_ += n;
  }
  wake_.notify_all();
}

void Core::cancel(Request& request) {
  {
    const std::scoped_lock lock(mutex_);
    request.mark_cancelled();
    // A step is stopped midway only when nobody else is in it.
    if (running_flag_ != nullptr &&
        std::all_of(running_.begin(), running_.end(), [](Request* r) { return r->cancelled(); })) {
      running_flag_->set();
    }
  }
  post([] {});  // wakes the thread
}

EngineStats Core::stats() const {
  const std::scoped_lock lock(mutex_);
  EngineStats stats = stats_;
  stats.waiting = n_open_ - stats_.active;
  return stats;
}

void Core::loop() {
  name_this_thread("moesaic-engine");
  bool worked = true;
  while (true) {
    std::vector<std::function<void()>> commands;
    {
      std::unique_lock lock(mutex_);
      const auto wanted = [this] { return closed() || !inbox_.empty(); };
      if (!worked && next_look_) {
        wake_.wait_until(lock, *next_look_, wanted);
      } else if (!worked) {
        wake_.wait(lock, wanted);
      }
      if (closed()) break;
      commands.swap(inbox_);
    }
    drop_cancelled();  // before commands that find their session still busy
    run_commands(commands);
    try {
      drop_cancelled();
      lacks_room_ = false;
      next_look_.reset();
      grow();
      admit();
      worked = run_step();
      if (lost_) tell_the_loss();
    } catch (...) {  // a bug of ours or memory at its end: no caller may wait forever
      fail_everything(std::current_exception());
      worked = true;
    }
    const std::int64_t free = runner_->kv_tokens_free();
    const std::scoped_lock lock(mutex_);
    stats_.cached = cache_.size();
    stats_.kv_tokens_free = free;
  }
  std::vector<std::function<void()>> commands;
  {
    const std::scoped_lock lock(mutex_);
    commands.swap(inbox_);
  }
  run_commands(commands);  // requests among them get their end below
  fail_everything(
      std::make_exception_ptr(ClosedError("[Model] it was closed while this request was running")));
  runner_.reset();
}

// A command that is waited for keeps its error in its future. Of another one, only memory at its
// end can be the reason: then no caller may wait for what it would have done.
void Core::run_commands(std::vector<std::function<void()>>& commands) noexcept {
  for (auto& command : commands) {
    try {
      command();
    } catch (...) {
      fail_everything(std::current_exception());
    }
  }
  commands.clear();
}

// All callers at once, with those that came while the Runner waited for the worker: one after the
// other each would wait anew for as long.
void Core::tell_the_loss() noexcept {
  std::vector<std::function<void()>> commands;
  {
    const std::scoped_lock lock(mutex_);
    commands.swap(inbox_);
  }
  run_commands(commands);
  fail_everything(std::exchange(lost_, nullptr));
}

void Core::fail_everything(const std::exception_ptr& error) noexcept {
  for (Active& active : active_) finish(active, Finish::kFailed, error);
  for (Active& active : preempted_) finish(active, Finish::kFailed, error);
  erase_finished();
  for (const auto& request : waiting_) reject(*request, Finish::kFailed, error);
  waiting_.clear();
}

}  // namespace moesaic::engine
