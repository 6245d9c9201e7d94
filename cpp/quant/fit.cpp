// See fit.h. Blocks are small and offline: clarity over speed (a few million elements a second).
#include "quant/fit.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "quant/half.h"

namespace moesaic::quant {
namespace {

constexpr float kTiny = 1e-30F;
constexpr float kLargestF16 = 65504.0F;
thread_local bool cut_off = false;
constexpr int kPasses = 2;  // rounds of "integers for this d, then d for these integers"

// sum of w * a * b over n, a multiple of 8, in eight lanes so that it vectorises.
double weighted_dot(const float* w, const float* a, const float* b, int n) {
  std::array<float, 8> lanes{};
  for (int i = 0; i < n; i += 8) {
    for (int j = 0; j < 8; ++j)
      lanes[static_cast<std::size_t>(j)] += w[i + j] * a[i + j] * b[i + j];
  }
  double sum = 0;
  for (const float lane : lanes) sum += static_cast<double>(lane);
  return sum;
}

// Weighted squared error of x ~ scale * level(code), filling in the codes and their levels.
template <typename Levels>
double quantize_with(const float* x, const float* w, int n, float scale, const Levels& levels,
                     std::int8_t* codes, float* level) {
  const float inverse = scale != 0 ? 1.0F / scale : 0.0F;
  std::array<float, kSuperElems> miss;
  for (int i = 0; i < n; ++i) {
    const int code = levels.code(x[i] * inverse);
    level[i] = levels.value(code);
    codes[i] = static_cast<std::int8_t>(code);
    miss[static_cast<std::size_t>(i)] = scale * level[i] - x[i];
  }
  return weighted_dot(w, miss.data(), miss.data(), n);
}

// The same for x ~ scale * q + offset.
double quantize_line(const float* x, const float* w, int n, Line line, int q_max, std::uint8_t* q,
                     float* level) {
  const float inverse = line.scale > 0 ? 1.0F / line.scale : 0.0F;
  std::array<float, kSuperElems> miss;
  for (int i = 0; i < n; ++i) {
    const int code = round_within((x[i] - line.offset) * inverse, 0, q_max);
    level[i] = static_cast<float>(code);
    q[i] = static_cast<std::uint8_t>(code);
    miss[static_cast<std::size_t>(i)] = line.scale * level[i] + line.offset - x[i];
  }
  return weighted_dot(w, miss.data(), miss.data(), n);
}

// The line of least weighted squared error through the points (level[i], x[i]).
Line line_through(const float* x, const float* w, int n, const float* level, bool offset_below_0,
                  Line otherwise) {
  static constexpr auto kOnes = [] {
    std::array<float, kSuperElems> ones{};
    for (float& one : ones) one = 1;
    return ones;
  }();
  const double s_w = weighted_dot(w, kOnes.data(), kOnes.data(), n);
  const double s_x = weighted_dot(w, x, kOnes.data(), n);
  const double s_q = weighted_dot(w, level, kOnes.data(), n);
  const double s_qq = weighted_dot(w, level, level, n);
  const double s_xq = weighted_dot(w, x, level, n);
  const double det = s_w * s_qq - s_q * s_q;
  if (det <= 1e-12 * s_w * s_qq) return otherwise;
  double scale = (s_w * s_xq - s_x * s_q) / det;
  double offset = (s_qq * s_x - s_q * s_xq) / det;
  if (offset_below_0 && offset > 0) {
    offset = 0;
    scale = s_xq / s_qq;
  }
  if (!(scale > 0)) return otherwise;
  return {static_cast<float>(scale), static_cast<float>(offset)};
}

int nearest_integer(float value, float unit, int lo, int hi) {
  return unit != 0 ? round_within(value / unit, lo, hi) : 0;
}

}  // namespace

std::uint16_t f16_scale(float value) {
  if (!(std::abs(value) <= kLargestF16)) cut_off = true;
  return f32_to_f16(std::clamp(value, -kLargestF16, kLargestF16));
}

bool a_scale_was_cut_off() { return cut_off; }
void forget_cut_off_scales() { cut_off = false; }

int Iq4Levels::code(float value) const {
  int best = 0;
  // The levels rise: count the midpoints below the value.
  for (unsigned i = 1; i < kIq4nlLevels.size(); ++i) {
    const float middle = 0.5F * static_cast<float>(kIq4nlLevels[i - 1] + kIq4nlLevels[i]);
    best += value > middle ? 1 : 0;
  }
  return best;
}

void weigh(const float* x, int n, float* weights) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  const auto rms = static_cast<float>(std::sqrt(sum / n));
  for (int i = 0; i < n; ++i) weights[i] = rms + std::abs(x[i]);
}

