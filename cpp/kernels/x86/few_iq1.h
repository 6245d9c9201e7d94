// IQ1 against a few columns: points come from a table that has them times eight and unsigned, so
// that deltas of an eighth are whole numbers. Where 32 values share one (IQ1_S) it goes to the sums
// of activations; where eight do (IQ1_M), to the bytes. Panels and all else are those of
// super_iq_types.h. Parts names two more forms of a vocabulary (avx2/lattice.h,
// avx512/ints.h):
//   Scales       of_eight(), of_sixteen(): what X::step_of takes
//   EightTimes   of(): 32 bytes; quarter<c>(): bytes 8 c .. 8 c + 7, each eight times
#pragma once

#include "kernels/x86/super_iq_types.h"

namespace moesaic::kernels {

// Bytes of 8 point + 16. Filled before a table is used, not at the start of the program: this may
// be code that the processor does not have.
template <class X>
struct RaisedPoints {
  static constexpr int kOffset = 16;
  alignas(64) static inline std::uint64_t table[2048] = {};
  static void fill() {
    // Byte by byte, none carries into the next: 8 (point + 2).
    for (std::size_t i = 0; i < 2048; ++i) {
      table[i] = 8 * ((quant::kIq1sGrid[i] ^ 0x8080808080808080ULL) - 0x7E7E7E7E7E7E7E7EULL);
    }
  }
  // Of values 64 c .. 64 c + 63.
  template <int c, class Type>
  [[gnu::always_inline]] static typename X::B points(const typename Type::Block& b) {
    return indexed_points<X>(table, Type::indices(b, 2 * c), Type::indices(b, 2 * c + 1));
  }
};

template <class X, class Parts>
struct FewIQ1S : IQ1S<X> {
  using Type = IQ1S<X>;
  using typename Type::Block;
  static constexpr bool kHasFew = true;

  struct Few {
    static constexpr int kOffset = RaisedPoints<X>::kOffset;
    const Block* block;
    typename Parts::Scales scales;
    __m128i eight_factors;

    [[gnu::always_inline]] explicit Few(const Block& b) : block(&b) {
      const __m128i qh = X::load128(b.qh);
      const __m128i n = _mm_and_si128(_mm_srli_epi16(qh, 12), _mm_set1_epi16(7));
      const __m128i scale = _mm_add_epi16(_mm_add_epi16(n, n), _mm_set1_epi16(1));
      scales = Parts::Scales::of_eight(_mm256_cvtepu16_epi32(scale));
      const __m128i minus = _mm_srai_epi16(qh, 15);  // -1 where the delta is -1, not 1
      eight_factors = _mm_mullo_epi16(
          scale, _mm_add_epi16(_mm_add_epi16(minus, minus), _mm_set1_epi16(1 - kOffset)));
    }
    // Per 16 values: scale times what undoes the offset and adds the delta.
    __m256i factors() const {
      const __m256i x = _mm256_cvtepu16_epi32(eight_factors);
      return _mm256_or_si256(x, _mm256_slli_epi32(x, 16));
    }
    template <int c>
    [[gnu::always_inline]] typename X::B values() const {
      return RaisedPoints<X>::template points<c, Type>(*block);
    }
    template <int c>
    [[gnu::always_inline]] typename X::Acc step(typename X::Acc acc, typename X::B w,
                                                const std::int8_t* a) const {
      return X::template step_of<c>(acc, w, X::load64(a), scales);
    }
  };
};

template <class X, class Parts>
struct FewIQ1M : IQ1M<X> {
  using Type = IQ1M<X>;
  using typename Type::Block;
  static constexpr bool kHasFew = true;

  struct Few {
    static constexpr int kOffset = RaisedPoints<X>::kOffset;
    const Block* block;
    __m256i words;  // of scales
    typename Parts::Scales scales;
    typename Parts::EightTimes deltas;

    [[gnu::always_inline]] explicit Few(const Block& b) : block(&b) {
      words = _mm256_cvtepi8_epi16(Type::scales(b));
      scales = Parts::Scales::of_sixteen(words);
      // A nibble of qh has its point's delta in bit 3: as the top bits of bytes.
      const __m128i qh = X::load128(b.qh);
      const __m128i low = _mm_slli_epi16(qh, 4);
      const __m256i nibbles =
          _mm256_set_m128i(_mm_unpackhi_epi8(low, qh), _mm_unpacklo_epi8(low, qh));
      const __m256i minus = _mm256_cmpgt_epi8(_mm256_setzero_si256(), nibbles);
      deltas = Parts::EightTimes::of(_mm256_or_si256(minus, _mm256_set1_epi8(1)));
    }
    __m256i factors() const { return _mm256_mullo_epi16(words, _mm256_set1_epi16(-kOffset)); }
    template <int c>
    [[gnu::always_inline]] typename X::B values() const {
      return X::add(RaisedPoints<X>::template points<c, Type>(*block),
                    deltas.template quarter<c>());
    }
    template <int c>
    [[gnu::always_inline]] typename X::Acc step(typename X::Acc acc, typename X::B w,
                                                const std::int8_t* a) const {
      return X::template step_of<c>(acc, w, X::load64(a), scales);
    }
  };
};

}  // namespace moesaic::kernels
