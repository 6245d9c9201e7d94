// Puts a step's result together from what the stages send of its micro-batches, checking every
// number against what was asked. Not for sending.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "cluster/step/micro_batches.h"
#include "model/config.h"
#include "model/runner.h"
#include "wire/messages.h"

namespace moesaic::cluster {

class StepAssembly {
 public:
  // step and batches must outlive it. first_id: the wire's step number of the first micro-batch.
  StepAssembly(const model::Step& step, const std::vector<MicroBatch>& batches,
               const model::Config& config, std::uint64_t first_id);

  bool owns(std::uint64_t wire_step) const {
    return wire_step >= first_id_ && wire_step < first_id_ + batches_.size();
  }
  // Throw ProtocolError for what was not asked.
  void take(const wire::Result& result, std::span<const std::uint8_t> payload);
  void take(const wire::Capture& capture, std::span<const std::uint8_t> payload);
  std::size_t n_batches_done() const { return n_done_; }
  bool complete() const;
  model::StepResult finish() { return std::move(result_); }

 private:
  struct Logits {  // of one piece: rows wanted, rows here
    std::size_t first = 0;
    std::size_t wanted = 0;
    std::size_t got = 0;
  };
  const Piece& piece(std::uint64_t wire_step, std::size_t i) const;
  std::int64_t most_columns(const std::string& name) const;

  const model::Step& step_;
  const std::vector<MicroBatch>& batches_;
  const model::Config& config_;
  const std::uint64_t first_id_;
  model::StepResult result_;
  std::vector<std::vector<Logits>> logits_;  // by batch and piece
  std::vector<bool> done_;                   // by batch
  std::size_t n_done_ = 0;
  std::int64_t captured_rows_missing_ = 0;
  std::map<std::string, std::size_t> capture_index_;
};

// What a sequence's request and its answer take of a frame beside rows, at most, in bytes.
// n_ahead: tokens that the ring may generate by itself. Throws ArgumentError, naming the option,
// when they are more than `most`.
std::size_t field_bytes(const model::SequenceStep& sequence, std::int64_t n_ahead,
                        std::size_t n_stop_tokens, std::size_t most);
// What all sequences of a micro-batch may take together.
std::size_t most_field_bytes(const model::Step& step);

// A step's part that a micro-batch carries, for the wire. The payload is not in it.
wire::Run to_run(const model::Step& step, const MicroBatch& batch, std::uint64_t wire_step);

}  // namespace moesaic::cluster
