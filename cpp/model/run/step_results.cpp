// Logits rows to results; see step_results.h.
#include "model/run/step_results.h"

#include <algorithm>

#include "model/run/sampler.h"

namespace moesaic::model {
namespace {

bool captures_logits(const Step& step) {
  return std::find(step.capture.begin(), step.capture.end(), "logits") != step.capture.end();
}

bool wants_row(const SequenceStep& sequence, std::int64_t row, bool captured) {
  const auto last = static_cast<std::int64_t>(sequence.tokens.size()) - 1;
  if (sequence.logits == Logits::kAll || (sequence.capture && captured)) return true;
  if (row == last && (sequence.logits == Logits::kLast || sequence.sampler != nullptr)) return true;
  return std::any_of(sequence.targets.begin(), sequence.targets.end(),
                     [&](const Target& target) { return target.row == row; });
}

}  // namespace

void list_logits_rows(const Step& step, std::vector<std::int32_t>& rows) {
  const bool captured = captures_logits(step);
  std::int64_t begin = 0;
  for (const SequenceStep& sequence : step.sequences) {
    const auto n = static_cast<std::int64_t>(sequence.tokens.size());
    for (std::int64_t r = 0; r < n; ++r) {
      if (wants_row(sequence, r, captured)) rows.push_back(static_cast<std::int32_t>(begin + r));
    }
    begin += n;
  }
}

StepResults::StepResults(const Step& step, std::int64_t vocab, Captures* captures)
    : step_(step), vocab_(static_cast<std::size_t>(vocab)), captures_(captures) {
  result_.sequences.resize(step.sequences.size());
  for (std::size_t i = 0; i < step.sequences.size(); ++i) {
    const SequenceStep& sequence = step.sequences[i];
    SequenceResult& result = result_.sequences[i];
    result.targets.resize(sequence.targets.size());
    if (sequence.logits == Logits::kLast) result.logits.resize(vocab_);
    if (sequence.logits == Logits::kAll) result.logits.resize(sequence.tokens.size() * vocab_);
  }
}

void StepResults::take(std::int64_t row, std::span<float> logits) {
  while (row >=
         current_begin_ + static_cast<std::int64_t>(step_.sequences[current_].tokens.size())) {
    current_begin_ += static_cast<std::int64_t>(step_.sequences[current_].tokens.size());
    ++current_;
  }
  const SequenceStep& sequence = step_.sequences[current_];
  SequenceResult& result = result_.sequences[current_];
  const std::int64_t own = row - current_begin_;
  const bool is_last = own + 1 == static_cast<std::int64_t>(sequence.tokens.size());

  if (sequence.logits == Logits::kAll) {
    std::copy(logits.begin(), logits.end(),
              result.logits.begin() + own * static_cast<std::int64_t>(vocab_));
  } else if (sequence.logits == Logits::kLast && is_last) {
    std::copy(logits.begin(), logits.end(), result.logits.begin());
  }
  if (captures_ != nullptr && captures_->wants(Tap::kLogits)) {
    captures_->take_row(Tap::kLogits, row, logits);
  }
  for (std::size_t i = 0; i < sequence.targets.size(); ++i) {
    if (sequence.targets[i].row != own) continue;
    result.targets[i] = score_target(logits, sequence.targets[i].token);
  }
  if (is_last && sequence.sampler != nullptr) {
    const std::int64_t position =
        sequence.start + static_cast<std::int64_t>(sequence.tokens.size());
    result.sampled =
        sample(logits, *sequence.sampler, position, sequence.history);  // changes the logits
  }
}

StepResult StepResults::finish() {
  if (captures_ != nullptr) {
    std::size_t which = 0;
    for (std::size_t i = 0; i < step_.sequences.size(); ++i) {
      if (step_.sequences[i].capture) result_.sequences[i].captures = captures_->of(which++);
    }
  }
  return std::move(result_);
}

}  // namespace moesaic::model
