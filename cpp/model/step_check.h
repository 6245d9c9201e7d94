// What every Runner asks of a step before it runs: the same checks and words wherever layers lie.
#pragma once

#include "model/runner.h"

namespace moesaic::model {

// Throws ArgumentError naming what it got and what it needs: positions, tokens, targets, samplers,
// rows in all, each sequence once.
void check_step(const Step& step, const Config& config, const Runner& runner);

}  // namespace moesaic::model
