// From a row of logits to a token. Randomness is a counter-based generator keyed by (seed,
// position, token id), so that a replayed token is the same token, on any machine and thread count.
#pragma once

#include <cstdint>
#include <span>

#include "model/runner.h"

namespace moesaic::model {

// Throws ArgumentError naming the field, what it got and its range.
void validate(const SamplerSpec& spec, std::int64_t vocab);

// logits (vocab) is changed in place (penalties, bias). position: of the sampled token in its
// sequence. history: the tokens before it, newest last (penalties look back penalty_last_n of
// them).
Sampled sample(std::span<float> logits, const SamplerSpec& spec, std::int64_t position,
               std::span<const std::int32_t> history);

// The last of `tokens` (newest last) that the penalties look back at; none when there are none.
std::span<const std::int32_t> looked_back(const SamplerSpec& spec,
                                          std::span<const std::int32_t> tokens);

// log p(token) and whether it is the argmax (lowest id among equals).
TargetResult score_target(std::span<const float> logits, std::int32_t token);

}  // namespace moesaic::model
