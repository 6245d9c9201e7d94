// A stage of a pipeline: the layers of one worker for one deployment, with their KV cache. Runs
// micro-batches as the wire describes them, checking everything a peer said against what the
// deployment implies. No sockets and no threads of its own. Not thread-safe.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "cluster/weights/held_slices.h"
#include "model/run/forward.h"
#include "model/run/memory.h"
#include "model/runner.h"
#include "model/state/kv_cache.h"
#include "wire/messages.h"

namespace moesaic::cluster {

struct StageOptions {
  model::LoadOptions load;  // max_step_rows: of a micro-batch
  wire::HiddenType hidden = wire::HiddenType::kF32;
};

// How a stage gives way to others at its machine; see model::ForwardInput.
struct StageSharing {
  std::function<void()> between_pieces{};
  std::function<std::int64_t()> piece_rows{};
};

struct StageOutput {
  std::vector<float> hidden;                   // (n, d_model); empty at the last stage
  std::vector<model::SequenceResult> results;  // as the Run's sequences; captures at every stage
};

class Stage {
 public:
  // Allocates the KV cache and scratch; pages are touched when used.
  Stage(std::shared_ptr<HeldSlice> held, const StageOptions& options);

  const HeldSlice& held() const { return *held_; }
  const model::MemoryNeed& memory() const { return memory_; }
  std::int64_t n_sequences() const { return static_cast<std::int64_t>(sequences_.size()); }

  // payload: int32 tokens (n) at the first stage, hidden rows (n, d_model) at the others. Unknown
  // sequences that begin at 0 are opened. Throws ArgumentError or ProtocolError for what the
  // deployment does not allow, OutOfMemoryError, CancelledError.
  StageOutput run(const wire::Run& run, std::span<const std::uint8_t> payload,
                  const CancelFlag* cancel, const StageSharing& sharing = {});

  void apply(const wire::KvOp& op);  // all kinds but kRead
  // Cached rows [begin, end) of one of this stage's layers as stored.
  std::vector<std::uint8_t> read(std::uint64_t sequence, std::int64_t layer, std::int64_t begin,
                                 std::int64_t end);
  std::size_t kv_row_bytes() const { return kv_->row_bytes(); }
  // Rows of a saved session, layer by layer; the sequence is opened with the first. Sizes are
  // checked against the cache's.
  void restore(const wire::KvRows& rows, std::span<const std::uint8_t> payload);

 private:
  model::SequenceId known(std::uint64_t sequence) const;  // throws ArgumentError
  // A sequence that the coordinator will call so; throws ArgumentError when there are too many.
  void add(std::uint64_t sequence, const std::function<model::SequenceId()>& make);
  model::Step to_step(const wire::Run& run, std::span<const std::uint8_t> payload,
                      std::vector<model::SamplerSpec>& samplers);

  std::shared_ptr<HeldSlice> held_;
  StageOptions options_;
  model::MemoryNeed memory_;
  std::unique_ptr<model::KvCache> kv_;
  model::NoExchange exchange_;
  std::unique_ptr<model::Forward> forward_;
  std::unordered_map<std::uint64_t, model::SequenceId> sequences_;  // the coordinator's ids
  // Of the running micro-batch; kept for their memory.
  std::vector<float> hidden_in_;  // (n, d_model)
  std::vector<std::int32_t> tokens_;
};

}  // namespace moesaic::cluster