template <typename Levels>
float fit_scale(const float* x, const float* weights, int n, const Levels& levels) {
  float peak = 0;  // of the largest magnitude, with its sign
  for (int i = 0; i < n; ++i) {
    if (std::abs(x[i]) > std::abs(peak)) peak = x[i];
  }
  if (std::abs(peak) < kTiny) return 0;
  std::array<std::int8_t, kSuperElems> codes;
  std::array<float, kSuperElems> level;
  float best_scale = 0;
  double best_gain = 0;
  const auto consider = [&](float scale) {
    quantize_with(x, weights, n, scale, levels, codes.data(), level.data());
    const double s_xl = weighted_dot(weights, x, level.data(), n);
    const double s_ll = weighted_dot(weights, level.data(), level.data(), n);
    // What the error falls by against all zeros, at the best scale for these codes.
    if (s_ll > 0 && s_xl * s_xl > best_gain * s_ll) {
      best_gain = s_xl * s_xl / s_ll;
      best_scale = static_cast<float>(s_xl / s_ll);
    }
  };
  // The peak at either end of the range, a little inside or cut off.
  constexpr int kSteps = 8;
  const float step = (levels.most() - levels.least()) / 15.0F * 0.1F * (n > 16 ? 1.0F : 1.5F);
  for (const float end : {levels.least(), levels.most()}) {
    for (int t = -kSteps; t <= kSteps; ++t) {
      const float target = end + static_cast<float>(t) * std::min(step, 0.08F * std::abs(end));
      consider(peak / target);
    }
  }
  for (int pass = 0; pass < kPasses; ++pass) consider(best_scale);
  return best_scale;
}

Line fit_line(const float* x, const float* weights, int n, int q_max, bool offset_below_0) {
  const auto [least, most] = std::minmax_element(x, x + n);
  float lo = *least;
  if (offset_below_0) lo = std::min(lo, 0.0F);
  const float width = *most - lo;
  if (width < kTiny) return {0, lo};
  std::array<std::uint8_t, kSuperElems> q;
  std::array<float, kSuperElems> level;
  Line best = {width / static_cast<float>(q_max), lo};
  double best_error = quantize_line(x, weights, n, best, q_max, q.data(), level.data());
  const auto consider = [&](Line line) {
    const double error = quantize_line(x, weights, n, line, q_max, q.data(), level.data());
    if (error < best_error) {
      best_error = error;
      best = line;
    }
    return line_through(x, weights, n, level.data(), offset_below_0, line);
  };
  constexpr int kSteps = 16;
  for (int t = 0; t <= kSteps; ++t) {
    // From half a step more than the range to a step and a half less (the ends cut off).
    const float n_steps = static_cast<float>(q_max) - 0.5F + 2.0F * static_cast<float>(t) / kSteps;
    Line line = {width / n_steps, lo};
    for (int pass = 0; pass <= kPasses; ++pass) line = consider(line);
  }
  return best;
}

template <typename Levels>
void fit_symmetric(const float* x, int sub_elems, int scale_lo, int scale_hi, const Levels& levels,
                   SymmetricFit& fit) {
  const int n_subs = kSuperElems / sub_elems;
  std::array<float, kSuperElems> w;
  std::array<float, 16> scales{};
  float peak = 0;
  for (int s = 0; s < n_subs; ++s) {
    const int at = s * sub_elems;
    weigh(x + at, sub_elems, w.data() + at);
    const float scale = fit_scale(x + at, w.data() + at, sub_elems, levels);
    scales[static_cast<std::size_t>(s)] = scale;
    if (std::abs(scale) > std::abs(peak)) peak = scale;
  }
  fit.d = f16_scale(peak / static_cast<float>(scale_lo));
  double best_error = std::numeric_limits<double>::infinity();
  SymmetricFit trial = fit;
  for (int pass = 0; pass <= kPasses; ++pass) {
    const float d = f16_to_f32(trial.d);
    double error = 0, s_xa = 0, s_aa = 0;
    for (int s = 0; s < n_subs; ++s) {
      const int at = s * sub_elems;
      const int centre =
          nearest_integer(scales[static_cast<std::size_t>(s)], d, scale_lo, scale_hi);
      double sub_best = std::numeric_limits<double>::infinity();
      std::array<std::int8_t, kSuperElems> codes;
      std::array<float, kSuperElems> level;
      for (int k = std::max(centre - 1, scale_lo); k <= std::min(centre + 1, scale_hi); ++k) {
        const double sub_error =
            quantize_with(x + at, w.data() + at, sub_elems, d * static_cast<float>(k), levels,
                          codes.data(), level.data());
        if (sub_error >= sub_best) continue;
        sub_best = sub_error;
        trial.scale[s] = static_cast<std::int8_t>(k);
        std::copy_n(codes.begin(), sub_elems, trial.code + at);
      }
      error += sub_best;
      for (int i = at; i < at + sub_elems; ++i) {
        const double a = static_cast<double>(trial.scale[s]) * levels.value(trial.code[i]);
        s_xa += static_cast<double>(w[static_cast<std::size_t>(i)]) * x[i] * a;
        s_aa += static_cast<double>(w[static_cast<std::size_t>(i)]) * a * a;
      }
    }
    if (error < best_error) {
      best_error = error;
      fit = trial;
    }
    if (s_aa <= 0) break;
    trial.d = f16_scale(static_cast<float>(s_xa / s_aa));
  }
}

