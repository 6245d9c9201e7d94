// See step_assembly.h.
#include "cluster/coordinator/step_assembly.h"

#include <algorithm>
#include <cstring>

#include "cluster/step/step_messages.h"

namespace moesaic::cluster {
namespace {

bool is_last_piece(const model::Step& step, const Piece& piece) {
  const auto n = static_cast<std::int64_t>(step.sequences[piece.sequence].tokens.size());
  return piece.offset + piece.n_rows == n;
}

// Numbers of fixed size of a sequence, its sampler and its result, generously.
constexpr std::size_t kFixedBytes = 256;

}  // namespace

std::size_t most_field_bytes(const model::Step& step) {
  std::size_t names = kFixedBytes;
  for (const std::string& name : step.capture) names += name.size() + sizeof(std::uint32_t);
  if (names > wire::kFieldsLimit / 2) {
    fail<ArgumentError>("[Cluster] capture: got ", step.capture.size(), " names of ", names,
                        " bytes together, at most ", wire::kFieldsLimit / 2,
                        " fit a frame; capture fewer at once");
  }
  return wire::kFieldsLimit - names;
}

std::size_t field_bytes(const model::SequenceStep& sequence, std::int64_t n_ahead,
                        std::size_t n_stop_tokens, std::size_t most) {
  struct Part {
    const char* name;
    std::size_t n_bytes;
  };
  std::vector<Part> parts{{"score targets", sequence.targets.size() * sizeof(wire::TargetValue)},
                          {"stop_tokens", n_stop_tokens * sizeof(std::int32_t)}};
  if (const model::SamplerSpec* const sampler = sequence.sampler; sampler != nullptr) {
    std::int64_t history = std::ssize(sequence.history) + n_ahead;
    if (sampler->penalty_last_n >= 0) {
      history = std::min<std::int64_t>(history, sampler->penalty_last_n);
    }
    constexpr std::size_t kPair = sizeof(std::int32_t) + sizeof(float);
    parts.push_back({"logit_bias", sampler->logit_bias.size() * kPair});
    parts.push_back({"penalty_last_n", static_cast<std::size_t>(history) * sizeof(std::int32_t)});
    parts.push_back(
        {"logprobs", static_cast<std::size_t>(std::max(sampler->n_logprobs, 0)) * kPair});
  }
  std::size_t sum = kFixedBytes;
  for (const Part& part : parts) sum += part.n_bytes;
  if (sum > most) {
    const Part& largest =
        *std::max_element(parts.begin(), parts.end(),
                          [](const Part& a, const Part& b) { return a.n_bytes < b.n_bytes; });
    fail<ArgumentError>("[Cluster] ", largest.name, ": got ", largest.n_bytes,
                        " bytes, which with the rest of the request are ", sum, ", at most ", most,
                        " fit a frame; give fewer");
  }
  return sum;
}

wire::Run to_run(const model::Step& step, const MicroBatch& batch, std::uint64_t wire_step) {
  wire::Run run;
  run.step = wire_step;
  run.capture = step.capture;
  for (const Piece& piece : batch) {
    const model::SequenceStep& from = step.sequences[piece.sequence];
    wire::RunSequence sequence;
    sequence.sequence = from.sequence;
    sequence.start = from.start + piece.offset;
    sequence.n_rows = static_cast<std::uint32_t>(piece.n_rows);
    const bool last = is_last_piece(step, piece);
    if (from.logits == model::Logits::kAll || (from.logits == model::Logits::kLast && last)) {
      sequence.logits = static_cast<std::uint8_t>(from.logits);
    }
    for (const model::Target& target : from.targets) {
      const std::int64_t row = target.row - piece.offset;
      if (row >= 0 && row < piece.n_rows) {
        sequence.targets.push_back({static_cast<std::int32_t>(row), target.token});
      }
    }
    if (from.sampler != nullptr && last) {
      sequence.sampler = to_wire(*from.sampler);
      sequence.history = from.history;
      keep_looked_back(*from.sampler, sequence.history);
    }
    sequence.capture = from.capture;
    run.sequences.push_back(std::move(sequence));
  }
  return run;
}

StepAssembly::StepAssembly(const model::Step& step, const std::vector<MicroBatch>& batches,
                           const model::Config& config, std::uint64_t first_id)
    : step_(step),
      batches_(batches),
      config_(config),
      first_id_(first_id),
      done_(batches.size(), false) {
  const auto vocab = static_cast<std::size_t>(config.vocab);
  result_.sequences.resize(step.sequences.size());
  for (std::size_t i = 0; i < step.capture.size(); ++i) capture_index_[step.capture[i]] = i;
  for (std::size_t i = 0; i < step.sequences.size(); ++i) {
    const model::SequenceStep& from = step.sequences[i];
    model::SequenceResult& to = result_.sequences[i];
    to.targets.resize(from.targets.size());
    const std::size_t rows = from.logits == model::Logits::kAll    ? from.tokens.size()
                             : from.logits == model::Logits::kLast ? 1
                                                                   : 0;
    to.logits.resize(rows * vocab);
    if (!from.capture) continue;
    to.captures.resize(step.capture.size());
    for (std::size_t k = 0; k < step.capture.size(); ++k) to.captures[k].name = step.capture[k];
    captured_rows_missing_ += static_cast<std::int64_t>(step.capture.size()) *
                              static_cast<std::int64_t>(from.tokens.size());
  }
  for (const MicroBatch& batch : batches) {
    std::vector<Logits> logits;
    for (const Piece& piece : batch) {
      const model::SequenceStep& from = step.sequences[piece.sequence];
      Logits want;
      if (from.logits == model::Logits::kAll) {
        want = {static_cast<std::size_t>(piece.offset), static_cast<std::size_t>(piece.n_rows), 0};
      } else if (from.logits == model::Logits::kLast && is_last_piece(step, piece)) {
        want = {0, 1, 0};
      }
      logits.push_back(want);
    }
    logits_.push_back(std::move(logits));
  }
}

bool StepAssembly::complete() const {
  return n_done_ == batches_.size() && captured_rows_missing_ == 0;
}

const Piece& StepAssembly::piece(std::uint64_t wire_step, std::size_t i) const {
  if (!owns(wire_step) || i >= batches_[wire_step - first_id_].size()) {
    fail<ProtocolError>("[cluster] got a result of step ", wire_step, ", sequence ", i,
                        ", which was not asked");
  }
  return batches_[wire_step - first_id_][i];
}

void StepAssembly::take(const wire::Result& result, std::span<const std::uint8_t> payload) {
  piece(result.step, 0);
  const std::size_t batch = result.step - first_id_;
  const MicroBatch& pieces = batches_[batch];
  if (done_[batch] || result.index != 0 || result.sequences.size() != pieces.size()) {
    fail<ProtocolError>("[cluster] Result: step ", result.step, ", index ", result.index, " of ",
                        result.sequences.size(), " sequences, need ", pieces.size(), " at index 0");
  }
  const std::size_t row_bytes = static_cast<std::size_t>(config_.vocab) * sizeof(float);
  std::size_t at = 0;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const wire::ResultSequence& from = result.sequences[i];
    model::SequenceResult& to = result_.sequences[pieces[i].sequence];
    Logits& logits = logits_[batch][i];
    const std::size_t n = from.n_logits_rows;
    if (from.logits_row != logits.got || n > logits.wanted - logits.got ||
        n * row_bytes > payload.size() - at) {
      fail<ProtocolError>("[cluster] Result: logits rows ", from.logits_row, " + ", n, " of ",
                          logits.wanted, ", in ", payload.size(), " bytes");
    }
    if (n > 0) {
      std::memcpy(reinterpret_cast<std::uint8_t*>(to.logits.data()) +
                      (logits.first + logits.got) * row_bytes,
                  payload.data() + at, n * row_bytes);
    }
    logits.got += n;
    at += n * row_bytes;
    if (!result.last) continue;
    const model::SequenceStep& asked = step_.sequences[pieces[i].sequence];
    std::size_t next = 0;
    for (std::size_t t = 0; t < asked.targets.size(); ++t) {
      const std::int64_t row = asked.targets[t].row - pieces[i].offset;
      if (row < 0 || row >= pieces[i].n_rows) continue;
      if (next == from.targets.size()) fail<ProtocolError>("[cluster] Result: targets are missing");
      to.targets[t] = {from.targets[next].logprob, from.targets[next].is_greedy};
      ++next;
    }
    const bool samples = asked.sampler != nullptr && is_last_piece(step_, pieces[i]);
    if (next != from.targets.size() || logits.got != logits.wanted ||
        from.sampled.has_value() != samples) {
      fail<ProtocolError>("[cluster] Result: step ", result.step, " gave not what was asked");
    }
    if (samples) {
      to.sampled = from_wire(*from.sampled);
      if (to.sampled->token < 0 || to.sampled->token >= config_.vocab) {
        fail<ProtocolError>("[cluster] Result: token ", to.sampled->token);
      }
    }
  }
  if (at != payload.size()) fail<ProtocolError>("[cluster] Result: bytes are left over");
  if (!result.last) return;
  done_[batch] = true;
  ++n_done_;
}

