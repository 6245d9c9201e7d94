// The steps of a deployment: micro-batches through its stage, results and captures to the
// coordinator, decoding ahead round the ring, rows of saved sessions. See deployment.h.
#include <algorithm>
#include <limits>
#include <utility>

#include "base/failpoint.h"
#include "cluster/step/step_messages.h"
#include "cluster/worker/deployment.h"

namespace moesaic::cluster {

using failpoint::Site;

namespace {

// Rows of a layer between two turns while others wait: enough for the weights' sake (as many as
// micro_batches.cpp gives a short step).
constexpr std::int64_t kSharedRows = 128;

}  // namespace

void Deployment::run(wire::Run run, std::span<const std::uint8_t> payload) {
  CancelFlag flag;
  {
    const std::scoped_lock lock(mutex_);
    if (run.step <= cancelled_through_) {
      forget(run.step);
      return;
    }
    running_step_ = run.step;
    running_flag_ = &flag;
    if (stopping_) flag.set();
  }
  struct Forget {  // before the flag goes
    Deployment& deployment;
    ~Forget() {
      const std::scoped_lock lock(deployment.mutex_);
      deployment.running_flag_ = nullptr;
      deployment.step_now_ = 0;
    }
  };
  StageOutput output;
  try {
    const Forget forget{*this};
    step_now_ = run.step;
    failpoint::pass(Site::kRunBegin);
    if (is_last() && run.index > 0) restore_sampling(run);
    const InPhase computing(*this, Phase::kComputing);
    Turn turn(host_.turns(), &flag, [this] {
      phase_ = Phase::kWaiting;
      seat_.leave();  // it may take a while, and pings are to be answered
    });
    phase_ = Phase::kComputing;
    output = stage_->run(run, payload, &flag,
                         {.between_pieces =
                              [&] {
                                ++units_done_;
                                turn.yield();
                                phase_ = Phase::kComputing;
                              },
                          .piece_rows =
                              [&] {
                                return host_.turns().is_shared()
                                           ? kSharedRows
                                           : std::numeric_limits<std::int64_t>::max();
                              }});
    // By path and time of change, which finds writes that put the time of modification back.
    stage_->held().check_files();
    failpoint::pass(Site::kRunEnd);
  } catch (const CancelledError&) {
    forget(run.step);
    return;
  } catch (...) {
    forget(run.step);
    if (!is_of_request(std::current_exception())) throw;
    tell_coordinator(error_reply(run.step, std::current_exception()));
    return;
  }
  ++steps_done_;
  std::uint64_t cancelled = 0;
  {
    const std::scoped_lock lock(mutex_);
    cancelled = cancelled_through_;
  }
  const auto is_cancelled = [cancelled](const auto& each) { return each.first <= cancelled; };
  std::erase_if(ahead_, is_cancelled);
  std::erase_if(sampling_, is_cancelled);
  if (is_first() && run.index == 0 &&
      std::any_of(run.sequences.begin(), run.sequences.end(),
                  [](const auto& sequence) { return sequence.decode_ahead > 0; })) {
    wire::Run& kept = ahead_[run.step];
    kept.step = run.step;
    for (const wire::RunSequence& sequence : run.sequences) {
      if (sequence.decode_ahead > 0 && !sequence.sampler) {
        fail<ProtocolError>("[run] decode_ahead: sequence ", sequence.sequence, " has no sampler");
      }
      wire::RunSequence& place = kept.sequences.emplace_back();
      place.sequence = sequence.sequence;
      place.start = sequence.start;
      place.n_rows = sequence.n_rows;
      place.decode_ahead = sequence.decode_ahead;
    }
  }
  for (const wire::RunSequence& sequence : run.sequences) rows_done_ += sequence.n_rows;
  if (is_last()) {
    finish_run(run, output.results);
  } else {
    pass_on(run, pack_hidden(output.hidden, load_.hidden));
  }
  send_captures(run, output.results);
}

void Deployment::forget(std::uint64_t step) {
  ahead_.erase(step);
  sampling_.erase(step);
}

void Deployment::keep_sampling(wire::Run& run, const std::vector<std::int32_t>& tokens) {
  wire::Run next;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0) continue;
    wire::RunSequence& from = run.sequences[i];
    wire::RunSequence& kept = next.sequences.emplace_back();
    kept.sequence = from.sequence;
    kept.sampler = std::move(from.sampler);
    kept.stop_tokens = std::move(from.stop_tokens);
    kept.history = std::move(from.history);
    kept.history.push_back(tokens[i]);
    keep_looked_back(from_wire(*kept.sampler), kept.history);
  }
  next.index = run.index + 1;
  sampling_[run.step] = std::move(next);
}

