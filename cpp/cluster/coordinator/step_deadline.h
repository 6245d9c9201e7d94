// How long a stage may compute without a layer of it coming to its end, before it counts as stuck:
// ten times what the plan's model of time says. Not for workers that are silent: links see to that.
#pragma once

#include <chrono>
#include <cstdint>
#include <span>

#include "cluster/plan/plan.h"

namespace moesaic::cluster {

// nodes: what they reach; a rate of 0 is not measured, and taken for low.
std::chrono::milliseconds step_deadline(const ModelCost& model, std::span<const NodeFacts> nodes,
                                        std::int64_t micro_batch_rows, std::int64_t n_ctx);

}  // namespace moesaic::cluster
