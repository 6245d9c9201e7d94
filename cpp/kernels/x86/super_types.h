// Unpacking of the super-block types into bytes, over the vocabulary X (avx2/ints.h,
// avx512/ints.h). This is all that a type says; the skeletons in super_few.h and super_many.h do
// the rest. Bit layouts are tabled in quant/<type>.h; the meaning of value, scale and min is that
// of unpack.h.
//
// A type gives:
//   kQtype, kBytes       which type, bytes of a block
//   kHasMin              it has minima and a second float
//   kOffset              values are stored with this added, so that they are unsigned (<= 128)
//   kWide                values are signed bytes of any size instead (X::widen, X::dot_wide)
//   kTop                 the largest stored value
//   kFoldable            value times sub-scale fits a byte: fold() gives kFoldOffset + that, or
//                        minus that where kFoldNegative
//   kScaled              it has sub-scales; kGroup: how many values share one (16 or 32)
//   kFactor              the float scale is this times the stored one
//   Head, head()         what is loaded once for a block
//   values<c>()          bytes 64 c .. 64 c + 63
//   scales(), mins()     sixteen signed bytes, one per 16 values
//   d(), dmin()          bits of the stored f16
//   kFillsPanels         it has a way of its own to a panel's block: turned blocks, each_eighth()
//                        (avx512vnni/folded_panels.h); kDirectTo: columns up to which they go
//                        without one
//   kManyFrom            columns from which panels are faster, where not X::kManyFrom
//   kQuads               it unpacks four groups of 32 at a time for few columns: unpack_quad(),
//                        group_scales() (avx512vnni/nibbles.h)
//   kHasFew              it has a form of its own for few columns: Few, made from a block
//                        (avx2/lattice.h)
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "quant/grids.h"
#include "quant/iq1_m.h"
#include "quant/iq1_s.h"
#include "quant/iq2_s.h"
#include "quant/iq2_xs.h"
#include "quant/iq2_xxs.h"
#include "quant/iq3_s.h"
#include "quant/iq3_xxs.h"
#include "quant/iq4_xs.h"
#include "quant/q2_k.h"
#include "quant/q3_k.h"
#include "quant/q4_k.h"
#include "quant/q5_k.h"
#include "quant/q6_k.h"
#include "quant/qtype.h"
#include "quant/tq1_0.h"
#include "quant/tq2_0.h"

namespace moesaic::kernels {

// What most types share; a type overrides by hiding.
template <class X, class Block_, quant::Qtype type>
struct SuperTypeBase {
  using B = typename X::B;
  using Block = Block_;
  static constexpr quant::Qtype kQtype = type;
  static constexpr int kBytes = sizeof(Block);
  static constexpr bool kHasMin = false;
  static constexpr bool kWide = false;
  static constexpr bool kScaled = true;
  static constexpr bool kQuads = false;
  static constexpr bool kHasFew = false;
  static constexpr bool kFillsPanels = false;
  static constexpr int kManyFrom = 0;
  static constexpr bool kFoldable = false;
  static constexpr bool kFoldNegative = false;
  static constexpr int kFoldOffset = 0;
  static constexpr int kOffset = 0;
  static constexpr int kTop = 127;
  static constexpr int kGroup = 16;
  static constexpr float kFactor = 1.0F;

  struct Head {};
  static Head head(const Block&) { return {}; }
  static __m128i scales(const Block&) { return _mm_set1_epi8(1); }
  static __m128i mins(const Block&) { return _mm_setzero_si128(); }
  static B fold(B values, B) { return values; }
  static std::uint16_t d(const Block& b) { return b.d; }
  static std::uint16_t dmin(const Block&) { return 0; }

  template <typename Word>
  static Word word(const void* p) {
    Word w;
    __builtin_memcpy(&w, p, sizeof(Word));
    return w;
  }
  // Eight bytes, each twice: a number per 32 values -> per 16.
  static __m128i twice(std::uint64_t bytes) {
    const __m128i x = _mm_cvtsi64_si128(static_cast<long long>(bytes));
    return _mm_unpacklo_epi8(x, x);
  }
  // Eight bytes of nibbles -> sixteen bytes, low nibble first.
  static __m128i nibbles16(std::uint64_t bytes) {
    const __m128i x = _mm_cvtsi64_si128(static_cast<long long>(bytes));
    return _mm_and_si128(_mm_unpacklo_epi8(x, _mm_srli_epi16(x, 4)), _mm_set1_epi8(15));
  }
  static __m128i odd(__m128i x) {  // 2 x + 1
    return _mm_add_epi8(_mm_add_epi8(x, x), _mm_set1_epi8(1));
  }
};

template <class X>
struct Q2K : SuperTypeBase<X, quant::BlockQ2_K, quant::Qtype::kQ2_K> {
  using Base = SuperTypeBase<X, quant::BlockQ2_K, quant::Qtype::kQ2_K>;
  using typename Base::B;
  using typename Base::Block;
  using typename Base::Head;
  static constexpr bool kHasMin = true;
  static constexpr bool kFoldable = true;
  static constexpr int kTop = 3;

