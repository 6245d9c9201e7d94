// Runner: "run this step". The engine drives one without knowing whether the layers are here
// (LocalRunner) or on other machines (the cluster's). A step is rows of several sequences at once
// and what is wanted of each.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "model/config.h"

namespace moesaic::model {

using SequenceId = std::uint64_t;

// How the next token of a sequence is chosen; ranges are checked by validate(). Order of effects as
// in llama.cpp: penalties and logit_bias, top_k, typical, top_p, min_p, temperature, draw.
// temperature <= 0 is greedy.
struct SamplerSpec {
  float temperature = 0.8F;
  std::int32_t top_k = 40;      // <= 0: off
  float top_p = 0.95F;          // >= 1: off
  float min_p = 0.05F;          // <= 0: off
  float typical_p = 1.0F;       // >= 1: off
  float repeat_penalty = 1.0F;  // 1: off
  float presence_penalty = 0.0F;
  float frequency_penalty = 0.0F;
  std::int32_t penalty_last_n = 64;  // tokens looked back; -1: all
  std::vector<std::pair<std::int32_t, float>> logit_bias;
  std::uint64_t seed = 0;
  std::int32_t n_logprobs = -1;  // >= 0: log-probability of the token, and of the n best; -1: none
};

struct Sampled {
  std::int32_t token = 0;
  float logprob = 0.0F;               // of the model's distribution, before any sampling effect
  std::vector<std::int32_t> top_ids;  // (n_logprobs)
  std::vector<float> top_logprobs;    // (n_logprobs)
};

enum class Logits { kNone, kLast, kAll };

// log p(token) of the distribution at a row, and whether token is its argmax: what score() sums.
struct Target {
  std::int32_t row = 0;  // of this sequence's rows in this step, from 0
  std::int32_t token = 0;
};
struct TargetResult {
  double logprob = 0.0;
  bool is_greedy = false;
};

// The rows one sequence brings to a step. `start` is authoritative: cached rows from start on are
// dropped first.
struct SequenceStep {
  SequenceId sequence = 0;
  std::int64_t start = 0;
  std::vector<std::int32_t> tokens;  // (n), n >= 1
  Logits logits = Logits::kNone;
  std::vector<Target> targets;
  const SamplerSpec* sampler = nullptr;  // null: do not sample; else from the last row
  std::vector<std::int32_t> history;     // with a sampler that has penalties: tokens up to and with
                                         // this step's, newest last; those it looks back at suffice
  bool capture = false;                  // the step's capture names are taken for these rows
};

struct Step {
  std::vector<SequenceStep> sequences;
  std::vector<std::string>
      capture;  // resolved names (no globs): "blocks.3.resid_post", "logits", ...
  const CancelFlag* cancel = nullptr;
  // Called by runners that take long steps: so many more of its rows have run.
  std::function<void(std::int64_t n_rows)> progress{};
};

// A captured array: row-major, rows are the sequence's rows of this step.
struct Captured {
  std::string name;
  std::int64_t n_rows = 0;
  std::int64_t n_cols = 0;
  std::vector<float> values;      // float taps, (n_rows, n_cols)
  std::vector<std::int32_t> ids;  // integer taps (router.experts), (n_rows, n_cols)
};

struct SequenceResult {
  std::vector<float> logits;          // (1, vocab) for kLast, (n, vocab) for kAll
  std::vector<TargetResult> targets;  // as asked
  std::optional<Sampled> sampled;
  std::vector<Captured> captures;
};

struct StepResult {
  std::vector<SequenceResult> sequences;  // as in the step
};

// What a runner may do for a sequence beyond a step's own rows: feed each sampled token back by
// itself, until it is one of stop_tokens or max_tokens were sampled (the step's own included).
struct Ahead {
  std::int64_t max_tokens = 1;
  std::span<const std::int32_t> stop_tokens;
};

// Takes what a run ahead gives, as it comes, on the thread that called it.
class AheadSink {
 public:
  virtual ~AheadSink() = default;
  // The next token of a sequence of the step. False: enough, of all sequences. It may close or
  // truncate this sequence when the token is its last one by `Ahead`.
  virtual bool take(std::size_t sequence, SequenceResult result) = 0;
};

// What loading took and what the model needs; for plans, inspect and OutOfMemoryError.
struct MemoryNeed {
  std::uint64_t weights_bytes = 0;  // mapped from the file
  std::uint64_t derived_bytes = 0;  // weights made at load
  std::uint64_t kv_bytes = 0;       // the whole pool, touched only when used
  std::uint64_t scratch_bytes = 0;
  std::uint64_t total() const { return weights_bytes + derived_bytes + kv_bytes + scratch_bytes; }
};

class Runner {
 public:
  virtual ~Runner() = default;
  virtual const Config& config() const = 0;
  virtual MemoryNeed memory() const = 0;
  virtual std::int64_t n_ctx() const = 0;           // positions of one sequence
  virtual std::int64_t kv_tokens() const = 0;       // of the pool
  virtual std::int64_t kv_tokens_free() const = 0;  // in whole pages
  virtual std::int64_t page_tokens() const = 0;
  virtual std::int64_t max_step_rows() const = 0;

  // Sequences. Not thread-safe: one caller (the engine's thread).
  virtual SequenceId open() = 0;
  virtual void close(SequenceId sequence) = 0;
  virtual std::int64_t length(SequenceId sequence) const = 0;  // cached rows
  virtual void truncate(SequenceId sequence, std::int64_t n_tokens) = 0;
  virtual SequenceId fork(SequenceId sequence, std::int64_t n_tokens) = 0;  // shares whole pages
  // Pages that `n_rows` more rows of this sequence would take from the pool.
  virtual std::int64_t pages_needed(SequenceId sequence, std::int64_t start,
                                    std::int64_t n_rows) const = 0;
  virtual std::uint64_t kv_token_bytes() const = 0;  // that save() gives for each cached row
  // The cache of a sequence as bytes in canonical order (layer, token), and back. Digest and tokens
  // are the engine's.
  virtual std::vector<std::uint8_t> save(SequenceId sequence, const CancelFlag* cancel) = 0;
  virtual SequenceId load(std::span<const std::uint8_t> bytes, std::span<const std::int32_t> tokens,
                          const CancelFlag* cancel) = 0;
  // Names a model of this configuration and numerics: sessions are refused across different ones.
  virtual std::string identity() const = 0;
  // Every capture name, in order of the forward pass.
  virtual std::vector<std::string> capture_names() const = 0;

  virtual StepResult run(const Step& step) = 0;

  // Runners whose layers lie elsewhere save the way back to the caller between two tokens when the
  // caller leaves them several: a step of one row for each sequence, each with a sampler, without
  // captures, goes on as `ahead` (one per sequence) says until all have ended or the sink has
  // enough. Cached rows past the last token taken may be left behind: start is authoritative.
  virtual bool runs_ahead() const { return false; }
  virtual void run_ahead(const Step& step, std::span<const Ahead> ahead, AheadSink& sink) {
    (void)step, (void)ahead, (void)sink;
    fail<InternalError>("[run_ahead] this runner does not");
  }
};

}  // namespace moesaic::model
