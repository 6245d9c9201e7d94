// The engine: sessions and requests in, steps for a Runner out. One thread of its own drives the
// Runner; every method here may be called from any thread. It never knows which Runner it drives.
// Not for text: prompts and results are token ids.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "engine/request.h"
#include "model/runner.h"

namespace moesaic::engine {

// The queue is full: try again when some requests have ended.
class QueueFullError : public BackendError {
 public:
  using BackendError::BackendError;
};

struct EngineOptions {
  std::size_t max_queue = 1024;  // requests waiting or running
  std::size_t max_active = 64;   // sequences in a step, at most max_step_rows
  std::size_t max_cached = 64;   // finished sequences kept for their prefix
  // Shorter common prefixes are run again: they cost next to nothing, and without deterministic
  // numerics the last bits of a row depend on the company it was run in.
  std::int64_t min_reuse = 16;
  std::chrono::milliseconds step_target{60};  // of a step that several requests share
};

// Fixed at load; readable after close().
struct EngineFacts {
  model::Config config;
  model::MemoryNeed memory;
  std::int64_t n_ctx = 0;
  std::int64_t kv_tokens = 0;
  std::int64_t page_tokens = 0;
  std::int64_t max_step_rows = 0;
  std::uint64_t kv_token_bytes = 0;  // of a saved session, for each token
  std::string identity;
  std::vector<std::string> capture_names;
};

struct EngineStats {
  std::uint64_t steps = 0;
  std::uint64_t prompt_rows = 0;
  std::uint64_t decode_rows = 0;
  std::uint64_t reused_rows = 0;  // prompt rows that an equal prefix saved
  std::uint64_t waiting = 0;
  std::uint64_t active = 0;
  std::uint64_t cached = 0;       // finished sequences kept
  std::uint64_t preemptions = 0;  // times a request gave its pages to others and ran again
  std::int64_t kv_tokens_free = 0;
};

class Core;

class Engine {
 public:
  explicit Engine(std::unique_ptr<model::Runner> runner, const EngineOptions& options = {});
  ~Engine();  // close(); in a forked child, where the thread is not, it lets everything be
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Ends running requests with ClosedError, waits for the thread and frees the Runner. Idempotent.
  void close();
  bool closed() const;
  // Throws ClosedError after close() and in a child made by fork().
  void check_usable(const std::string& where) const;
  const EngineFacts& facts() const { return facts_; }
  EngineStats stats() const;

  // All or none: throws ArgumentError, OutOfMemoryError (impossible in this pool) or
  // QueueFullError. Requests submitted together can share steps from the first one on.
  std::vector<std::shared_ptr<Request>> submit(std::vector<RequestSpec> specs,
                                               const std::shared_ptr<Channel>& channel);
  // Ends within a step; what was generated stays readable. No effect on ended requests.
  void cancel(const std::shared_ptr<Request>& request);
  // Answers an Update's row (vocab), perhaps changed: the token is sampled from it.
  void choose(const std::shared_ptr<Request>& request, std::vector<float> row);
  // Ends a generation on a session behind its n-th token, as if it were over by itself: the session
  // keeps them. No effect on ended requests.
  void end_at(const std::shared_ptr<Request>& request, std::int64_t n_generated);

  // Sessions. These run on the engine's thread between two steps.
  std::future<std::shared_ptr<SessionState>> open_session();
  std::future<std::shared_ptr<SessionState>> fork_session(
      const std::shared_ptr<SessionState>& session, std::int64_t n_tokens);
  std::future<void> truncate_session(const std::shared_ptr<SessionState>& session,
                                     std::int64_t n_tokens);
  void close_session(const std::shared_ptr<SessionState>& session) noexcept;  // returns at once
  // For a session asked for above that nobody waits for any more: it is closed when it is there.
  void abandon(std::future<std::shared_ptr<SessionState>> session);
  struct SavedSession {
    std::vector<std::int32_t> tokens;
    std::vector<std::uint8_t> kv;  // canonical order (layer, token)
  };
  // `cancel` stops them midway: CancelledError. close() sets it as well.
  std::future<SavedSession> save_session(
      const std::shared_ptr<SessionState>& session,
      std::shared_ptr<CancelFlag> cancel = std::make_shared<CancelFlag>());
  std::future<std::shared_ptr<SessionState>> load_session(
      SavedSession saved, std::shared_ptr<CancelFlag> cancel = std::make_shared<CancelFlag>());
  // Forgets finished sequences, so that nothing is reused.
  std::future<void> clear_cache();

 private:
  std::unique_ptr<Core> core_;
  EngineFacts facts_;
  pid_t pid_;
};

}  // namespace moesaic::engine
