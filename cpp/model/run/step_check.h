// What every Runner asks of a step before it runs: the same checks and words wherever layers lie.
#pragma once

#include <functional>

#include "model/runner.h"

namespace moesaic::model {

struct StepLimits {
  std::int64_t vocab = 0;
  std::int64_t n_ctx = 0;
  std::int64_t max_rows = 0;
  std::function<std::int64_t(SequenceId)> length;  // cached rows; throws for one that is not open
};

// Throws ArgumentError naming what it got and what it needs: positions, tokens, targets, samplers,
// rows in all, each sequence once.
void check_step(const Step& step, const StepLimits& limits);
StepLimits limits_of(const Runner& runner);

}  // namespace moesaic::model
