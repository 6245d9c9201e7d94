// The lattice types against a few columns without masks: signs go to the activations (one
// instruction a column), and what a block needs of signs and scales is put together once, for all
// of it. A type here gives Few (x86/super_few.h); what it does not change it inherits from
// x86/super_iq_types.h, panels among it. IQ1 is in x86/few_iq1.h.
#pragma once

#include "kernels/avx2/isa.h"
#include "kernels/x86/few_iq1.h"

namespace moesaic::kernels::avx2 {

// 32 bytes, halves apart so that each is in both halves of a register.
struct Twice {
  __m256i first;
  __m256i second;

  static Twice of(__m256i x) {
    return {_mm256_permute4x64_epi64(x, 0x44), _mm256_permute4x64_epi64(x, 0xEE)};
  }
  // The same of 64-bit parts in the order 0, 2, 1, 3, as packing leaves them.
  static Twice of_packed(__m256i x) {
    return {_mm256_permute4x64_epi64(x, 0x88), _mm256_permute4x64_epi64(x, 0xDD)};
  }
  // Bytes 4 g .. 4 g + 3, each eight times.
  template <int g>
  __m256i eight_times() const {
    constexpr long long kOnes = 0x0101010101010101;
    constexpr long long kAt = g % 4 * 4;
    return _mm256_shuffle_epi8(
        g < 4 ? first : second,
        _mm256_setr_epi64x(kAt * kOnes, (kAt + 1) * kOnes, (kAt + 2) * kOnes, (kAt + 3) * kOnes));
  }
  template <int c>
  Ints::B quarter() const {
    return {eight_times<2 * c>(), eight_times<2 * c + 1>()};
  }
};

// Sub-scales where the shuffles of signs and points leave no register for patterns of shuffling:
// 32-bit number g of the low half is that of group 2 g of 16 values, twice, of the high half that
// of group 2 g + 1.
struct Scales {
  __m256i first;
  __m256i second;  // of the second half of the block

  static Scales of_sixteen(__m256i words) {
    const __m256i even = _mm256_blend_epi16(words, _mm256_slli_epi32(words, 16), 0xAA);
    const __m256i odd = _mm256_blend_epi16(_mm256_srli_epi32(words, 16), words, 0xAA);
    return {_mm256_permute2x128_si256(even, odd, 0x20), _mm256_permute2x128_si256(even, odd, 0x31)};
  }
  // From eight 32-bit numbers below 2^15, one per 32 values.
  static Scales of_eight(__m256i scales) {
    const Twice x = Twice::of(_mm256_or_si256(scales, _mm256_slli_epi32(scales, 16)));
    return {x.first, x.second};
  }
  // Those of values 32 g .. 32 g + 31, one per 128 bits.
  template <int g>
  __m256i at() const {
    return _mm256_shuffle_epi32(g < 4 ? first : second, g % 4 * 0x55);
  }
};

// Signs of a block: bit i of byte k is that of value 8 k + i.
struct SignBits {
  Twice bytes;

  // Seven bits a byte, completed to an even number.
  static __m256i even(__m256i sevens) {
    const __m256i odd_nibbles = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
    const __m256i folded =
        _mm256_and_si256(_mm256_xor_si256(sevens, _mm256_srli_epi16(sevens, 4)), Ints::bytes(15));
    return _mm256_or_si256(sevens, _mm256_shuffle_epi8(odd_nibbles, folded));
  }
  // Four 7-bit fields of each word -> its four bytes.
  static __m256i fields(__m256i words) {
    const auto split = [](__m256i x, __m256i moved, int low, int high) {
      return _mm256_or_si256(_mm256_and_si256(x, _mm256_set1_epi32(low)),
                             _mm256_and_si256(moved, _mm256_set1_epi32(high)));
    };
    const __m256i two = split(words, _mm256_slli_epi32(words, 2), 0x3FFF, 0x3FFF0000);
    return split(two, _mm256_add_epi16(two, two), 0x007F007F, 0x7F007F00);
  }
  // 1, or -1 where the sign is set, of group g of 32 values.
  template <int g>
  __m256i at() const {
    const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ULL));
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes.eight_times<g>(), bit), bit);
    return _mm256_or_si256(set, Ints::bytes(1));
  }
};

// Type is what is inherited.
template <class Type>
struct SignedFew {
  static constexpr int kOffset = 0;
  const typename Type::Block* block;
  SignBits signs;
  Scales scales;

  template <int c>
  [[gnu::always_inline]] Ints::B values() const {
    return Type::template magnitudes<c>(*block);
  }
  template <int c>
  [[gnu::always_inline]] Ints::Acc step(Ints::Acc acc, Ints::B w, const std::int8_t* a) const {
    return Ints::step_of<c>(acc, w,
                            {_mm256_sign_epi8(Ints::load256(a), signs.at<2 * c>()),
                             _mm256_sign_epi8(Ints::load256(a + 32), signs.at<2 * c + 1>())},
                            scales);
  }
};

