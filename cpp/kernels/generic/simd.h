// The vector vocabulary that common/*.h is written in, spelt out with plain loops: sixteen floats,
// sixteen int32. It is the definition that the ISA versions of this struct must equal bit for bit.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "quant/half.h"

namespace moesaic::kernels::generic {

struct Simd {
  // Register tiles of common/: queries x keys, queries (of values) x value vectors, rows x columns.
  static constexpr int kTileQ = 2;
  static constexpr int kTileT = 2;
  static constexpr int kTileValueQ = 2;
  static constexpr int kTileD = 2;
  static constexpr int kTileRows = 2;
  static constexpr int kTileCols = 2;

  struct F {
    float v[16];
  };
  struct I {
    std::int32_t v[16];
  };

  template <typename Fn>
  static F each(Fn fn) {
    F out;
    for (int l = 0; l < 16; ++l) out.v[l] = fn(l);
    return out;
  }
  template <typename Fn>
  static I each_int(Fn fn) {
    I out;
    for (int l = 0; l < 16; ++l) out.v[l] = static_cast<std::int32_t>(fn(l));
    return out;
  }

  static F set1(float x) {
    return each([&](int) { return x; });
  }
  static F zero() { return set1(0.0F); }
  static F load(const float* p) {
    return each([&](int l) { return p[l]; });
  }
  // The first n lanes; the rest zero. Reads no byte past them.
  static F load_n(const float* p, int n) {
    return each([&](int l) { return l < n ? p[l] : 0.0F; });
  }
  static void store(float* p, F x) { store_n(p, x, 16); }
  static void store_n(float* p, F x, int n) {
    for (int l = 0; l < n; ++l) p[l] = x.v[l];
  }
  static F load_f16(const std::uint16_t* p) { return load_f16_n(p, 16); }
  static F load_f16_n(const std::uint16_t* p, int n) {
    return each([&](int l) { return l < n ? quant::f16_to_f32(p[l]) : 0.0F; });
  }
  // The f16 number at p, at any address, in every lane.
  static F set1_f16(const void* p) {
    std::uint16_t bits;
    __builtin_memcpy(&bits, p, 2);
    return set1(quant::f16_to_f32(bits));
  }
  static F load_int8(const std::int8_t* p) {
    return each([&](int l) { return static_cast<float>(p[l]); });
  }
  static F load_bf16(const std::uint16_t* p) { return load_bf16_n(p, 16); }
  static F load_bf16_n(const std::uint16_t* p, int n) {
    return each([&](int l) { return l < n ? quant::bf16_to_f32(p[l]) : 0.0F; });
  }
  static void store_f16_n(std::uint16_t* p, F x, int n) {
    for (int l = 0; l < n; ++l) p[l] = quant::f32_to_f16(x.v[l]);
  }

  static F add(F a, F b) {
    return each([&](int l) { return a.v[l] + b.v[l]; });
  }
  static F sub(F a, F b) {
    return each([&](int l) { return a.v[l] - b.v[l]; });
  }
  static F mul(F a, F b) {
    return each([&](int l) { return a.v[l] * b.v[l]; });
  }
  static F div(F a, F b) {
    return each([&](int l) { return a.v[l] / b.v[l]; });
  }
  static F fma(F a, F b, F c) {
    return each([&](int l) { return std::fma(a.v[l], b.v[l], c.v[l]); });
  }
  // As x86: the second operand when either is NaN.
  static F max(F a, F b) {
    return each([&](int l) { return a.v[l] > b.v[l] ? a.v[l] : b.v[l]; });
  }
  static F min(F a, F b) {
    return each([&](int l) { return a.v[l] < b.v[l] ? a.v[l] : b.v[l]; });
  }
  // x where x >= bound, or either is NaN; zero elsewhere: what exp keeps of its result.
  static F zero_where_less(F x, F bound, F value) {
    return each([&](int l) { return x.v[l] < bound.v[l] ? 0.0F : value.v[l]; });
  }

  static I bits(F x) {
    return each_int([&](int l) { return std::bit_cast<std::int32_t>(x.v[l]); });
  }
  static F from_bits(I x) {
    return each([&](int l) { return std::bit_cast<float>(x.v[l]); });
  }
  static I set1_int(std::int32_t x) {
    return each_int([&](int) { return x; });
  }
  // Wraps around, as the machine's does.
  static I add_int(I a, I b) {
    return each_int([&](int l) {
      return static_cast<std::uint32_t>(a.v[l]) + static_cast<std::uint32_t>(b.v[l]);
    });
  }
  static I and_int(I a, I b) {
    return each_int([&](int l) { return a.v[l] & b.v[l]; });
  }
  static I max_int(I a, I b) {
    return each_int([&](int l) { return a.v[l] > b.v[l] ? a.v[l] : b.v[l]; });
  }
  template <int n>
  static I shift_left(I a) {
    return each_int([&](int l) { return static_cast<std::uint32_t>(a.v[l]) << n; });
  }
  // To nearest, ties to even; only for |x| < 2^22 (other values give some number).
  static I round_to_int(F x) {
    return each_int([&](int l) {
      const float shifted = x.v[l] + 0x1.8p23F;
      return std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(0x1.8p23F);
    });
  }
  static F to_float(I x) {
    return each([&](int l) { return static_cast<float>(x.v[l]); });
  }
  static void store_int8(std::int8_t* p, I x) {
    for (int l = 0; l < 16; ++l) p[l] = static_cast<std::int8_t>(x.v[l]);
  }

  // The fixed tree: lanes i + (i + 8), then i + (i + 4), i + (i + 2), 0 + 1.
  static float reduce_add(F x) {
    for (int width = 8; width > 0; width /= 2) {
      for (int l = 0; l < width; ++l) x.v[l] = x.v[l] + x.v[l + width];
    }
    return x.v[0];
  }
  static float reduce_max(F x) {
    for (int width = 8; width > 0; width /= 2) {
      for (int l = 0; l < width; ++l) x.v[l] = x.v[l] > x.v[l + width] ? x.v[l] : x.v[l + width];
    }
    return x.v[0];
  }
  static std::int32_t reduce_max_int(I x) {
    std::int32_t best = x.v[0];
    for (int l = 1; l < 16; ++l) best = x.v[l] > best ? x.v[l] : best;
    return best;
  }
  static std::int32_t reduce_add_int(I x) {
    std::int32_t sum = 0;
    for (int l = 0; l < 16; ++l) sum += x.v[l];
    return sum;
  }
  // out[i] = reduce_add(x[i]).
  template <int n>
  static void reduce_add_each(const F (&x)[n], float* out) {
    for (int i = 0; i < n; ++i) out[i] = reduce_add(x[i]);
  }
};

}  // namespace moesaic::kernels::generic
