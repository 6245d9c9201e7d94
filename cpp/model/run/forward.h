// The forward pass of a slice of a model: rows come in as tokens or hidden states, run through the
// slice's layers, and go out as hidden states or logits. One machine runs the whole model as one
// slice; a cluster's worker runs its own. Knows no sequences beyond their cache pages.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/layers/layers.h"
#include "model/layers/scratch.h"
#include "model/layers/taps.h"
#include "model/run/exchange.h"
#include "model/run/weights.h"

namespace moesaic::model {

// Receives logits row by row; the memory may be changed and is lent for the call.
class LogitsSink {
 public:
  virtual ~LogitsSink() = default;
  // row: of the step. logits (vocab).
  virtual void take(std::int64_t row, std::span<float> logits) = 0;
};

struct ForwardInput {
  std::span<const std::int32_t> tokens;  // (n), when the slice embeds
  std::span<const float> hidden;         // (n, d_model), when it does not
  std::span<const backend::SequenceRows> sequences;
  const CancelFlag* cancel = nullptr;
  // Called between two pieces of work (layers, pieces of them, pieces of the head), while the
  // backend is idle: the caller may lend it to another forward pass until this returns.
  std::function<void()> between_pieces{};
  // Asked before each piece of a layer: the most rows of it, at least 1. A layer's pieces follow
  // each other, and give the same bits as all its rows at once. Empty: always all rows.
  std::function<std::int64_t()> piece_rows{};
};

struct ForwardOutput {
  std::span<const std::int32_t>
      logits_rows;               // ascending rows of the step, when the slice has the head
  LogitsSink* logits = nullptr;  // with logits_rows
  std::span<float> hidden;       // (n, d_model): taken when not empty
  Captures* captures = nullptr;
};

struct ForwardOptions {
  std::int64_t max_rows = 512;  // of a step
  std::int64_t n_ctx = 0;       // positions of a sequence
  bool deterministic = false;   // absorbed MLA for any number of rows, exact attention
};

class Forward {
 public:
  // All references must outlive the Forward. kv has the slice's layers.
  Forward(backend::Backend& backend, const Config& config, const Slice& slice,
          const ModelWeights& weights, backend::KvStore& kv, Exchange& exchange,
          const ForwardOptions& options);

  void run(const ForwardInput& input, const ForwardOutput& output);

 private:
  bool takes_decompressed(const backend::SequenceRows& rows) const;
  std::int64_t set_rows(const ForwardInput& input);
  StepRows piece(std::int64_t begin, std::int64_t end);
  void enter(const ForwardInput& input, std::int64_t n);
  void run_layers(const ForwardInput& input, Captures* captures, std::int64_t n);
  void run_piece(const LayerContext& context, std::int64_t layer, std::int64_t begin);
  void pause(const ForwardInput& input);
  void leave(const ForwardInput& input, const ForwardOutput& output, std::int64_t n);
  void make_logits(const ForwardInput& input, const ForwardOutput& output);

  backend::Backend& backend_;
  const Config& config_;
  Slice slice_;
  const ModelWeights& weights_;
  backend::KvStore& kv_;
  Exchange& exchange_;
  ForwardOptions options_;
  Scratch scratch_;
  // Of the running step; kept for their memory.
  std::vector<std::int32_t> positions_;
  std::vector<char> decompressed_;  // by sequence: all its pieces take the same form of MLA
  std::span<const backend::SequenceRows> whole_;
  // Of the running piece.
  std::vector<backend::SequenceRows> cut_;
  std::vector<backend::SequenceRows> shifted_;
  std::vector<MlaRun> runs_;
  std::vector<float> logits_;
};

// What the backend needs to know for its own scratch.
backend::Backend::ScratchSpec backend_scratch(const Config& config, const Slice& slice,
                                              const ForwardOptions& options);

}  // namespace moesaic::model
