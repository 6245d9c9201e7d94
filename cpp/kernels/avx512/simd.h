// The float vocabulary of common/*.h in one 512-bit register; equal bit for bit to generic/simd.h.
// Included by the files of avx512/ and avx512vnni/, which name their namespace first.
#pragma once

#include <immintrin.h>

#include <cstdint>

#ifndef MOESAIC_AVX512_NAMESPACE
#error "define MOESAIC_AVX512_NAMESPACE before including"
#endif

namespace moesaic::kernels::MOESAIC_AVX512_NAMESPACE {

struct Simd {
  static constexpr int kTileQ = 4;
  static constexpr int kTileT = 4;
  static constexpr int kTileValueQ = 8;
  static constexpr int kTileD = 2;
  static constexpr int kTileRows = 4;
  static constexpr int kTileCols = 4;

  using F = __m512;
  using I = __m512i;

  static __mmask16 first(int n) { return static_cast<__mmask16>((1U << n) - 1U); }

  static F set1(float x) { return _mm512_set1_ps(x); }
  static F zero() { return _mm512_setzero_ps(); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static F load_n(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static void store_n(float* p, F x, int n) { _mm512_mask_storeu_ps(p, first(n), x); }
  static F load_f16(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_f16_n(const std::uint16_t* p, int n) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p));
  }
  // The f16 number at p, at any address, in every lane.
  static F set1_f16(const void* p) {
    std::uint16_t bits;
    __builtin_memcpy(&bits, p, 2);
    return _mm512_cvtph_ps(_mm256_set1_epi16(static_cast<short>(bits)));
  }
  static F load_int8(const std::int8_t* p) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static F from_bf16(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
  static F load_bf16(const std::uint16_t* p) {
    return from_bf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_bf16_n(const std::uint16_t* p, int n) {
    return from_bf16(_mm256_maskz_loadu_epi16(first(n), p));
  }
  static void store_f16_n(std::uint16_t* p, F x, int n) {
    _mm256_mask_storeu_epi16(p, first(n),
                             _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }

  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F zero_where_less(F x, F bound, F value) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, bound, _CMP_NLT_UQ), value);
  }

  static I bits(F x) { return _mm512_castps_si512(x); }
  static F from_bits(I x) { return _mm512_castsi512_ps(x); }
  static I set1_int(std::int32_t x) { return _mm512_set1_epi32(x); }
  static I add_int(I a, I b) { return _mm512_add_epi32(a, b); }
  static I and_int(I a, I b) { return _mm512_and_si512(a, b); }
  static I max_int(I a, I b) { return _mm512_max_epi32(a, b); }
  template <int n>
  static I shift_left(I a) {
    return _mm512_slli_epi32(a, n);
  }
  static I round_to_int(F x) { return _mm512_cvtps_epi32(x); }
  static F to_float(I x) { return _mm512_cvtepi32_ps(x); }
  static void store_int8(std::int8_t* p, I x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
  }

  // 8 + 8 lanes, then 4 + 4, 2 + 2, 1 + 1.
  static float reduce_add(F x) {
    const __m256 t8 = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 t4 = _mm_add_ps(_mm256_castps256_ps128(t8), _mm256_extractf128_ps(t8, 1));
    const __m128 t2 = _mm_add_ps(t4, _mm_movehl_ps(t4, t4));
    return _mm_cvtss_f32(_mm_add_ss(t2, _mm_movehdup_ps(t2)));
  }
  static float reduce_max(F x) {
    const __m256 t8 = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    const __m128 t4 = _mm_max_ps(_mm256_castps256_ps128(t8), _mm256_extractf128_ps(t8, 1));
    const __m128 t2 = _mm_max_ps(t4, _mm_movehl_ps(t4, t4));
    return _mm_cvtss_f32(_mm_max_ss(t2, _mm_movehdup_ps(t2)));
  }
  static std::int32_t reduce_max_int(I x) { return _mm512_reduce_max_epi32(x); }
  static std::int32_t reduce_add_int(I x) { return _mm512_reduce_add_epi32(x); }

  // One level of the tree for two vectors at once; see reduce_add_each.
  static F fold8(F a, F b) {  // [a lanes 0..7, b lanes 0..7] after adding their upper halves
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
  }
  static F fold4(F a, F b) {  // 128-bit groups (a0 + a1, a2 + a3, b0 + b1, b2 + b3)
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
  }
  static F fold2(F a, F b) {  // in each 128-bit group: (a0 + a2, a1 + a3, b0 + b2, b1 + b3)
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xEE));
  }
  static F fold1(F a, F b) {  // in each 128-bit group: (a0 + a1, a2 + a3, b0 + b1, b2 + b3)
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xDD));
  }

  // Sixteen trees at once: 45 instructions instead of sixteen times nine.
  static void reduce_add_16(const F* x, float* out) {
    F half[8];
    for (int i = 0; i < 8; ++i) half[i] = fold8(x[2 * i], x[2 * i + 1]);
    F quarter[4];  // quarter[i], 128-bit group g: vector 4 i + g, four lanes left
    for (int i = 0; i < 4; ++i) quarter[i] = fold4(half[2 * i], half[2 * i + 1]);
    const F a = fold2(quarter[0], quarter[1]);
    const F b = fold2(quarter[2], quarter[3]);
    const F sums = fold1(a, b);  // group g: vectors g, 4 + g, 8 + g, 12 + g
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm512_storeu_ps(out, _mm512_permutexvar_ps(order, sums));
  }

  template <int n>
  static void reduce_add_each(const F (&x)[n], float* out) {
    if constexpr (n % 16 == 0) {
      for (int i = 0; i < n; i += 16) reduce_add_16(x + i, out + i);
    } else if constexpr (n == 4 || n == 8) {
      F padded[16];
      float sums[16];
      for (int i = 0; i < 16; ++i) padded[i] = x[i % n];
      reduce_add_16(padded, sums);
      for (int i = 0; i < n; ++i) out[i] = sums[i];
    } else {
      for (int i = 0; i < n; ++i) out[i] = reduce_add(x[i]);
    }
  }
};

}  // namespace moesaic::kernels::MOESAIC_AVX512_NAMESPACE