  static B fold(B values, B scales) { return X::multiply(values, scales); }  // <= 45
  template <int c>
  static B values(const Block& b, const Head&) {
    constexpr int kShift = c % 2 * 4;
    return X::template field<kShift, kShift + 2, 0, 3>(X::dup32(b.qs + c / 2 * 32));
  }
  static __m128i scales(const Block& b) {
    return _mm_and_si128(X::load128(b.scales), _mm_set1_epi8(15));
  }
  static __m128i mins(const Block& b) {
    return _mm_and_si128(_mm_srli_epi16(X::load128(b.scales), 4), _mm_set1_epi8(15));
  }
  static std::uint16_t dmin(const Block& b) { return b.dmin; }
};

template <class X>
struct Q3K : SuperTypeBase<X, quant::BlockQ3_K, quant::Qtype::kQ3_K> {
  using Base = SuperTypeBase<X, quant::BlockQ3_K, quant::Qtype::kQ3_K>;
  using typename Base::B;
  using typename Base::Block;
  static constexpr int kOffset = 4;
  static constexpr int kTop = 7;
  static constexpr bool kFoldable = true;
  static constexpr bool kFoldNegative = true;
  static constexpr int kFoldOffset = 128;

  struct Head {
    B high;
  };
  static Head head(const Block& b) { return {X::dup32(b.hmask)}; }
  // 128 - (value - 4) scale: 4 - value is in -3 .. 4 and scale in -32 .. 31, so 4 .. 252.
  static B fold(B values, B scales) {
    return X::add(X::multiply(X::subtract(X::set1(4), values), scales), X::set1(128));
  }

  template <int c>
  static B values(const Block& b, const Head& h) {
    constexpr int kShift = c % 2 * 4;
    const B low = X::template field<kShift, kShift + 2, 0, 3>(X::dup32(b.qs + c / 2 * 32));
    return X::template add_where_bit<2 * c, 2 * c + 1>(low, h.high, 4);
  }
  static __m128i scales(const Block& b) {
    const auto low0 = Base::template word<std::uint32_t>(b.scales);
    const auto low1 = Base::template word<std::uint32_t>(b.scales + 4);
    const auto high = Base::template word<std::uint32_t>(b.scales + 8);
    const auto join = [&](std::uint32_t low, int shift) {
      return static_cast<int>((low & 0x0F0F0F0FU) | (((high >> shift) & 0x03030303U) << 4));
    };
    const __m128i packed =
        _mm_setr_epi32(join(low0, 0), join(low1, 2), join(low0 >> 4, 4), join(low1 >> 4, 6));
    return _mm_sub_epi8(packed, _mm_set1_epi8(32));
  }
};

// The 12 bytes of scales and minima of Q4_K and Q5_K (quant/k_scales.h), each twice.
template <class X, class Block, quant::Qtype type>
struct KScaled : SuperTypeBase<X, Block, type> {
  using Base = SuperTypeBase<X, Block, type>;
  static constexpr bool kHasMin = true;
  static constexpr int kGroup = 32;

  static __m128i scales(const Block& b) {
    const auto low = Base::template word<std::uint32_t>(b.scales);
    const auto mixed = Base::template word<std::uint32_t>(b.scales + 8);
    const std::uint64_t high = (mixed & 0x0F0F0F0FU) | ((low >> 2) & 0x30303030U);
    return Base::twice((low & 0x3F3F3F3FU) | (high << 32));
  }
  static __m128i mins(const Block& b) {
    const auto low = Base::template word<std::uint32_t>(b.scales + 4);
    const auto mixed = Base::template word<std::uint32_t>(b.scales + 8);
    const std::uint64_t high = ((mixed >> 4) & 0x0F0F0F0FU) | ((low >> 2) & 0x30303030U);
    return Base::twice((low & 0x3F3F3F3FU) | (high << 32));
  }
  static std::uint16_t dmin(const Block& b) { return b.dmin; }
};

template <class X>
struct Q4K : KScaled<X, quant::BlockQ4_K, quant::Qtype::kQ4_K> {
  using Base = KScaled<X, quant::BlockQ4_K, quant::Qtype::kQ4_K>;
  using typename Base::B;
  using typename Base::Block;
  using typename Base::Head;
  static constexpr int kTop = 15;

  template <int c>
  static B values(const Block& b, const Head&) {
    return X::template field<0, 4, 0, 15>(X::dup32(b.qs + 32 * c));
  }
};

template <class X>
struct Q5K : KScaled<X, quant::BlockQ5_K, quant::Qtype::kQ5_K> {
  using Base = KScaled<X, quant::BlockQ5_K, quant::Qtype::kQ5_K>;
  using typename Base::B;
  using typename Base::Block;
  static constexpr int kTop = 31;

