// What becomes of a step's logits: each row goes to the sequence that owns it, which keeps, scores
// or samples it. Not for making logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/layers/taps.h"
#include "model/run/forward.h"
#include "model/runner.h"

namespace moesaic::model {

// Appends the rows of `step` whose logits something needs, ascending.
void list_logits_rows(const Step& step, std::vector<std::int32_t>& rows);

class StepResults final : public LogitsSink {
 public:
  // captures may be null; it must be the one the forward pass fills.
  StepResults(const Step& step, std::int64_t vocab, Captures* captures);

  void take(std::int64_t row, std::span<float> logits) override;
  StepResult finish();

 private:
  const Step& step_;
  std::size_t vocab_;
  Captures* captures_;
  StepResult result_;
  std::size_t current_ = 0;         // the sequence of the last row
  std::int64_t current_begin_ = 0;  // its first row
};

}  // namespace moesaic::model
