// The inside of the engine: what its thread owns (waiting, active and preempted requests, the
// prefix cache, the Runner) and the inbox through which other threads reach it. Apart from Engine
// so that a forked child can leave all of it alone.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "base/cancel.h"
#include "engine/engine.h"
#include "engine/plan.h"
#include "engine/prefix_cache.h"

namespace moesaic::engine {

// An admitted request. Positions count from the start of its sequence.
struct Active {
  std::shared_ptr<Request> request;
  model::SequenceId sequence = 0;
  std::vector<std::int32_t> tokens;  // of the whole sequence: session, prompt, generated
  std::int64_t start = 0;            // the prompt's first position
  std::int64_t prompt_end = 0;       // the position behind the prompt
  std::int64_t row_limit = 0;        // positions that pages are promised for
  std::int64_t cached = 0;           // rows in the cache
  std::int64_t delivered = 0;        // rows that gave their results: run again, they give none
  std::int64_t n_generated = 0;
  bool awaiting_choice = false;  // its caller has the row of logits, since `asked`
  Clock::time_point asked;
  Finish ending = Finish::kNone;  // it ends so when the rows that are left have run
  std::uint64_t age = 0;          // in order of admission
  bool preempted = false;         // it is in the list of those
  std::uint64_t last_step = 0;    // that it took part in
  Outcome outcome;

  const RequestSpec& spec() const { return request->spec(); }
  std::int64_t size() const { return static_cast<std::int64_t>(tokens.size()); }
  bool external() const { return spec().generate && spec().generate->external; }
  // Rows it ran before its pages were taken come first.
  bool replays() const { return cached < delivered; }
  std::int64_t rows_left() const { return (replays() ? delivered : size()) - cached; }
  bool lacks_pages() const { return !awaiting_choice && row_limit < size(); }
  bool captures() const { return !spec().capture.empty() && !replays(); }
};

// An error of the Runner as a whole (a lost worker, a deadline, the weights' file), which every
// member of a step would meet again.
bool is_runner_fault(const std::exception_ptr& error);

class Core {
 public:
  Core(std::unique_ptr<model::Runner> runner, const EngineOptions& options,
       const EngineFacts& facts);
  ~Core();

  void close();
  bool closed() const { return closing_.load(std::memory_order_acquire); }

  // Runs on the engine's thread before its next step. Dropped (and its future broken) at close.
  void post(std::function<void()> command);
  template <typename F>
  auto call(F function) -> std::future<std::invoke_result_t<F>> {
    auto task =
        std::make_shared<std::packaged_task<std::invoke_result_t<F>()>>(std::move(function));
    auto future = task->get_future();
    post([task] { (*task)(); });
    return future;
  }

  void enqueue(std::vector<std::shared_ptr<Request>> requests);  // throws QueueFullError
  void cancel(Request& request);
  EngineStats stats() const;

  // On the engine's thread:
  void choose(Request& request, std::vector<float> row);
  void end_at(Request& request, std::int64_t n_generated);
  std::shared_ptr<SessionState> open_session();
  std::shared_ptr<SessionState> fork_session(SessionState& parent, std::int64_t n_tokens);
  void truncate_session(SessionState& session, std::int64_t n_tokens);
  void close_session(SessionState& session);
  void give_back(SessionState& session);  // its sequence
  Engine::SavedSession save_session(SessionState& session, CancelFlag& cancel);
  std::shared_ptr<SessionState> load_session(const Engine::SavedSession& saved, CancelFlag& cancel);
  void clear_cache();

 private:
  // core.cpp: the thread
  void loop();
  void run_commands(std::vector<std::function<void()>>& commands) noexcept;
  void fail_everything(const std::exception_ptr& error) noexcept;
  void tell_the_loss() noexcept;
  // While it lives, close() reaches a command's own flag.
  class CommandScope {
   public:
    CommandScope(Core& core, CancelFlag& flag);
    ~CommandScope();

   private:
    Core& core_;
  };
  void remember(const std::shared_ptr<SessionState>& session);

  // admission.cpp: from waiting to active
  enum class Admission { kDone, kDefer, kNoRoom };
  struct Reuse {
    model::SequenceId sequence = 0;
    std::int64_t n_tokens = 0;
    bool running = false;  // it belongs to an active request, which writes on
    bool wait = false;     // a running prompt is about to have more of it
  };
  void drop_cancelled();
  void admit();
  Admission try_admit(const std::shared_ptr<Request>& request);
  Reuse find_reuse(const RequestSpec& spec);
  void activate(const std::shared_ptr<Request>& request, model::SequenceId sequence,
                std::vector<std::int32_t> tokens, std::int64_t cached, std::int64_t row_limit);
  std::int64_t pages_for(std::int64_t rows) const;  // rounded up
  std::int64_t free_pages() const;                  // that no active request counts on
  bool make_room(std::int64_t n_pages, std::optional<model::SequenceId> keep = std::nullopt,
                 bool at_once = false);
  bool others_will_end(const Active* self) const;
  std::exception_ptr no_room_error(const RequestSpec& spec, std::int64_t n_pages) const;
  std::string held_by_sessions() const;
  void reject(Request& request, Finish finish, std::exception_ptr error) noexcept;
  std::size_t max_active() const;
  std::int64_t rows_promised(const RequestSpec& spec, std::int64_t prompt_end) const;
  static void insert_by_age(std::vector<Active>& list, Active active);

