// Encoding that notices what a type cannot hold: scales are f16, and a number above their range
// would silently become another. For callers' arrays; the encoders themselves cut off.
#pragma once

#include <cstdint>

#include "quant/qtype.h"

namespace moesaic::quant {

inline constexpr std::int64_t kAllHeld = -1;

// Encodes n_blocks blocks as `type` (which has an encoder). Returns kAllHeld, or the index of the
// first element that the type cannot hold: one that is not finite where the type has blocks, or one
// that is finite and would be cut off by more than a step of its block, or become infinite.
// What was written to `blocks` is then not to be used.
std::int64_t encode_checked(const QtypeTraits& type, const float* in, std::int64_t n_blocks,
                            std::uint8_t* blocks);

}  // namespace moesaic::quant