void Deployment::restore_sampling(wire::Run& run) {
  auto kept = sampling_.extract(run.step);
  const auto is_same = [](const wire::RunSequence& a, const wire::RunSequence& b) {
    return a.sequence == b.sequence;
  };
  if (!kept || kept.mapped().index != run.index ||
      !std::equal(run.sequences.begin(), run.sequences.end(), kept.mapped().sequences.begin(),
                  kept.mapped().sequences.end(), is_same)) {
    fail<ProtocolError>("[run] index: got ", run.index, " of step ", run.step, " with ",
                        run.sequences.size(),
                        " sequences, which do not follow from the pass before");
  }
  for (std::size_t i = 0; i < run.sequences.size(); ++i) {
    wire::RunSequence& from = kept.mapped().sequences[i];
    run.sequences[i].sampler = std::move(from.sampler);
    run.sequences[i].stop_tokens = std::move(from.stop_tokens);
    run.sequences[i].history = std::move(from.history);
  }
}

// Tokens go to the first stage before anything else: the next step waits for them.
void Deployment::finish_run(wire::Run& run, const std::vector<model::SequenceResult>& results) {
  failpoint::pass(Site::kFinishRun);
  std::vector<bool> alive(results.size(), false);
  wire::Tokens next{run.step, run.index + 1, {}};
  for (std::size_t i = 0; i < results.size(); ++i) {
    const wire::RunSequence& sequence = run.sequences[i];
    const auto& stops = sequence.stop_tokens;
    const auto& sampled = results[i].sampled;
    alive[i] = sampled && sequence.decode_ahead > 0 &&
               std::find(stops.begin(), stops.end(), sampled->token) == stops.end();
    next.tokens.push_back(alive[i] ? sampled->token : -1);
  }
  const bool goes_on = std::find(alive.begin(), alive.end(), true) != alive.end();
  if (goes_on && !is_first()) pass_on(next);
  if (goes_on) keep_sampling(run, next.tokens);
  send_result(run, results, alive);
  if (goes_on && is_first()) {
    net::Incoming task;
    task.message = std::move(next);
    put(std::move(task));
  }
}

void Deployment::send_result(const wire::Run& run,
                             const std::vector<model::SequenceResult>& results,
                             const std::vector<bool>& alive) {
  failpoint::pass(Site::kSendResult);
  wire::Result message;
  message.step = run.step;
  message.index = run.index;
  message.last = false;
  message.sequences.resize(results.size());
  std::vector<std::uint8_t> payload;
  const auto flush = [&] {
    tell_coordinator(message, std::move(payload));
    payload.clear();
    for (wire::ResultSequence& sequence : message.sequences) {
      sequence.logits_row += sequence.n_logits_rows;
      sequence.n_logits_rows = 0;
    }
  };
  const auto vocab = static_cast<std::size_t>(stage_->held().model.config.vocab);
  const std::size_t row_bytes = vocab * sizeof(float);
  for (std::size_t i = 0; i < results.size(); ++i) {
    const std::span<const float> logits(results[i].logits);
    for (std::size_t row = 0; row * vocab < logits.size(); ++row) {
      if (!payload.empty() && payload.size() + row_bytes > payload_limit_) flush();
      const std::vector<std::uint8_t> bytes = pack(logits.subspan(row * vocab, vocab));
      payload.insert(payload.end(), bytes.begin(), bytes.end());
      ++message.sequences[i].n_logits_rows;
    }
  }
  for (std::size_t i = 0; i < results.size(); ++i) {
    wire::ResultSequence& sequence = message.sequences[i];
    for (const model::TargetResult& target : results[i].targets) {
      sequence.targets.push_back({target.logprob, target.is_greedy});
    }
    if (results[i].sampled) sequence.sampled = to_wire(*results[i].sampled);
    sequence.alive = alive[i];
  }
  message.last = true;
  tell_coordinator(message, std::move(payload));
}

