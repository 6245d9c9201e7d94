// The ceilings of one thread: read bandwidth from memory and cache, int8 dot products, float fma.
// Compiled for each ISA by function attribute and chosen at run time, as the kernels are.
// GCC 12's own intrinsics trip this (its bug 105593): they begin from an undefined register.
#pragma GCC diagnostic ignored "-Wuninitialized"

#include <immintrin.h>

#include <cstdlib>

#include "kernels_bench.h"

namespace moesaic::bench {
namespace {

__attribute__((target("avx2"))) std::uint64_t read_all(const std::uint8_t* p, std::size_t n) {
  __m256i a = _mm256_setzero_si256();
  __m256i b = a;
  __m256i c = a;
  __m256i d = a;
  for (std::size_t i = 0; i + 128 <= n; i += 128) {
    const auto* v = reinterpret_cast<const __m256i*>(p + i);
    a = _mm256_xor_si256(a, _mm256_loadu_si256(v));
    b = _mm256_xor_si256(b, _mm256_loadu_si256(v + 1));
    c = _mm256_xor_si256(c, _mm256_loadu_si256(v + 2));
    d = _mm256_xor_si256(d, _mm256_loadu_si256(v + 3));
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(a, b), _mm256_xor_si256(c, d));
  return static_cast<std::uint64_t>(_mm256_extract_epi64(all, 0));
}

constexpr int kSteps = 100000;

// Ten chains each, with seeds of their own lest they be found equal: enough to hide the latency of
// two units.

__attribute__((target("avx512f,avx512bw,avx512vnni"))) int dot_512(int seed) {
  __m512i x = _mm512_set1_epi8(3);
  __m512i a0 = _mm512_set1_epi32(seed + 0);
  __m512i a1 = _mm512_set1_epi32(seed + 1);
  __m512i a2 = _mm512_set1_epi32(seed + 2);
  __m512i a3 = _mm512_set1_epi32(seed + 3);
  __m512i a4 = _mm512_set1_epi32(seed + 4);
  __m512i a5 = _mm512_set1_epi32(seed + 5);
  __m512i a6 = _mm512_set1_epi32(seed + 6);
  __m512i a7 = _mm512_set1_epi32(seed + 7);
  __m512i a8 = _mm512_set1_epi32(seed + 8);
  __m512i a9 = _mm512_set1_epi32(seed + 9);
  for (int i = 0; i < kSteps; ++i) {
    __asm__ volatile("" : "+v"(x));
    a0 = _mm512_dpbusd_epi32(a0, x, x);
    a1 = _mm512_dpbusd_epi32(a1, x, x);
    a2 = _mm512_dpbusd_epi32(a2, x, x);
    a3 = _mm512_dpbusd_epi32(a3, x, x);
    a4 = _mm512_dpbusd_epi32(a4, x, x);
    a5 = _mm512_dpbusd_epi32(a5, x, x);
    a6 = _mm512_dpbusd_epi32(a6, x, x);
    a7 = _mm512_dpbusd_epi32(a7, x, x);
    a8 = _mm512_dpbusd_epi32(a8, x, x);
    a9 = _mm512_dpbusd_epi32(a9, x, x);
  }
  return _mm_cvtsi128_si32(_mm512_castsi512_si128(_mm512_add_epi32(
      _mm512_add_epi32(
          _mm512_add_epi32(
              _mm512_add_epi32(
                  _mm512_add_epi32(
                      _mm512_add_epi32(
                          _mm512_add_epi32(_mm512_add_epi32(_mm512_add_epi32(a0, a1), a2), a3), a4),
                      a5),
                  a6),
              a7),
          a8),
      a9)));
}

__attribute__((target("avx2"))) int dot_256(int seed) {
  __m256i x = _mm256_set1_epi8(3);
  __m256i a0 = _mm256_set1_epi32(seed + 0);
  __m256i a1 = _mm256_set1_epi32(seed + 1);
  __m256i a2 = _mm256_set1_epi32(seed + 2);
  __m256i a3 = _mm256_set1_epi32(seed + 3);
  __m256i a4 = _mm256_set1_epi32(seed + 4);
  __m256i a5 = _mm256_set1_epi32(seed + 5);
  __m256i a6 = _mm256_set1_epi32(seed + 6);
  __m256i a7 = _mm256_set1_epi32(seed + 7);
  __m256i a8 = _mm256_set1_epi32(seed + 8);
  __m256i a9 = _mm256_set1_epi32(seed + 9);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int i = 0; i < kSteps; ++i) {
    __asm__ volatile("" : "+x"(x));
    a0 = _mm256_add_epi32(a0, _mm256_madd_epi16(_mm256_maddubs_epi16(x, a0), ones));
    a1 = _mm256_add_epi32(a1, _mm256_madd_epi16(_mm256_maddubs_epi16(x, a1), ones));
    a2 = _mm256_add_epi32(a2, _mm256_madd_epi16(_mm256_maddubs_epi16(x, a2), ones));
    a3 = _mm256_add_epi32(a3, _mm256_madd_epi16(_mm256_maddubs_epi16(x, a3), ones));
    a4 = _mm256_add_epi32(a4, _mm256_madd_epi16(_mm256_maddubs_epi16(x, a4), ones));
    a5 = _mm256_add_epi32(a5, _mm256_madd_epi16(_mm256_maddubs_epi16(x, a5), ones));
    a6 = _mm256_add_epi32(a6, _mm256_madd_epi16(_mm256_maddubs_epi16(x, a6), ones));
    a7 = _mm256_add_epi32(a7, _mm256_madd_epi16(_mm256_maddubs_epi16(x, a7), ones));
    a8 = _mm256_add_epi32(a8, _mm256_madd_epi16(_mm256_maddubs_epi16(x, a8), ones));
    a9 = _mm256_add_epi32(a9, _mm256_madd_epi16(_mm256_maddubs_epi16(x, a9), ones));
  }
  return _mm_cvtsi128_si32(_mm256_castsi256_si128(_mm256_add_epi32(
      _mm256_add_epi32(
          _mm256_add_epi32(
              _mm256_add_epi32(
                  _mm256_add_epi32(
                      _mm256_add_epi32(
                          _mm256_add_epi32(_mm256_add_epi32(_mm256_add_epi32(a0, a1), a2), a3), a4),
                      a5),
                  a6),
              a7),
          a8),
      a9)));
}

__attribute__((target("avx512f"))) float fma_512(float seed) {
  __m512 x = _mm512_set1_ps(0.999F);
  __m512 a0 = _mm512_set1_ps(seed + 0);
  __m512 a1 = _mm512_set1_ps(seed + 1);
  __m512 a2 = _mm512_set1_ps(seed + 2);
  __m512 a3 = _mm512_set1_ps(seed + 3);
  __m512 a4 = _mm512_set1_ps(seed + 4);
  __m512 a5 = _mm512_set1_ps(seed + 5);
  __m512 a6 = _mm512_set1_ps(seed + 6);
  __m512 a7 = _mm512_set1_ps(seed + 7);
  __m512 a8 = _mm512_set1_ps(seed + 8);
  __m512 a9 = _mm512_set1_ps(seed + 9);
  for (int i = 0; i < kSteps; ++i) {
    __asm__ volatile("" : "+v"(x));
    a0 = _mm512_fmadd_ps(a0, x, x);
    a1 = _mm512_fmadd_ps(a1, x, x);
    a2 = _mm512_fmadd_ps(a2, x, x);
    a3 = _mm512_fmadd_ps(a3, x, x);
    a4 = _mm512_fmadd_ps(a4, x, x);
    a5 = _mm512_fmadd_ps(a5, x, x);
    a6 = _mm512_fmadd_ps(a6, x, x);
    a7 = _mm512_fmadd_ps(a7, x, x);
    a8 = _mm512_fmadd_ps(a8, x, x);
    a9 = _mm512_fmadd_ps(a9, x, x);
  }
  return _mm_cvtss_f32(_mm512_castps512_ps128(_mm512_add_ps(
      _mm512_add_ps(
          _mm512_add_ps(
              _mm512_add_ps(
                  _mm512_add_ps(
                      _mm512_add_ps(_mm512_add_ps(_mm512_add_ps(_mm512_add_ps(a0, a1), a2), a3),
                                    a4),
                      a5),
                  a6),
              a7),
          a8),
      a9)));
}

__attribute__((target("avx2,fma"))) float fma_256(float seed) {
  __m256 x = _mm256_set1_ps(0.999F);
  __m256 a0 = _mm256_set1_ps(seed + 0);
  __m256 a1 = _mm256_set1_ps(seed + 1);
  __m256 a2 = _mm256_set1_ps(seed + 2);
  __m256 a3 = _mm256_set1_ps(seed + 3);
  __m256 a4 = _mm256_set1_ps(seed + 4);
  __m256 a5 = _mm256_set1_ps(seed + 5);
  __m256 a6 = _mm256_set1_ps(seed + 6);
  __m256 a7 = _mm256_set1_ps(seed + 7);
  __m256 a8 = _mm256_set1_ps(seed + 8);
  __m256 a9 = _mm256_set1_ps(seed + 9);
  for (int i = 0; i < kSteps; ++i) {
    __asm__ volatile("" : "+x"(x));
    a0 = _mm256_fmadd_ps(a0, x, x);
    a1 = _mm256_fmadd_ps(a1, x, x);
    a2 = _mm256_fmadd_ps(a2, x, x);
    a3 = _mm256_fmadd_ps(a3, x, x);
    a4 = _mm256_fmadd_ps(a4, x, x);
    a5 = _mm256_fmadd_ps(a5, x, x);
    a6 = _mm256_fmadd_ps(a6, x, x);
    a7 = _mm256_fmadd_ps(a7, x, x);
    a8 = _mm256_fmadd_ps(a8, x, x);
    a9 = _mm256_fmadd_ps(a9, x, x);
  }
  return _mm_cvtss_f32(_mm256_castps256_ps128(_mm256_add_ps(
      _mm256_add_ps(
          _mm256_add_ps(
              _mm256_add_ps(
                  _mm256_add_ps(
                      _mm256_add_ps(_mm256_add_ps(_mm256_add_ps(_mm256_add_ps(a0, a1), a2), a3),
                                    a4),
                      a5),
                  a6),
              a7),
          a8),
      a9)));
}

volatile std::uint64_t sink;

}  // namespace

Ceilings measure_ceilings() {
  Ceilings out{};
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return out;
  const bool has_512 = __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw");
  std::vector<std::uint8_t> big(512U << 20, 1);
  const std::size_t small = 256U << 10;
  const double read = best_seconds(1.0, [&] { sink = sink + read_all(big.data(), big.size()); });
  const double cached = best_seconds(0.05, [&] { sink = sink + read_all(big.data(), small); });
  out.read_gb_per_s = static_cast<double>(big.size()) / read / 1e9;
  out.cache_gb_per_s = static_cast<double>(small) / cached / 1e9;
  const double dot = best_seconds(
      0.1, [&] { sink = sink + static_cast<std::uint64_t>(has_512 ? dot_512(1) : dot_256(1)); });
  out.int8_gop_per_s = kSteps * (has_512 ? 10.0 * 128 : 10.0 * 64) / dot / 1e9;
  const double fma = best_seconds(0.4, [&] {
    sink = sink + static_cast<std::uint64_t>(has_512 ? fma_512(1.0F) : fma_256(1.0F));
  });
  out.f32_gflop_per_s = kSteps * (has_512 ? 10.0 * 32 : 10.0 * 16) / fma / 1e9;
  return out;
}

}  // namespace moesaic::bench