// Seven signs a point and, in the top bits, a scale: eight words.
struct SignWords {
  static SignBits signs(__m256i words) {
    return {Twice::of(SignBits::even(SignBits::fields(words)))};
  }
  static Scales scales(__m256i words) {  // 2 n + 1
    const __m256i n = _mm256_srli_epi32(words, 28);
    return Scales::of_eight(_mm256_add_epi32(_mm256_add_epi32(n, n), _mm256_set1_epi32(1)));
  }
};

struct FewIQ2XXS : IQ2XXS<Ints> {
  static constexpr bool kHasFew = true;

  struct Few : SignedFew<FewIQ2XXS> {
    [[gnu::always_inline]] explicit Few(const Block& b) : Few(b, words(b)) {}
    Few(const Block& b, __m256i words)
        : SignedFew{&b, SignWords::signs(words), SignWords::scales(words)} {}
    static __m256i words(const Block& b) {  // every second one
      const auto part = [&](int at) { return _mm256_castsi256_ps(Ints::load256(b.qs + at)); };
      const __m256i x = _mm256_castps_si256(_mm256_shuffle_ps(part(0), part(16), 0xDD));
      return _mm256_permute4x64_epi64(x, 0xD8);
    }
  };
};

struct FewIQ2XS : IQ2XS<Ints> {
  static constexpr bool kHasFew = true;

  struct Few : SignedFew<FewIQ2XS> {
    [[gnu::always_inline]] explicit Few(const Block& b)
        : SignedFew{&b, signs(b), Scales::of_sixteen(_mm256_cvtepi8_epi16(FewIQ2XS::scales(b)))} {}
    static SignBits signs(const Block& b) {
      const auto part = [&](int at) { return _mm256_srli_epi16(Ints::load256(b.qs + at), 9); };
      return {Twice::of_packed(SignBits::even(_mm256_packus_epi16(part(0), part(16))))};
    }
  };
};

struct FewIQ2S : IQ2S<Ints> {
  static constexpr bool kHasFew = true;

  struct Few : SignedFew<FewIQ2S> {
    [[gnu::always_inline]] explicit Few(const Block& b)
        : SignedFew{&b,
                    {Twice::of(Ints::load256(b.signs))},
                    Scales::of_sixteen(_mm256_cvtepi8_epi16(FewIQ2S::scales(b)))} {}
  };
};

// Points of four bytes by pairs in general registers, which have twice the loads of vectors: the
// second one from a table where it is shifted already.
struct PointPairs {
  static inline std::uint64_t shifted[256] = {};
  static void fill() {
    for (std::size_t i = 0; i < 256; ++i) {
      shifted[i] = static_cast<std::uint64_t>(quant::kIq3xxsGrid[i]) << 32;
    }
  }
  [[gnu::always_inline]] static Ints::B points(const std::uint8_t* index) {
    const auto pair = [&](int j) {
      return static_cast<long long>(quant::kIq3xxsGrid[index[j]] | shifted[index[j + 1]]);
    };
    return {_mm256_set_epi64x(pair(6), pair(4), pair(2), pair(0)),
            _mm256_set_epi64x(pair(14), pair(12), pair(10), pair(8))};
  }
};

struct FewIQ3XXS : IQ3XXS<Ints> {
  static constexpr bool kHasFew = true;

  template <int c>
  [[gnu::always_inline]] static B magnitudes(const Block& b) {
    return PointPairs::points(b.qs + 16 * c);
  }

  struct Few : SignedFew<FewIQ3XXS> {
    [[gnu::always_inline]] explicit Few(const Block& b) : Few(b, words(b)) {}
    Few(const Block& b, __m256i words)
        : SignedFew{&b, SignWords::signs(words), SignWords::scales(words)} {}
    static __m256i words(const Block& b) {
      return Ints::load256(reinterpret_cast<const std::uint8_t*>(&b) + offsetof(Block, signs));
    }
  };
};

struct FewIQ3S : IQ3S<Ints> {
  static constexpr bool kHasFew = true;

  struct Few : SignedFew<FewIQ3S> {
    [[gnu::always_inline]] explicit Few(const Block& b)
        : SignedFew{&b,
                    {Twice::of(Ints::load256(b.signs))},
                    Scales::of_sixteen(_mm256_cvtepi8_epi16(FewIQ3S::scales(b)))} {}
  };
};

// What x86/few_iq1.h needs beside Ints.
struct FewParts {
  using Scales = avx2::Scales;
  using EightTimes = Twice;
};

}  // namespace moesaic::kernels::avx2