void Deployment::send_captures(const wire::Run& run,
                               const std::vector<model::SequenceResult>& results) {
  failpoint::pass(Site::kSendCaptures);
  for (std::size_t i = 0; i < results.size(); ++i) {
    for (const model::Captured& captured : results[i].captures) {
      const std::int64_t n_cols = captured.n_cols;
      const std::int64_t rows_at_once =
          std::max<std::int64_t>(1, payload_limit_ / (4 * std::max<std::int64_t>(n_cols, 1)));
      for (std::int64_t row = 0; row < captured.n_rows; row += rows_at_once) {
        const std::int64_t n = std::min(rows_at_once, captured.n_rows - row);
        wire::Capture message;
        message.step = run.step;
        message.index = run.index;
        message.sequence = static_cast<std::uint32_t>(i);
        message.name = captured.name;
        message.row = static_cast<std::uint32_t>(row);
        message.n_rows = static_cast<std::uint32_t>(n);
        message.n_cols = static_cast<std::uint32_t>(n_cols);
        message.ids = !captured.ids.empty();
        const auto from = static_cast<std::size_t>(row * n_cols);
        const auto count = static_cast<std::size_t>(n * n_cols);
        tell_coordinator(message, message.ids
                                      ? pack(std::span(captured.ids).subspan(from, count))
                                      : pack(std::span(captured.values).subspan(from, count)));
      }
    }
  }
}

// At the first stage: the sampled tokens come round, and each is the next row of its sequence. What
// they are sampled with stays where it is used, at the last stage.
void Deployment::run_ahead(const wire::Tokens& tokens) {
  failpoint::pass(Site::kRunAhead);
  const auto found = ahead_.find(tokens.step);
  if (found == ahead_.end()) return;  // cancelled meanwhile
  wire::Run& before = found->second;
  if (tokens.tokens.size() != before.sequences.size() || tokens.index != before.index + 1) {
    fail<ProtocolError>("[cluster] Tokens: got ", tokens.tokens.size(), " at index ", tokens.index,
                        ", need ", before.sequences.size(), " at index ", before.index + 1);
  }
  wire::Run next;
  next.step = before.step;
  next.index = tokens.index;
  std::vector<std::int32_t> rows;
  bool goes_on = false;
  for (std::size_t i = 0; i < tokens.tokens.size(); ++i) {
    if (tokens.tokens[i] < 0) continue;
    wire::RunSequence sequence = std::move(before.sequences[i]);
    sequence.start += sequence.n_rows;
    sequence.n_rows = 1;
    if (sequence.decode_ahead == 0) {
      fail<ProtocolError>("[cluster] Tokens: sequence ", sequence.sequence, " has ended");
    }
    --sequence.decode_ahead;
    goes_on = goes_on || sequence.decode_ahead > 0;
    rows.push_back(tokens.tokens[i]);
    next.sequences.push_back(std::move(sequence));
  }
  if (rows.empty()) fail<ProtocolError>("[cluster] Tokens: all sequences have ended");
  if (goes_on) {
    before = next;
  } else {
    ahead_.erase(found);
  }
  run(std::move(next), pack(std::span<const std::int32_t>(rows)));
}

void Deployment::read_rows(const wire::KvOp& op) {
  const model::Slice& slice = stage_->held().key.slice;
  const auto at_once =
      std::max<std::int64_t>(1, payload_limit_ / static_cast<std::int64_t>(stage_->kv_row_bytes()));
  for (std::int64_t layer = slice.layer_begin; layer < slice.layer_end; ++layer) {
    for (std::int64_t begin = 0; begin < op.n_tokens; begin += at_once) {
      const std::int64_t end = std::min(op.n_tokens, begin + at_once);
      wire::KvRows rows;
      rows.request = op.request;
      rows.sequence = op.sequence;
      rows.layer = static_cast<std::uint32_t>(layer);
      rows.token_begin = begin;
      rows.token_end = end;
      std::vector<std::uint8_t> bytes;
      const bool is_read = answering(op.request, [&] {
        failpoint::pass(Site::kReadRows);
        bytes = stage_->read(op.sequence, layer, begin, end);
      });
      if (!is_read) return;
      tell_coordinator(rows, std::move(bytes));
    }
  }
}

}  // namespace moesaic::cluster
