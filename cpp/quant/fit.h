// How encoders choose scales: weighted least squares over a few starting points, then again after
// the scale has been rounded to what the block can store. Nothing here knows a layout. Not on any
// path of inference.
#pragma once

#include <cstdint>

#include "quant/grids.h"

namespace moesaic::quant {

inline constexpr int kSuperElems = 256;

// The nearest integer in [lo, hi] (within +-2^21), ties to even; NaN gives lo.
inline int round_within(float value, int lo, int hi) {
  // No branches, so that loops over it vectorise. Adding 1.5 * 2^23 leaves no bits for a fraction:
  // the hardware rounds.
  constexpr float kShift = 12582912.0F;
  const float least = static_cast<float>(lo);
  const float most = static_cast<float>(hi);
  const float above = value > least ? value : least;
  const float within = above < most ? above : most;
  return static_cast<int>((within + kShift) - kShift);
}

// The nearest f16 with overflow cut to the largest finite one, so that no block decodes to
// infinity.
std::uint16_t f16_scale(float value);

// Whether f16_scale has cut off a value in this thread since forget_cut_off_scales(): a sign that
// the block may be far from its numbers (some encoders cut off in trials that they do not take).
bool a_scale_was_cut_off();
void forget_cut_off_scales();

// Levels a code stands for: either all integers in [lo, hi], the code being the integer itself, or
// IQ4's 16, by index.
struct IntegerLevels {
  int lo;
  int hi;
  int code(float value) const { return round_within(value, lo, hi); }
  float value(int code) const { return static_cast<float>(code); }
  float least() const { return static_cast<float>(lo); }
  float most() const { return static_cast<float>(hi); }
};
struct Iq4Levels {
  int code(float value) const;
  float value(int code) const {
    return static_cast<float>(kIq4nlLevels[static_cast<unsigned>(code)]);
  }
  float least() const { return value(0); }
  float most() const { return value(15); }
};

// Importance of elements when nothing is known about the activations: rms + |x|. Large weights
// matter more than their share of the plain squared error says, but not as x^2.
void weigh(const float* x, int n, float* weights);

// x[i] ~ scale * level(code): the scale (of either sign) of the least weighted squared error found;
// 0 for all zeros.
template <typename Levels>
float fit_scale(const float* x, const float* weights, int n, const Levels& levels);

struct Line {
  float scale;  // >= 0
  float offset;
};
// x[i] ~ scale * q + offset with q in [0, q_max]. offset_below_0: the format has only offsets <= 0.
Line fit_line(const float* x, const float* weights, int n, int q_max, bool offset_below_0);

// A super-block of 256 elements in kSuperElems / sub_elems sub-blocks, x ~ (d * scale[s]) *
// level(code), as Q3_K, Q6_K and IQ4_XS store it.
struct SymmetricFit {
  std::uint16_t d;        // f16
  std::int8_t scale[16];  // within [scale_lo, scale_hi]
  std::int8_t code[kSuperElems];
};
template <typename Levels>
void fit_symmetric(const float* x, int sub_elems, int scale_lo, int scale_hi, const Levels& levels,
                   SymmetricFit& fit);

// The same for x ~ (d * scale[s]) * q - dmin * min[s], q in [0, q_max], as Q2_K, Q4_K and Q5_K
// store it.
struct AffineFit {
  std::uint16_t d;         // f16
  std::uint16_t dmin;      // f16
  std::uint8_t scale[16];  // within [0, scale_max]
  std::uint8_t min[16];    // within [0, scale_max]
  std::uint8_t q[kSuperElems];
};
void fit_affine(const float* x, int sub_elems, int scale_max, int q_max, AffineFit& fit);

}  // namespace moesaic::quant
