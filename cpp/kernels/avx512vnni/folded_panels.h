// Q2_K and Q3_K for many columns: sixteen rows are turned as they are stored (a quarter of the
// shuffles that their unpacked values would take), then the two-bit fields of a register look their
// products with the sub-scales up, sixteen rows at once: a table of four bytes for each row and
// group. Gives the bytes that x86/super_many.h gives by way of fold(), in fewer instructions and
// without a detour through memory; for a few columns they need not go to a panel at all
// (x86/super_direct.h).
//
// A type gives: kPieces, offsets of sixteen bytes of a block, which together are all of it; Turned,
// a block of sixteen rows, whose `dwords` are those pieces with the rows in lanes; complete(),
// which makes the rest of it from them; each_eighth(), which calls put(i, x) with x the dword i of
// every row of n such blocks, i from 8 eighth to 8 eighth + 7; each_pair(), which calls put for the
// eight pairs of minima of one. Layouts: quant/q2_k.h, quant/q3_k.h.
#pragma once

#include "kernels/avx512vnni/k_scales.h"

namespace moesaic::kernels::avx512vnni {

struct SixteenRows {
  using I = __m512i;

  // Fields of two bits, `shift` bits up, as numbers of bytes in their row's part of a 128-bit
  // group.
  [[gnu::always_inline]] static I fields(I packed, I shift) {
    const I part = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0C0C0C0C));
    return _mm512_ternarylogic_epi32(_mm512_srlv_epi32(packed, shift), Ints::set1(3), part,
                                     0xEA);  // moved & 3 | part
  }
  // Byte number i of every dword.
  [[gnu::always_inline]] static I byte_of(I x, int i) {
    return _mm512_and_si512(_mm512_srl_epi32(x, _mm_cvtsi32_si128(8 * i)), _mm512_set1_epi32(255));
  }
  // Sixteen numbers of f16, those in the lower or the upper halves of the dwords.
  [[gnu::always_inline]] static __m512 low_halves(I x) {
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x));
  }
  [[gnu::always_inline]] static __m512 high_halves(I x) {
    return low_halves(_mm512_srli_epi32(x, 16));
  }
};

// Values 32 e .. 32 e + 31 of a block are bits 2 (e % 4) and the next one of bytes 32 (e / 4) ..
// 32 (e / 4) + 31 of qs: an eighth of the block, two groups.

struct PanelQ2K : Q2K<Ints> {
  static constexpr bool kFillsPanels = true;
  static constexpr int kManyFrom = 3;
  static constexpr int kDirectTo = 32;  // columns up to which no panel is faster (Zen 5)

  static constexpr int kPieces[] = {0, 16, 32, 48, 64, 68};
  struct Turned {
    __m512i dwords[24];
    __m512 d;
    __m512 dmin;
    const __m512i* nibbles() const { return dwords; }  // scales low, minima high
    const __m512i* packed() const { return dwords + 4; }
  };
  [[gnu::always_inline]] static void complete(Turned& t) {
    t.d = SixteenRows::low_halves(t.dwords[23]);
    t.dmin = SixteenRows::high_halves(t.dwords[23]);
  }

  template <int n, class Put>
  [[gnu::always_inline]] static void each_eighth(const Turned* t, int eighth, const Put& put) {
    using I = __m512i;
    const I shift = _mm512_set1_epi32(eighth % 4 * 2);
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      I products[n];
      for (int i = 0; i < n; ++i) {
        const I scale =
            _mm512_and_si512(SixteenRows::byte_of(t[i].nibbles()[eighth / 2], eighth % 2 * 2 + k),
                             _mm512_set1_epi32(15));
        products[i] = _mm512_mullo_epi32(scale, _mm512_set1_epi32(0x03020100));
      }
#pragma GCC unroll 4
      for (int l = 4 * k; l < 4 * k + 4; ++l) {
        I x[n];
        for (int i = 0; i < n; ++i) {
          const I packed = t[i].packed()[eighth / 4 * 8 + l];
          x[i] = _mm512_shuffle_epi8(products[i], SixteenRows::fields(packed, shift));
        }
        put(8 * eighth + l, x);
      }
    }
  }

  template <class Put>
  [[gnu::always_inline]] static void each_pair(const Turned& t, const Put& put) {
    using I = __m512i;
    const I low = _mm512_set1_epi32(0x0000000F);
    const I high = _mm512_set1_epi32(0x000F0000);
    const auto pair = [&](I first, I second) {
      return _mm512_ternarylogic_epi32(_mm512_and_si512(first, low), second, high, 0xF8);
    };
#pragma GCC unroll 4
    for (int g = 0; g < 4; ++g) {
      const I x = t.nibbles()[g];
      put(2 * g, pair(_mm512_srli_epi32(x, 4), _mm512_slli_epi32(x, 4)));
      put(2 * g + 1, pair(_mm512_srli_epi32(x, 20), _mm512_srli_epi32(x, 12)));
    }
  }
};

