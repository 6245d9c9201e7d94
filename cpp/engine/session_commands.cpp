// What sessions ask of the engine's thread between two steps. A session's mutex is never held while
// the Runner works, which on a cluster may wait for another machine: callers look at sessions from
// threads that must not stand still. Nothing else writes to them meanwhile: requests are admitted
// by this same thread.
#include <utility>

#include "engine/core.h"

namespace moesaic::engine {
namespace {

// What a command needs of a session: that it is open, that no request writes to it, and that `n`
// is within its tokens (which are returned).
std::vector<std::int32_t> idle_tokens(const SessionState& session, const char* where,
                                      const char* field, std::int64_t n) {
  const std::scoped_lock lock(session.mutex);
  if (session.closed) fail<ClosedError>("[", where, "] session: it is closed; make a new one");
  if (!session.writer.expired()) {
    fail<ArgumentError>("[", where,
                        "] session: a call is writing to it (a stream that is still open counts); "
                        "end that one first");
  }
  const auto size = static_cast<std::int64_t>(session.tokens.size());
  if (n < 0 || n > size) {
    fail<ArgumentError>("[", where, "] ", field, ": got ", n, ", need 0 to ", size,
                        " (the session's tokens)");
  }
  return session.tokens;
}

}  // namespace

Core::CommandScope::CommandScope(Core& core, CancelFlag& flag) : core_(core) {
  const std::scoped_lock lock(core_.mutex_);
  core_.command_flag_ = &flag;
  if (core_.closed()) flag.set();
}

Core::CommandScope::~CommandScope() {
  const std::scoped_lock lock(core_.mutex_);
  core_.command_flag_ = nullptr;
}

void Core::remember(const std::shared_ptr<SessionState>& session) {
  std::erase_if(sessions_, [](const auto& known) { return known.expired(); });
  sessions_.push_back(session);
}

std::shared_ptr<SessionState> Core::open_session() {
  auto session = std::make_shared<SessionState>();
  remember(session);
  session->sequence = runner_->open();
  return session;
}

std::shared_ptr<SessionState> Core::fork_session(SessionState& parent, std::int64_t n_tokens) {
  std::vector<std::int32_t> tokens = idle_tokens(parent, "Session.fork", "n_tokens", n_tokens);
  tokens.resize(static_cast<std::size_t>(n_tokens));
  // A fork in the middle of a page copies it, at once or when it is written to.
  make_room(1, std::nullopt, true);
  auto child = std::make_shared<SessionState>();
  remember(child);
  child->tokens = std::move(tokens);
  child->sequence = runner_->fork(parent.sequence, n_tokens);
  return child;
}

void Core::truncate_session(SessionState& session, std::int64_t n_tokens) {
  idle_tokens(session, "Session.truncate", "n", n_tokens);
  runner_->truncate(session.sequence, n_tokens);
  const std::scoped_lock lock(session.mutex);
  session.tokens.resize(static_cast<std::size_t>(n_tokens));
}

// At most once: a caller's close() marks the session at once and is heard here later, so that the
// end of its request may come first.
void Core::give_back(SessionState& session) {
  if (session.sequence != 0) runner_->close(std::exchange(session.sequence, 0));
}

void Core::close_session(SessionState& session) {
  bool idle = false;
  {
    const std::scoped_lock lock(session.mutex);
    session.closed = true;
    idle = session.writer.expired();
  }
  if (idle) give_back(session);  // else when its request ends
}

Engine::SavedSession Core::save_session(SessionState& session, CancelFlag& cancel) {
  Engine::SavedSession saved;
  saved.tokens = idle_tokens(session, "Session.save", "n", 0);
  const CommandScope scope(*this, cancel);
  saved.kv = runner_->save(session.sequence, &cancel);
  return saved;
}

std::shared_ptr<SessionState> Core::load_session(const Engine::SavedSession& saved,
                                                 CancelFlag& cancel) {
  const auto n = static_cast<std::int64_t>(saved.tokens.size());
  if (!make_room(pages_for(n), std::nullopt, true)) {
    throw OutOfMemoryError(
        strcat("[Model.load_session] KV cache: ", n, " tokens do not fit, free are ",
               runner_->kv_tokens_free(), " of ", facts_.kv_tokens, held_by_sessions(),
               "; close sessions, or load the model with a larger kv_tokens"),
        saved.kv.size(), 0);
  }
  auto session = std::make_shared<SessionState>();
  remember(session);
  session->tokens = saved.tokens;
  const CommandScope scope(*this, cancel);
  session->sequence = runner_->load(saved.kv, saved.tokens, &cancel);
  return session;
}

void Core::clear_cache() {
  while (const auto sequence = cache_.evict()) runner_->close(*sequence);
}

}  // namespace moesaic::engine