  // preempt.cpp: from active to preempted, and back
  std::chrono::duration<double> patience(const Active& active) const;
  void preempt(std::size_t index, bool keep_rows);
  bool preempt_away(std::int64_t n_pages, std::optional<model::SequenceId> keep, bool at_once);
  bool preempt_for_slot();
  Admission try_resume(std::uint64_t age);
  bool resume_with(std::uint64_t age, std::int64_t more, std::int64_t& n_pages);
  void resume(std::uint64_t age, model::SequenceId sequence, std::int64_t cached,
              std::int64_t row_limit);
  void grow();
  void grow_one(std::uint64_t age);

  // steps.cpp: from active to results
  bool run_step();  // false: nothing to run
  std::vector<std::size_t> choose_rows(std::vector<std::int64_t>& rows, bool& alone);
  model::SequenceStep sequence_step(const Active& active, std::int64_t n_rows) const;
  model::Step make_step(std::span<const std::size_t> members,
                        std::span<const std::int64_t> rows) const;
  // While it lives, cancel() and close() reach the running step through its flag.
  class RunningScope {
   public:
    RunningScope(Core& core, std::span<const std::size_t> members);
    ~RunningScope();
    CancelFlag flag;

   private:
    Core& core_;
  };
  // The Runner's own failure, which is no member's fault; null when it did not fail.
  std::exception_ptr run_guarded(std::span<const std::size_t> members,
                                 std::span<const std::int64_t> rows);
  void run_one_by_one(std::span<const std::size_t> members, std::span<const std::int64_t> rows);
  model::StepResult run(std::span<const std::size_t> members, std::span<const std::int64_t> rows);
  void cancel_members(std::span<const std::size_t> members, const std::exception_ptr& error);
  void fail_members(std::span<const std::size_t> members, const std::exception_ptr& error);
  void apply(Active& active, std::int64_t n_rows, model::SequenceResult result);
  void accept(Active& active, model::Sampled sampled);
  void conclude(Active& active, Finish how);
  void finish(Active& active, Finish how, std::exception_ptr error = nullptr) noexcept;
  Active* find(const Request& request);
  void release_sequence(Active& active, Finish how);
  void cut(model::SequenceId sequence, std::int64_t n_tokens);
  void remember_prefix(model::SequenceId sequence, std::vector<std::int32_t> tokens);
  void erase_finished();

  // ahead.cpp: many tokens in one call of the runner
  bool can_run_ahead(std::span<const std::size_t> members) const;
  std::int64_t run_ahead(std::span<const std::size_t> members);
  bool has_commands() const;

  std::unique_ptr<model::Runner> runner_;
  const EngineOptions options_;
  const EngineFacts& facts_;
  const std::int64_t
      limit_;  // positions a sequence can have: n_ctx, or the pool when it is smaller

  // The engine's thread only:
  std::vector<std::shared_ptr<Request>> waiting_;  // by priority, then age
  std::vector<Active> active_;                     // by priority, then age
  std::vector<Active> preempted_;                  // their pages were taken; the same order
  PrefixCache cache_;
  Pacer pacer_;
  std::uint64_t step_count_ = 0;
  std::uint64_t last_age_ = 0;
  std::exception_ptr lost_;                            // a worker is lost: the error of all callers
  bool lacks_room_ = false;                            // a request waits for pages that others hold
  std::optional<Clock::time_point> next_look_;         // when pages may be taken that may not yet
  std::vector<std::weak_ptr<SessionState>> sessions_;  // open ones, for messages

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<std::function<void()>> inbox_;  // guarded by mutex_
  std::vector<Request*> running_;             // in the running step; guarded by mutex_
  CancelFlag* running_flag_ = nullptr;        // guarded by mutex_
  CancelFlag* command_flag_ = nullptr;        // of a running command; guarded by mutex_
  std::size_t n_open_ = 0;                    // requests not ended; guarded by mutex_
  EngineStats stats_;                         // guarded by mutex_
  std::atomic<bool> closing_{false};
  std::mutex join_mutex_;
  std::thread thread_;  // last: starts when all else is there
};

}  // namespace moesaic::engine