std::int64_t StepAssembly::most_columns(const std::string& name) const {
  if (name == "logits") return config_.vocab;
  return std::max({config_.d_model, config_.moe.n_experts, config_.moe.n_active});
}

void StepAssembly::take(const wire::Capture& capture, std::span<const std::uint8_t> payload) {
  const Piece& of = piece(capture.step, capture.sequence);
  model::SequenceResult& to = result_.sequences[of.sequence];
  const auto index = capture_index_.find(capture.name);
  const auto n = static_cast<std::size_t>(capture.n_rows) * capture.n_cols;
  if (index == capture_index_.end() || to.captures.empty() || capture.index != 0 ||
      capture.n_rows < 1 || capture.n_cols < 1 || capture.n_cols > most_columns(capture.name) ||
      capture.row + std::uint64_t{capture.n_rows} > static_cast<std::uint64_t>(of.n_rows) ||
      payload.size() != n * 4) {
    fail<ProtocolError>("[cluster] Capture: '", capture.name.substr(0, 60), "', rows ", capture.row,
                        " + ", capture.n_rows, " of ", capture.n_cols, ", was not asked");
  }
  model::Captured& captured = to.captures[index->second];
  const std::size_t n_rows = step_.sequences[of.sequence].tokens.size();
  if (captured.n_cols == 0) {
    captured.n_cols = capture.n_cols;
    captured.n_rows = static_cast<std::int64_t>(n_rows);
    (capture.ids ? captured.ids.resize(n_rows * capture.n_cols)
                 : captured.values.resize(n_rows * capture.n_cols));
  }
  if (captured.n_cols != capture.n_cols || captured.ids.empty() == capture.ids) {
    fail<ProtocolError>("[cluster] Capture: '", capture.name, "' changes its shape");
  }
  const std::size_t at = static_cast<std::size_t>(of.offset + capture.row) * capture.n_cols;
  void* const out = capture.ids ? static_cast<void*>(captured.ids.data() + at)
                                : static_cast<void*>(captured.values.data() + at);
  std::memcpy(out, payload.data(), payload.size());
  captured_rows_missing_ -= capture.n_rows;
}

}  // namespace moesaic::cluster
