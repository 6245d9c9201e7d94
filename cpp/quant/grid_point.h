// How a lattice point of an IQ type becomes floats. For the scalar decoders; kernels do it in
// registers.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// out[j] = (scale * byte j of point), negated where bit j of signs is set; one element per byte of
// Word.
template <typename Word>
inline void write_point(Word point, unsigned signs, float scale, float* out) {
  for (unsigned j = 0; j < sizeof(Word); ++j) {
    const float magnitude = scale * static_cast<float>((point >> (8 * j)) & 255U);
    out[j] = magnitude * static_cast<float>(1 - 2 * static_cast<int>((signs >> j) & 1U));
  }
}

// out[j] = scale * (signed byte j of point + delta), 8 elements.
inline void write_moved_point(std::uint64_t point, float delta, float scale, float* out) {
  for (unsigned j = 0; j < 8; ++j) {
    const auto level = static_cast<std::int8_t>((point >> (8 * j)) & 255U);
    out[j] = scale * (static_cast<float>(level) + delta);
  }
}

}  // namespace moesaic::quant
