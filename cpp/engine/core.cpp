// The engine's thread: drain the inbox, admit, run a step, again. And the session commands that run
// between two steps.
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
      pacer_(facts.max_step_rows, options.step_target),
      thread_([this] { loop(); }) {}

Core::~Core() { close(); }

void Core::close() {
  {
    const std::scoped_lock lock(mutex_);
    closing_.store(true, std::memory_order_release);
    close_flag_.set();
    if (running_flag_ != nullptr) running_flag_->set();
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
  {
    const std::scoped_lock lock(mutex_);
    if (closed()) fail<ClosedError>("[Model] it is closed; load it again");
    if (n_open_ + requests.size() > options_.max_queue) {
      throw QueueFullError(strcat("[", requests.front()->spec().where, "] queue: ", n_open_,
                                  " requests are open and ", requests.size(),
                                  " more would pass the bound of ", options_.max_queue,
                                  "; wait for some to end"));
    }
    n_open_ += requests.size();
    inbox_.emplace_back([this, now, requests = std::move(requests)] {
      for (const auto& request : requests) {
        request->set_submitted(now);
        const auto place = std::upper_bound(
            waiting_.begin(), waiting_.end(), request,
            [](const auto& a, const auto& b) { return a->spec().priority > b->spec().priority; });
        waiting_.insert(place, request);
      }
    });
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
      if (!worked) wake_.wait(lock, [this] { return closed() || !inbox_.empty(); });
      if (closed()) break;
      commands.swap(inbox_);
    }
    for (auto& command : commands) command();
    commands.clear();
    try {
      drop_cancelled();
      admit();
      worked = run_step();
    } catch (...) {  // a bug of ours or memory at its end: nobody may wait forever
      fail_everything(std::current_exception());
      worked = true;
    }
    const std::scoped_lock lock(mutex_);
    stats_.cached = cache_.size();
    stats_.kv_tokens_free = runner_->kv_tokens_free();
  }
  std::vector<std::function<void()>> commands;
  {
    const std::scoped_lock lock(mutex_);
    commands.swap(inbox_);
  }
  for (auto& command : commands) command();  // requests among them get their end below
  fail_everything(
      std::make_exception_ptr(ClosedError("[Model] it was closed while this request was running")));
  runner_.reset();
}

void Core::fail_everything(const std::exception_ptr& error) {
  for (Active& active : active_) finish(active, Finish::kFailed, error);
  erase_finished();
  for (const auto& request : waiting_) reject(*request, Finish::kFailed, error);
  waiting_.clear();
}

// --- sessions

std::shared_ptr<SessionState> Core::open_session() {
  auto session = std::make_shared<SessionState>();
  session->sequence = runner_->open();
  return session;
}

std::shared_ptr<SessionState> Core::fork_session(SessionState& parent, std::int64_t n_tokens) {
  const std::scoped_lock lock(parent.mutex);
  if (parent.closed) fail<ClosedError>("[Session.fork] session: it is closed; fork before close()");
  if (parent.busy) fail<ArgumentError>("[Session.fork] session: a call is writing to it");
  const auto n = static_cast<std::int64_t>(parent.tokens.size());
  if (n_tokens < 0 || n_tokens > n) {
    fail<ArgumentError>("[Session.fork] n_tokens: got ", n_tokens, ", need 0 to ", n,
                        " (the session's tokens)");
  }
  make_room(1);  // a fork in the middle of a page copies it
  auto child = std::make_shared<SessionState>();
  child->sequence = runner_->fork(parent.sequence, n_tokens);
  child->tokens.assign(parent.tokens.begin(), parent.tokens.begin() + n_tokens);
  return child;
}

void Core::truncate_session(SessionState& session, std::int64_t n_tokens) {
  const std::scoped_lock lock(session.mutex);
  if (session.closed) fail<ClosedError>("[Session.truncate] session: it is closed; make a new one");
  if (session.busy) fail<ArgumentError>("[Session.truncate] session: a call is writing to it");
  const auto n = static_cast<std::int64_t>(session.tokens.size());
  if (n_tokens < 0 || n_tokens > n) {
    fail<ArgumentError>("[Session.truncate] n: got ", n_tokens, ", need 0 to ", n,
                        " (the session's tokens)");
  }
  runner_->truncate(session.sequence, n_tokens);
  session.tokens.resize(static_cast<std::size_t>(n_tokens));
}

// At most once: a caller's close() marks the session at once and is heard here later, so that the
// end of its request may come first.
void Core::give_back(SessionState& session) {
  if (session.sequence != 0) runner_->close(std::exchange(session.sequence, 0));
}

void Core::close_session(SessionState& session) {
  const std::scoped_lock lock(session.mutex);
  session.closed = true;
  if (!session.busy) give_back(session);  // else when its request ends
}

Engine::SavedSession Core::save_session(SessionState& session) {
  const std::scoped_lock lock(session.mutex);
  if (session.closed)
    fail<ClosedError>("[Session.save] session: it is closed; save before close()");
  if (session.busy) fail<ArgumentError>("[Session.save] session: a call is writing to it");
  return {session.tokens, runner_->save(session.sequence, &close_flag_)};
}

std::shared_ptr<SessionState> Core::load_session(const Engine::SavedSession& saved) {
  const auto n = static_cast<std::int64_t>(saved.tokens.size());
  if (!make_room(pages_for(n))) {
    throw OutOfMemoryError(
        strcat("[Model.load_session] KV cache: ", n, " tokens do not fit, free are ",
               runner_->kv_tokens_free(), " of ", facts_.kv_tokens,
               "; close sessions, or load the model with a larger kv_tokens"),
        saved.kv.size(), 0);
  }
  auto session = std::make_shared<SessionState>();
  session->sequence = runner_->load(saved.kv, saved.tokens, &close_flag_);
  session->tokens = saved.tokens;
  return session;
}

void Core::clear_cache() {
  while (const auto sequence = cache_.evict()) runner_->close(*sequence);
}

}  // namespace moesaic::engine