struct PanelQ3K : FastQ3K {
  static constexpr bool kFillsPanels = true;
  static constexpr int kManyFrom = 3;
  static constexpr int kDirectTo = 16;  // columns up to which no panel is faster (Zen 5)

  static constexpr int kPieces[] = {0, 16, 32, 48, 64, 80, 94};
  struct Turned {
    __m512i dwords[28];
    __m512i scales[4];  // as stored, 32 more than they are
    __m512 d;
    const __m512i* high() const { return dwords; }
    const __m512i* packed() const { return dwords + 8; }
  };
  // The last piece is two bytes of qs, twelve of scales, d. Scale i: nibble i / 8 of byte i % 8 of
  // the twelve, above it bits 2 (i / 4) of byte 8 + i % 4.
  [[gnu::always_inline]] static void complete(Turned& t) {
    using I = __m512i;
    const I* last = t.dwords + 24;
    I bytes[3];
    for (int i = 0; i < 3; ++i) {
      bytes[i] =
          _mm512_or_si512(_mm512_srli_epi32(last[i], 16), _mm512_slli_epi32(last[i + 1], 16));
    }
    const auto scale = [&](I low, I high) {
      const I nibble = _mm512_and_si512(low, Ints::set1(15));
      return _mm512_ternarylogic_epi32(nibble, high, Ints::set1(0x30), 0xF8);
    };
    t.scales[0] = scale(bytes[0], _mm512_slli_epi32(bytes[2], 4));
    t.scales[1] = scale(bytes[1], _mm512_slli_epi32(bytes[2], 2));
    t.scales[2] = scale(_mm512_srli_epi32(bytes[0], 4), bytes[2]);
    t.scales[3] = scale(_mm512_srli_epi32(bytes[1], 4), _mm512_srli_epi32(bytes[2], 2));
    t.d = _mm512_mul_ps(SixteenRows::high_halves(last[3]), _mm512_set1_ps(-kFactor));
  }

  // 128 - (value - 4) scale, the value's third bit being bit `eighth` of hmask. With u the stored
  // scale: without that bit, of the lower two bits v, this is (4 - v) u + 32 v; with it, 4 u - 128
  // less, modulo 256.
  template <int n, class Put>
  [[gnu::always_inline]] static void each_eighth(const Turned* t, int eighth, const Put& put) {
    using I = __m512i;
    const I shift = _mm512_set1_epi32(eighth % 4 * 2);
    const I bit = Ints::set1(1 << eighth);
#pragma GCC unroll 2
    for (int k = 0; k < 2; ++k) {
      I products[n];
      I four[n];
      for (int i = 0; i < n; ++i) {
        const I u = SixteenRows::byte_of(t[i].scales[eighth / 2], eighth % 2 * 2 + k);
        products[i] = _mm512_add_epi8(_mm512_mullo_epi32(u, _mm512_set1_epi32(0x01020304)),
                                      _mm512_set1_epi32(0x60402000));
        four[i] =
            _mm512_add_epi8(_mm512_mullo_epi32(u, _mm512_set1_epi32(0x04040404)), Ints::set1(128));
      }
#pragma GCC unroll 4
      for (int l = 4 * k; l < 4 * k + 4; ++l) {
        I x[n];
        for (int i = 0; i < n; ++i) {
          const I packed = t[i].packed()[eighth / 4 * 8 + l];
          const I y = _mm512_shuffle_epi8(products[i], SixteenRows::fields(packed, shift));
          const __mmask64 third = _mm512_test_epi8_mask(t[i].high()[l], bit);
          x[i] = _mm512_mask_sub_epi8(y, third, y, four[i]);
        }
        put(8 * eighth + l, x);
      }
    }
  }
};

}  // namespace moesaic::kernels::avx512vnni
