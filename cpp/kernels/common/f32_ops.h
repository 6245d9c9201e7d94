// The float operations of a table, written once over the vector vocabulary S (see generic/simd.h)
// and compiled for each ISA: same order, same roundings, same bits everywhere. Everything here is a
// template on S, so that no code compiled for one ISA can be linked into another.
#pragma once

#include <cstdint>

namespace moesaic::kernels {

inline constexpr float kExpLow = -87.0F;
inline constexpr float kExpHigh = 87.0F;

// exp(x) to about 2 ulp; 0 below kExpLow, and x above kExpHigh counts as kExpHigh. NaN stays NaN.
// x = n ln 2 + r, |r| <= ln 2 / 2; exp(r) by its Taylor series to r^7 (next term < 6e-9).
template <class S>
typename S::F exp(typename S::F x) {
  using F = typename S::F;
  const F clamped = S::min(S::set1(kExpHigh), S::max(S::set1(kExpLow), x));
  const F magic = S::set1(0x1.8p23F);  // adding it leaves round(x / ln 2) in the low mantissa bits
  const F shifted = S::fma(clamped, S::set1(0x1.715476p+0F), magic);
  const F n = S::sub(shifted, magic);
  F r = S::fma(n, S::set1(-0x1.62e4p-1F), clamped);  // ln 2 in two parts, the first short
  r = S::fma(n, S::set1(-0x1.7f7d1cp-20F), r);
  F p = S::set1(1.0F / 5040.0F);
  p = S::fma(p, r, S::set1(1.0F / 720.0F));
  p = S::fma(p, r, S::set1(1.0F / 120.0F));
  p = S::fma(p, r, S::set1(1.0F / 24.0F));
  p = S::fma(p, r, S::set1(1.0F / 6.0F));
  p = S::fma(p, r, S::set1(0.5F));
  p = S::fma(p, r, S::set1(1.0F));
  p = S::fma(p, r, S::set1(1.0F));
  // n is in [-126, 126]: adding it to the exponent of p in [0.7, 1.42] stays normal or gives 0.
  const F result =
      S::from_bits(S::add_int(S::bits(p), S::template shift_left<23>(S::bits(shifted))));
  return S::zero_where_less(x, S::set1(kExpLow), result);
}

template <class S>
float exp_one(float x) {
  float out[16];
  S::store(out, exp<S>(S::set1(x)));
  return out[0];
}

template <class S>
typename S::F sigmoid_of(typename S::F x) {
  const typename S::F one = S::set1(1.0F);
  return S::div(one, S::add(one, exp<S>(S::sub(S::zero(), x))));
}

// fn(vector) on every sixteen of n values, out from in.
template <class S, typename Fn>
void map(std::int64_t n, float* out, Fn fn) {
  std::int64_t i = 0;
  for (; i + 16 <= n; i += 16) S::store(out + i, fn(i, 16));
  if (i < n) S::store_n(out + i, fn(i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

template <class S>
typename S::F load_some(const float* p, int n) {
  return n == 16 ? S::load(p) : S::load_n(p, n);
}

template <class S>
struct F32Ops {
  using F = typename S::F;

  static void rms_norm(const float* x, const float* weight, float eps, std::int64_t n, float* out) {
    F sum = S::zero();
    std::int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
      const F v = S::load(x + i);
      sum = S::fma(v, v, sum);
    }
    if (i < n) {
      const F v = S::load_n(x + i, static_cast<int>(n - i));
      sum = S::fma(v, v, sum);
    }
    const float mean = S::reduce_add(sum) / static_cast<float>(n);
    const F r = S::set1(1.0F / __builtin_sqrtf(mean + eps));
    if (weight == nullptr) {
      map<S>(n, out, [&](std::int64_t j, int m) { return S::mul(load_some<S>(x + j, m), r); });
    } else {
      map<S>(n, out, [&](std::int64_t j, int m) {
        return S::mul(S::mul(load_some<S>(x + j, m), r), load_some<S>(weight + j, m));
      });
    }
  }

  // a, b -> fma(a, cos, -(b sin)), fma(b, cos, a sin)
  static void rope(float* x, const float* cos_sin, std::int64_t n_rot, bool interleaved) {
    const std::int64_t half = n_rot / 2;
    for (std::int64_t i = 0; i < half; ++i) {
      float* a = interleaved ? x + 2 * i : x + i;
      float* b = interleaved ? a + 1 : a + half;
      const float c = cos_sin[2 * i];
      const float s = cos_sin[2 * i + 1];
      const float a0 = *a;
      const float b0 = *b;
      *a = __builtin_fmaf(a0, c, -(b0 * s));
      *b = __builtin_fmaf(b0, c, a0 * s);
    }
  }

  static void add(const float* x, const float* y, std::int64_t n, float* out) {
    map<S>(n, out, [&](std::int64_t i, int m) {
      return S::add(load_some<S>(x + i, m), load_some<S>(y + i, m));
    });
  }

  static void add_scaled(const float* x, float factor, std::int64_t n, float* out) {
    const F f = S::set1(factor);
    map<S>(n, out, [&](std::int64_t i, int m) {
      return S::fma(f, load_some<S>(x + i, m), load_some<S>(out + i, m));
    });
  }

  static void scale(float factor, std::int64_t n, float* x) {
    const F f = S::set1(factor);
    map<S>(n, x, [&](std::int64_t i, int m) { return S::mul(f, load_some<S>(x + i, m)); });
  }

  static void silu_mul(const float* gate, const float* up, std::int64_t n, float* out) {
    map<S>(n, out, [&](std::int64_t i, int m) {
      const F g = load_some<S>(gate + i, m);
      return S::mul(S::mul(g, sigmoid_of<S>(g)), load_some<S>(up + i, m));
    });
  }

  static void swiglu_oai(const float* gate, const float* up, float alpha, float limit,
                         std::int64_t n, float* out) {
    const F high = S::set1(limit);
    const F low = S::set1(-limit);
    const F a = S::set1(alpha);
    const F one = S::set1(1.0F);
    map<S>(n, out, [&](std::int64_t i, int m) {
      const F g = S::min(high, load_some<S>(gate + i, m));
      const F u = S::min(high, S::max(low, load_some<S>(up + i, m)));
      return S::mul(S::mul(g, sigmoid_of<S>(S::mul(a, g))), S::add(u, one));
    });
  }

  static void sigmoid(const float* x, std::int64_t n, float* out) {
    map<S>(n, out, [&](std::int64_t i, int m) { return sigmoid_of<S>(load_some<S>(x + i, m)); });
  }

  static float maximum(const float* x, std::int64_t n) {
    F best = S::set1(-__builtin_inff());
    std::int64_t i = 0;
    for (; i + 16 <= n; i += 16) best = S::max(best, S::load(x + i));
    float result = S::reduce_max(best);
    for (; i < n; ++i) result = x[i] > result ? x[i] : result;
    return result;
  }

  static void softmax(const float* x, std::int64_t n, float* out) {
    const F m = S::set1(maximum(x, n));
    F sum = S::zero();
    map<S>(n, out, [&](std::int64_t i, int count) {
      const F e = exp<S>(S::sub(load_some<S>(x + i, count), m));
      if (count == 16) sum = S::add(sum, e);
      return e;
    });
    const std::int64_t tail = n % 16;
    if (tail != 0) sum = S::add(sum, S::load_n(out + n - tail, static_cast<int>(tail)));
    scale(1.0F / S::reduce_add(sum), n, out);
  }

  // Lanes of double, joined in the fixed tree.
  static double log_sum_exp(const float* x, std::int64_t n) {
    const float m = maximum(x, n);
    const F max_vector = S::set1(m);
    double lanes[16] = {};
    float e[16];
    for (std::int64_t i = 0; i < n; i += 16) {
      const int count = n - i < 16 ? static_cast<int>(n - i) : 16;
      S::store(e, exp<S>(S::sub(load_some<S>(x + i, count), max_vector)));
      for (int l = 0; l < count; ++l) lanes[l] += static_cast<double>(e[l]);
    }
    for (int width = 8; width > 0; width /= 2) {
      for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
    }
    return static_cast<double>(m) + __builtin_log(lanes[0]);
  }

  static void to_f16(const float* x, std::int64_t n, std::uint16_t* out) {
    for (std::int64_t i = 0; i < n; i += 16) {
      const int count = n - i < 16 ? static_cast<int>(n - i) : 16;
      S::store_f16_n(out + i, load_some<S>(x + i, count), count);
    }
  }

  static void from_f16(const std::uint16_t* x, std::int64_t n, float* out) {
    map<S>(n, out, [&](std::int64_t i, int m) {
      return m == 16 ? S::load_f16(x + i) : S::load_f16_n(x + i, m);
    });
  }
};

}  // namespace moesaic::kernels
