// Small pieces that both skeletons use.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace moesaic::kernels {

// Eight rows of eight numbers -> their eight sums.
template <class X>
[[gnu::always_inline]] inline __m256i add_rows_8(const std::int32_t (*rows)[8]) {
  const auto row = [&](int i) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(rows[i]));
  };
  const auto pair32 = [](__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
  };
  const auto pair64 = [](__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
  };
  const __m256i low = pair64(pair32(row(0), row(1)), pair32(row(2), row(3)));
  const __m256i high = pair64(pair32(row(4), row(5)), pair32(row(6), row(7)));
  return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20),
                          _mm256_permute2x128_si256(low, high, 0x31));
}

// Rows of eight dwords to columns.
template <class X>
[[gnu::always_inline]] inline void transpose_8x8(__m256i (&r)[8]) {
  __m256i t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm256_permute2x128_si256(r[j], r[4 + j], 0x20);
    t[4 + j] = _mm256_permute2x128_si256(r[j], r[4 + j], 0x31);
  }
  for (int j = 0; j < 8; ++j) r[j] = t[j];
}

// Asks for the memory that a stream of weights reaches soon: n_bytes from kAheadBytes after p.
// The processor's own prefetchers end at the borders of pages; far ahead is best (NOTES.md).
inline constexpr int kAheadBytes = 8192;
[[gnu::always_inline]] inline void fetch_ahead(const std::uint8_t* p, int n_bytes) {
  for (int i = 0; i < n_bytes; i += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(p) + kAheadBytes + i, _MM_HINT_T0);
  }
}

}  // namespace moesaic::kernels
