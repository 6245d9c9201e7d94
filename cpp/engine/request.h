// What callers ask of the engine and what they get back. A Request is one sequence's work: rows to
// run, then perhaps tokens to generate. The engine's thread fills its output; the caller waits on a
// Channel, which many requests of one call share. Not for how requests become steps: core.h.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "model/runner.h"

namespace moesaic::engine {

using Clock = std::chrono::steady_clock;

class Request;

// A sequence with a KV cache that a caller holds. Written by the engine's thread; `mutex` guards
// what callers read, and is held for moments only: never while the Runner works.
struct SessionState {
  mutable std::mutex mutex;
  std::vector<std::int32_t> tokens;  // cached rows' tokens
  bool closed = false;
  std::weak_ptr<const Request> writer;  // the request that runs on it
  model::SequenceId sequence = 0;       // engine's thread only; 0: given back
};

struct GenerateSpec {
  model::SamplerSpec sampler;
  std::int64_t max_tokens = 0;            // 0: only the prompt is run
  std::vector<std::int32_t> stop_tokens;  // end of generation; not handed out
  bool external = false;  // hand the row of logits to the caller and wait for choose()
  bool at_end = false;    // nobody looks at tokens before the end: none is news by itself
};

struct RequestSpec {
  std::string where = "Engine";           // begins error messages: "Model.forward"
  std::vector<std::int32_t> tokens;       // (n), n >= 1: rows to run
  std::shared_ptr<SessionState> session;  // null: a sequence of its own, from position 0
  model::Logits logits = model::Logits::kNone;
  std::vector<model::Target> targets;  // rows counted from 0 over all `tokens`
  std::vector<std::string> capture;    // resolved names
  std::optional<GenerateSpec> generate;
  bool reuse = false;  // take the longest equal prefix that is still there, and leave one behind
  int priority = 0;    // higher goes first
};

enum class Finish { kNone, kDone, kStopToken, kLength, kCancelled, kFailed };

struct Timings {
  Clock::time_point submitted;
  std::optional<Clock::time_point> admitted;     // first rows could run
  std::optional<Clock::time_point> prompt_done;  // the prompt's last row has run
  std::optional<Clock::time_point> finished;
};

// What has happened since the last take().
struct Update {
  std::vector<model::Sampled> tokens;
  std::optional<std::vector<float>> row;  // (vocab): the engine waits for choose()
  std::int64_t prompt_rows_done = 0;      // with reused ones
  std::int64_t prompt_rows = 0;
  bool finished = false;
};

// Everything that is there only at the end.
struct Outcome {
  Finish finish = Finish::kNone;
  std::exception_ptr error;                  // kFailed and kCancelled
  std::int32_t stop_token = -1;              // kStopToken
  std::vector<float> logits;                 // (1, vocab) or (n, vocab)
  std::vector<model::TargetResult> targets;  // as asked
  std::vector<model::Captured> captures;     // rows of all steps, in order
  std::int64_t n_reused = 0;                 // prompt rows taken from an equal prefix
  Timings timings;
};

// What a caller waits on. Shared by the requests of one call; index = place in that call.
class Channel {
 public:
  // Indices of requests with news, each once; empty when the time is up.
  std::vector<std::size_t> wait_for(std::chrono::milliseconds timeout);
  // Room for the news of so many more requests, so that telling them needs no memory.
  void reserve(std::size_t n_requests);

 private:
  friend class Request;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::size_t> ready_;
  std::size_t reserved_ = 0;
};

class Request {
 public:
  Request(RequestSpec spec, std::shared_ptr<Channel> channel, std::size_t index)
      : spec_(std::move(spec)), channel_(std::move(channel)), index_(index) {}

  const RequestSpec& spec() const { return spec_; }
  const Channel* channel() const { return channel_.get(); }  // requests of one call share it
  bool cancelled() const { return cancelled_.load(std::memory_order_acquire); }

  // The caller's side.
  Update take();
  bool finished() const;
  Outcome take_outcome();  // once, after finished()

  // The engine's side.
  void set_submitted(Clock::time_point when) { submitted_ = when; }
  Clock::time_point submitted() const { return submitted_; }
  void mark_cancelled() { cancelled_.store(true, std::memory_order_release); }
  void publish_progress(std::int64_t rows_done, std::int64_t rows);
  void publish_token(model::Sampled token);
  void publish_row(std::vector<float> row);
  void publish_end(Outcome outcome) noexcept;

 private:
  void notify_locked();

  RequestSpec spec_;
  std::shared_ptr<Channel> channel_;
  std::size_t index_;
  std::atomic<bool> cancelled_{false};
  Clock::time_point submitted_;  // the engine's thread only
  // Guarded by channel_->mutex_:
  Update pending_;
  Outcome outcome_;
  bool queued_ = false;  // index_ is in the channel's ready list
};

}  // namespace moesaic::engine
