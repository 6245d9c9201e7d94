// See checked_encode.h.
#include "quant/checked_encode.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "quant/fit.h"

namespace moesaic::quant {
namespace {

// No block holds more: the largest f16, a 7-bit scale, the largest level. The search for scales
// squares its numbers, so what is larger never comes to it. (MXFP4's scale is a power of two of
// F32's range.)
constexpr float kMostInAnyBlock = 65504.0F * 128.0F * 128.0F;

// Levels of a type's codes: 16 of Q4_0, 256 of Q8_0.
float n_levels(const QtypeTraits& type) {
  return static_cast<float>(1 << (8 * type.block_bytes / type.block_elems));
}

// The first element of a block that is off by more than a step, or kAllHeld.
std::int64_t first_cut_off(const QtypeTraits& type, const float* in, float peak,
                           const std::uint8_t* block) {
  std::array<float, kSuperElems> stored{};
  type.decode(block, 1, stored.data());
  const float step = 2 * peak / n_levels(type) * 1.01F;
  for (int i = 0; i < type.block_elems; ++i) {
    if (!(std::abs(stored[static_cast<std::size_t>(i)] - in[i]) <= step)) return i;
  }
  return kAllHeld;
}

std::int64_t encode_numbers(const QtypeTraits& type, const float* in, std::int64_t n,
                            std::uint8_t* out) {
  type.encode(in, n, out);
  for (std::int64_t i = 0; i < n; ++i) {
    float stored = 0;
    type.decode(out + i * type.block_bytes, 1, &stored);
    if (std::isinf(stored) && !std::isinf(in[i])) return i;
  }
  return kAllHeld;
}

}  // namespace

std::int64_t encode_checked(const QtypeTraits& type, const float* in, std::int64_t n_blocks,
                            std::uint8_t* blocks) {
  if (type.block_elems == 1) return encode_numbers(type, in, n_blocks, blocks);
  const float most = type.type == Qtype::kMXFP4 ? INFINITY : kMostInAnyBlock;
  for (std::int64_t b = 0; b < n_blocks; ++b) {
    const std::int64_t at = b * type.block_elems;
    std::uint8_t* block = blocks + b * type.block_bytes;
    float peak = 0;
    for (std::int64_t i = at; i < at + type.block_elems; ++i) {
      if (!std::isfinite(in[i]) || std::abs(in[i]) > most) return i;
      peak = std::max(peak, std::abs(in[i]));
    }
    forget_cut_off_scales();
    type.encode(in + at, 1, block);
    if (!a_scale_was_cut_off()) continue;
    const std::int64_t cut = first_cut_off(type, in + at, peak, block);
    if (cut != kAllHeld) return at + cut;
  }
  return kAllHeld;
}

}  // namespace moesaic::quant
