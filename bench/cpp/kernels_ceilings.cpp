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

__attribute__((target("avx512f,avx512bw,avx512vnni"))) int dot_512(int seed) {
  __m512i acc[12];
  for (auto& a : acc) a = _mm512_set1_epi32(seed);
  const __m512i x = _mm512_set1_epi8(3);
  for (int i = 0; i < kSteps; ++i) {
    for (auto& a : acc) a = _mm512_dpbusd_epi32(a, x, x);
    __asm__ volatile("" : "+v"(acc[0]));
  }
  int sum = 0;
  for (const auto& a : acc) sum += _mm512_reduce_add_epi32(a);
  return sum;
}

__attribute__((target("avx2"))) int dot_256(int seed) {
  __m256i acc[8];
  for (auto& a : acc) a = _mm256_set1_epi32(seed);
  __m256i x = _mm256_set1_epi8(3);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int i = 0; i < kSteps; ++i) {
    for (auto& a : acc) {
      __asm__ volatile("" : "+x"(x));
      a = _mm256_add_epi32(a, _mm256_madd_epi16(_mm256_maddubs_epi16(x, x), ones));
    }
  }
  int sum = 0;
  for (const auto& a : acc) sum += _mm256_extract_epi32(a, 0);
  return sum;
}

__attribute__((target("avx512f"))) float fma_512(float seed) {
  __m512 acc[12];
  for (auto& a : acc) a = _mm512_set1_ps(seed);
  const __m512 x = _mm512_set1_ps(0.999F);
  for (int i = 0; i < kSteps; ++i) {
    for (auto& a : acc) a = _mm512_fmadd_ps(a, x, x);
    __asm__ volatile("" : "+v"(acc[0]));
  }
  float sum = 0.0F;
  for (const auto& a : acc) sum += _mm512_cvtss_f32(a);
  return sum;
}

__attribute__((target("avx2,fma"))) float fma_256(float seed) {
  __m256 acc[12];
  for (auto& a : acc) a = _mm256_set1_ps(seed);
  const __m256 x = _mm256_set1_ps(0.999F);
  for (int i = 0; i < kSteps; ++i) {
    for (auto& a : acc) a = _mm256_fmadd_ps(a, x, x);
    __asm__ volatile("" : "+x"(acc[0]));
  }
  float sum = 0.0F;
  for (const auto& a : acc) sum += _mm256_cvtss_f32(a);
  return sum;
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
  out.int8_gop_per_s = kSteps * (has_512 ? 12.0 * 128 : 8.0 * 64) / dot / 1e9;
  const double fma = best_seconds(0.4, [&] {
    sink = sink + static_cast<std::uint64_t>(has_512 ? fma_512(1.0F) : fma_256(1.0F));
  });
  out.f32_gflop_per_s = kSteps * (has_512 ? 12.0 * 32 : 12.0 * 16) / fma / 1e9;
  return out;
}

}  // namespace moesaic::bench