void fit_affine(const float* x, int sub_elems, int scale_max, int q_max, AffineFit& fit) {
  const int n_subs = kSuperElems / sub_elems;
  std::array<float, kSuperElems> w;
  std::array<Line, 16> lines{};
  float top_scale = 0;
  float top_min = 0;
  for (int s = 0; s < n_subs; ++s) {
    const int at = s * sub_elems;
    weigh(x + at, sub_elems, w.data() + at);
    Line& line = lines[static_cast<std::size_t>(s)];
    line = fit_line(x + at, w.data() + at, sub_elems, q_max, true);
    top_scale = std::max(top_scale, line.scale);
    top_min = std::max(top_min, -line.offset);
  }
  AffineFit trial;
  trial.d = f16_scale(top_scale / static_cast<float>(scale_max));
  trial.dmin = f16_scale(top_min / static_cast<float>(scale_max));
  double best_error = std::numeric_limits<double>::infinity();
  for (int pass = 0; pass <= kPasses; ++pass) {
    const float d = f16_to_f32(trial.d);
    const float dmin = f16_to_f32(trial.dmin);
    double error = 0;
    // Normal equations of x ~ d * a - dmin * b with a = scale * q, b = min.
    double s_aa = 0, s_ab = 0, s_bb = 0, s_xa = 0, s_xb = 0;
    for (int s = 0; s < n_subs; ++s) {
      const int at = s * sub_elems;
      const Line& line = lines[static_cast<std::size_t>(s)];
      const int scale0 = nearest_integer(line.scale, d, 0, scale_max);
      const int min0 = nearest_integer(-line.offset, dmin, 0, scale_max);
      double sub_best = std::numeric_limits<double>::infinity();
      std::array<std::uint8_t, kSuperElems> q;
      std::array<float, kSuperElems> level;
      for (int k = std::max(scale0 - 1, 0); k <= std::min(scale0 + 1, scale_max); ++k) {
        for (int m = std::max(min0 - 1, 0); m <= std::min(min0 + 1, scale_max); ++m) {
          const Line stored = {d * static_cast<float>(k), -(dmin * static_cast<float>(m))};
          const double sub_error = quantize_line(x + at, w.data() + at, sub_elems, stored, q_max,
                                                 q.data(), level.data());
          if (sub_error >= sub_best) continue;
          sub_best = sub_error;
          trial.scale[s] = static_cast<std::uint8_t>(k);
          trial.min[s] = static_cast<std::uint8_t>(m);
          std::copy_n(q.begin(), sub_elems, trial.q + at);
        }
      }
      error += sub_best;
      const double b = trial.min[s];
      for (int i = at; i < at + sub_elems; ++i) {
        const double wi = w[static_cast<std::size_t>(i)];
        const double a = static_cast<double>(trial.scale[s]) * trial.q[i];
        s_aa += wi * a * a;
        s_ab += wi * a * b;
        s_bb += wi * b * b;
        s_xa += wi * x[i] * a;
        s_xb += wi * x[i] * b;
      }
    }
    if (error < best_error) {
      best_error = error;
      fit = trial;
    }
    const double det = s_aa * s_bb - s_ab * s_ab;
    if (s_aa <= 0) break;
    if (det > 1e-12 * s_aa * s_bb) {
      trial.d = f16_scale(static_cast<float>((s_xa * s_bb - s_xb * s_ab) / det));
      trial.dmin = f16_scale(static_cast<float>((s_xa * s_ab - s_xb * s_aa) / det));
    } else {
      trial.d = f16_scale(static_cast<float>(s_xa / s_aa));
    }
    // Scales are unsigned: a sign can only come from a block of almost nothing.
    if (((trial.d | trial.dmin) & 0x8000U) != 0) break;
  }
}

template float fit_scale(const float*, const float*, int, const IntegerLevels&);
template float fit_scale(const float*, const float*, int, const Iq4Levels&);
template void fit_symmetric(const float*, int, int, int, const IntegerLevels&, SymmetricFit&);
template void fit_symmetric(const float*, int, int, int, const Iq4Levels&, SymmetricFit&);

}  // namespace moesaic::quant
