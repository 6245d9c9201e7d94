// The float vocabulary of common/*.h in two 256-bit registers; equal bit for bit to generic/simd.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace moesaic::kernels::avx2 {

// 0xFFFFFFFF in the first n of eight lanes, n <= 8.
alignas(64) inline constexpr std::int32_t kLaneMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1,
                                                           0,  0,  0,  0,  0,  0,  0,  0};

struct Simd {
  static constexpr int kTileQ = 2;
  static constexpr int kTileT = 2;
  static constexpr int kTileValueQ = 4;
  static constexpr int kTileD = 1;
  static constexpr int kTileRows = 2;
  static constexpr int kTileCols = 2;

  struct F {
    __m256 lo;  // lanes 0..7
    __m256 hi;  // lanes 8..15
  };
  struct I {
    __m256i lo;
    __m256i hi;
  };

  static __m256i first(int n) {
    const int kept = n < 0 ? 0 : (n > 8 ? 8 : n);
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kLaneMask + 8 - kept));
  }

  static F set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static F load_n(const float* p, int n) {
    return {_mm256_maskload_ps(p, first(n)), _mm256_maskload_ps(p + 8, first(n - 8))};
  }
  static void store(float* p, F x) {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
  }
  static void store_n(float* p, F x, int n) {
    _mm256_maskstore_ps(p, first(n), x.lo);
    _mm256_maskstore_ps(p + 8, first(n - 8), x.hi);
  }
  static F load_f16(const std::uint16_t* p) {
    const auto* v = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(v)), _mm256_cvtph_ps(_mm_loadu_si128(v + 1))};
  }
  static F load_f16_n(const std::uint16_t* p, int n) {
    alignas(32) std::uint16_t some[16] = {};
    for (int l = 0; l < n; ++l) some[l] = p[l];
    return load_f16(some);
  }
  // The f16 number at p, at any address, in every lane.
  static F set1_f16(const void* p) {
    std::uint16_t bits;
    __builtin_memcpy(&bits, p, 2);
    const __m256 x = _mm256_cvtph_ps(_mm_set1_epi16(static_cast<short>(bits)));
    return {x, x};
  }
  static F load_int8(const std::int8_t* p) {
    const __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)),
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
  }
  static F load_bf16(const std::uint16_t* p) {
    const auto* v = reinterpret_cast<const __m128i*>(p);
    const __m256i lo = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(v)), 16);
    const __m256i hi = _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(v + 1)), 16);
    return {_mm256_castsi256_ps(lo), _mm256_castsi256_ps(hi)};
  }
  static F load_bf16_n(const std::uint16_t* p, int n) {
    alignas(32) std::uint16_t some[16] = {};
    for (int l = 0; l < n; ++l) some[l] = p[l];
    return load_bf16(some);
  }
  static void store_f16_n(std::uint16_t* p, F x, int n) {
    constexpr int kRound = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    alignas(32) std::uint16_t some[16];
    _mm_store_si128(reinterpret_cast<__m128i*>(some), _mm256_cvtps_ph(x.lo, kRound));
    _mm_store_si128(reinterpret_cast<__m128i*>(some + 8), _mm256_cvtps_ph(x.hi, kRound));
    __builtin_memcpy(p, some, static_cast<unsigned>(n) * sizeof(std::uint16_t));
  }

  static F add(F a, F b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
  static F sub(F a, F b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
  static F mul(F a, F b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
  static F div(F a, F b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
  static F fma(F a, F b, F c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
  }
  static F max(F a, F b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
  static F min(F a, F b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
  static F zero_where_less(F x, F bound, F value) {
    return {_mm256_and_ps(_mm256_cmp_ps(x.lo, bound.lo, _CMP_NLT_UQ), value.lo),
            _mm256_and_ps(_mm256_cmp_ps(x.hi, bound.hi, _CMP_NLT_UQ), value.hi)};
  }

  static I bits(F x) { return {_mm256_castps_si256(x.lo), _mm256_castps_si256(x.hi)}; }
  static F from_bits(I x) { return {_mm256_castsi256_ps(x.lo), _mm256_castsi256_ps(x.hi)}; }
  static I set1_int(std::int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
  static I add_int(I a, I b) {
    return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
  }
  static I and_int(I a, I b) {
    return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
  }
  static I max_int(I a, I b) {
    return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)};
  }
  template <int n>
  static I shift_left(I a) {
    return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)};
  }
  static I round_to_int(F x) { return {_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi)}; }
  static F to_float(I x) { return {_mm256_cvtepi32_ps(x.lo), _mm256_cvtepi32_ps(x.hi)}; }
  static void store_int8(std::int8_t* p, I x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.lo, x.hi), 0xD8);
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  }

  static float reduce_add(F x) {
    const __m256 t8 = _mm256_add_ps(x.lo, x.hi);
    const __m128 t4 = _mm_add_ps(_mm256_castps256_ps128(t8), _mm256_extractf128_ps(t8, 1));
    const __m128 t2 = _mm_add_ps(t4, _mm_movehl_ps(t4, t4));
    return _mm_cvtss_f32(_mm_add_ss(t2, _mm_movehdup_ps(t2)));
  }
  static float reduce_max(F x) {
    const __m256 t8 = _mm256_max_ps(x.lo, x.hi);
    const __m128 t4 = _mm_max_ps(_mm256_castps256_ps128(t8), _mm256_extractf128_ps(t8, 1));
    const __m128 t2 = _mm_max_ps(t4, _mm_movehl_ps(t4, t4));
    return _mm_cvtss_f32(_mm_max_ss(t2, _mm_movehdup_ps(t2)));
  }
  static std::int32_t reduce_max_int(I x) {
    const __m256i t8 = _mm256_max_epi32(x.lo, x.hi);
    const __m128i t4 = _mm_max_epi32(_mm256_castsi256_si128(t8), _mm256_extracti128_si256(t8, 1));
    const __m128i t2 = _mm_max_epi32(t4, _mm_shuffle_epi32(t4, 0x4E));
    return _mm_cvtsi128_si32(_mm_max_epi32(t2, _mm_shuffle_epi32(t2, 0xB1)));
  }
  static std::int32_t reduce_add_int(I x) {
    const __m256i t8 = _mm256_add_epi32(x.lo, x.hi);
    const __m128i t4 = _mm_add_epi32(_mm256_castsi256_si128(t8), _mm256_extracti128_si256(t8, 1));
    const __m128i t2 = _mm_add_epi32(t4, _mm_shuffle_epi32(t4, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(t2, _mm_shuffle_epi32(t2, 0xB1)));
  }

  // Four trees at once.
  static void reduce_add_4(const F* x, float* out) {
    __m128 t4[4];
    for (int i = 0; i < 4; ++i) {
      const __m256 t8 = _mm256_add_ps(x[i].lo, x[i].hi);
      t4[i] = _mm_add_ps(_mm256_castps256_ps128(t8), _mm256_extractf128_ps(t8, 1));
    }
    const __m128 a =
        _mm_add_ps(_mm_shuffle_ps(t4[0], t4[1], 0x44), _mm_shuffle_ps(t4[0], t4[1], 0xEE));
    const __m128 b =
        _mm_add_ps(_mm_shuffle_ps(t4[2], t4[3], 0x44), _mm_shuffle_ps(t4[2], t4[3], 0xEE));
    _mm_storeu_ps(out, _mm_add_ps(_mm_shuffle_ps(a, b, 0x88), _mm_shuffle_ps(a, b, 0xDD)));
  }

  template <int n>
  static void reduce_add_each(const F (&x)[n], float* out) {
    if constexpr (n % 4 == 0) {
      for (int i = 0; i < n; i += 4) reduce_add_4(x + i, out + i);
    } else {
      for (int i = 0; i < n; ++i) out[i] = reduce_add(x[i]);
    }
  }
};

}  // namespace moesaic::kernels::avx2