  struct Head {
    B high;
  };
  static Head head(const Block& b) { return {X::dup32(b.qh)}; }

  template <int c>
  static B values(const Block& b, const Head& h) {
    const B low = X::template field<0, 4, 0, 15>(X::dup32(b.qs + 32 * c));
    return X::template add_where_bit<2 * c, 2 * c + 1>(low, h.high, 16);
  }
};

template <class X>
struct Q6K : SuperTypeBase<X, quant::BlockQ6_K, quant::Qtype::kQ6_K> {
  using Base = SuperTypeBase<X, quant::BlockQ6_K, quant::Qtype::kQ6_K>;
  using typename Base::B;
  using typename Base::Block;
  using typename Base::Head;
  static constexpr int kOffset = 32;
  static constexpr int kTop = 63;

  template <int c>
  static B values(const Block& b, const Head&) {
    constexpr int kShift = c % 2 * 4;
    const B low = X::template field<kShift, kShift, 0, 15>(X::load64(b.ql + c / 2 * 64));
    const B high = X::template field<kShift, kShift + 2, 4, 0x30>(X::dup32(b.qh + c / 2 * 32));
    return X::or_bytes(low, high);
  }
  static __m128i scales(const Block& b) { return X::load128(b.scales); }
};

template <class X>
struct TQ2 : SuperTypeBase<X, quant::BlockTQ2_0, quant::Qtype::kTQ2_0> {
  using Base = SuperTypeBase<X, quant::BlockTQ2_0, quant::Qtype::kTQ2_0>;
  using typename Base::B;
  using typename Base::Block;
  using typename Base::Head;
  static constexpr int kOffset = 1;
  static constexpr int kTop = 3;  // two bits, though only 0 .. 2 are meant
  static constexpr bool kScaled = false;

  template <int c>
  static B values(const Block& b, const Head&) {
    constexpr int kShift = c % 2 * 4;
    return X::template field<kShift, kShift + 2, 0, 3>(X::dup32(b.qs + c / 2 * 32));
  }
};

// Base-3 digits have no quick road: unpacked one by one, once per block.
template <class X>
struct TQ1 : SuperTypeBase<X, quant::BlockTQ1_0, quant::Qtype::kTQ1_0> {
  using Base = SuperTypeBase<X, quant::BlockTQ1_0, quant::Qtype::kTQ1_0>;
  using typename Base::B;
  using typename Base::Block;
  static constexpr int kOffset = 1;
  static constexpr int kTop = 2;
  static constexpr bool kScaled = false;

  struct Head {
    alignas(64) std::uint8_t value[256];
  };
  // 3 times a byte modulo 256 moves to the next digit; the digit is its top, times 3, / 256.
  static Head head(const Block& b) {
    Head h;
    const auto digits = [](const std::uint8_t* from, int n, int n_digits, std::uint8_t* to) {
      for (int i = 0; i < n; ++i) {
        unsigned byte = from[i];
        for (int digit = 0; digit < n_digits; ++digit) {
          to[n * digit + i] = static_cast<std::uint8_t>((byte * 3U) >> 8);
          byte = (byte * 3U) & 255U;
        }
      }
    };
    digits(b.qs, 32, 5, h.value);
    digits(b.qs + 32, 16, 5, h.value + 160);
    digits(b.qh, 4, 4, h.value + 240);
    return h;
  }
  template <int c>
  static B values(const Block&, const Head& h) {
    return X::load64(h.value + 64 * c);
  }
};

template <class X>
struct IQ4XS : SuperTypeBase<X, quant::BlockIQ4_XS, quant::Qtype::kIQ4_XS> {
  using Base = SuperTypeBase<X, quant::BlockIQ4_XS, quant::Qtype::kIQ4_XS>;
  using typename Base::B;
  using typename Base::Block;
  using typename Base::Head;
  static constexpr bool kWide = true;
  static constexpr int kGroup = 32;

  template <int c>
  static B values(const Block& b, const Head&) {
    const std::uint8_t* qs = b.qs + 32 * c;
    return X::lookup(X::load128(quant::kIq4nlLevels.data()),
                     X::nibbles_by_16(X::pair16(qs, qs + 16)));
  }
  // Eight bytes, one per group of 32.
  static __m128i group_scales(const Block& b) {
    const std::uint64_t low = Base::template word<std::uint32_t>(b.scales_l);
    const std::uint64_t nibbles = _pdep_u64(low, 0x0F0F0F0F0F0F0F0FULL);
    const std::uint64_t high = _pdep_u64(b.scales_h, 0x3030303030303030ULL);
    return _mm_sub_epi8(_mm_cvtsi64_si128(static_cast<long long>(nibbles | high)),
                        _mm_set1_epi8(32));
  }
  static __m128i scales(const Block& b) {
    const __m128i x = group_scales(b);
    return _mm_unpacklo_epi8(x, x);
  }
};

}  // namespace moesaic::kernels
