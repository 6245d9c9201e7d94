// Panels of Q2_K and Q3_K for many columns: sixteen rows are transposed while they are packed (a
// quarter of the shuffles), then the two-bit fields of a register look their products with the
// sub-scales up, sixteen rows at once: a table of four bytes for each row and group. Gives the
// bytes that x86/super_many.h gives by way of fold(), in fewer instructions and without a detour
// through memory. Layouts: quant/q2_k.h, quant/q3_k.h.
#pragma once

#include <cstring>

#include "kernels/avx512vnni/k_scales.h"

namespace moesaic::kernels::avx512vnni {

struct SixteenRows {
  using I = __m512i;

  // 64 bytes of each row -> register j: dword j of every row.
  template <class At>
  [[gnu::always_inline]] static void dwords(const At& row, I* out) {
    Ints::transpose_rows(row, reinterpret_cast<std::uint8_t*>(out));
  }
  // The same for 32 bytes of each.
  template <class At>
  [[gnu::always_inline]] static void eight_dwords(const At& row, I* out) {
    I half[2][4];  // of rows 0 .. 7 and 8 .. 15, four of them in a 128-bit group
    for (int h = 0; h < 2; ++h) {
      I r[4];
      for (int i = 0; i < 4; ++i) r[i] = Ints::pair32(row(8 * h + i), row(8 * h + 4 + i));
      const I a = _mm512_unpacklo_epi32(r[0], r[1]);
      const I b = _mm512_unpackhi_epi32(r[0], r[1]);
      const I c = _mm512_unpacklo_epi32(r[2], r[3]);
      const I d = _mm512_unpackhi_epi32(r[2], r[3]);
      half[h][0] = _mm512_unpacklo_epi64(a, c);
      half[h][1] = _mm512_unpackhi_epi64(a, c);
      half[h][2] = _mm512_unpacklo_epi64(b, d);
      half[h][3] = _mm512_unpackhi_epi64(b, d);
    }
    for (int j = 0; j < 4; ++j) {
      out[j] = _mm512_shuffle_i32x4(half[0][j], half[1][j], 0x88);
      out[4 + j] = _mm512_shuffle_i32x4(half[0][j], half[1][j], 0xDD);
    }
  }
  // Sixteen bytes of each row -> register j: dword j of every row.
  template <class At>
  [[gnu::always_inline]] static void four_dwords(const At& bytes, I* out) {
    I r[4];
    for (int q = 0; q < 4; ++q) {
      r[q] = _mm512_castsi128_si512(bytes(4 * q));
      r[q] = _mm512_inserti32x4(r[q], bytes(4 * q + 1), 1);
      r[q] = _mm512_inserti32x4(r[q], bytes(4 * q + 2), 2);
      r[q] = _mm512_inserti32x4(r[q], bytes(4 * q + 3), 3);
    }
    const I low = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    const I high = _mm512_setr_epi32(2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
    const I a = _mm512_permutex2var_epi32(r[0], low, r[1]);
    const I b = _mm512_permutex2var_epi32(r[2], low, r[3]);
    const I c = _mm512_permutex2var_epi32(r[0], high, r[1]);
    const I d = _mm512_permutex2var_epi32(r[2], high, r[3]);
    out[0] = _mm512_shuffle_i32x4(a, b, 0x44);
    out[1] = _mm512_shuffle_i32x4(a, b, 0xEE);
    out[2] = _mm512_shuffle_i32x4(c, d, 0x44);
    out[3] = _mm512_shuffle_i32x4(c, d, 0xEE);
  }
  // Fields of two bits as numbers of bytes in their row's part of a 128-bit group.
  template <int shift>
  [[gnu::always_inline]] static I fields(I packed) {
    const I part = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0x04040404, 0x08080808, 0x0C0C0C0C));
    const I moved = shift == 0 ? packed : _mm512_srli_epi32(packed, shift);
    return _mm512_ternarylogic_epi32(moved, Ints::set1(3), part, 0xEA);  // moved & 3 | part
  }
  // each<h, j>() for values 128 h + 32 j .. 128 h + 32 j + 31: bits 2 j, 2 j + 1 of bytes 32 h ..
  // 32 h + 31.
  template <class Each>
  [[gnu::always_inline]] static void all_quarters(const Each& each) {
    four_quarters<0>(each);
    four_quarters<1>(each);
  }
  template <int h, class Each>
  [[gnu::always_inline]] static void four_quarters(const Each& each) {
    each.template operator()<h, 0>();
    each.template operator()<h, 1>();
    each.template operator()<h, 2>();
    each.template operator()<h, 3>();
  }
  static void put(void* out, I x) { _mm512_store_si512(out, x); }
};

struct PanelQ2K : Q2K<Ints> {
  static constexpr bool kFillsPanels = true;
  static constexpr int kManyFrom = 3;

  template <class PanelBlock>
  static void fill_panel(const std::uint8_t* const* rows, std::int64_t b, PanelBlock& out) {
    using I = __m512i;
    const auto block = [&](int i) -> const Block& {
      return *reinterpret_cast<const Block*>(rows[i] + b * kBytes);
    };
    I packed[16];
    SixteenRows::dwords([&](int i) { return block(i).qs; }, packed);
    I nibbles[4];  // scales low, minima high
    SixteenRows::four_dwords([&](int i) { return Ints::load128(block(i).scales); }, nibbles);

    const I low = _mm512_set1_epi32(0x0000000F);
    const I high = _mm512_set1_epi32(0x000F0000);
    for (int g = 0; g < 4; ++g) {
      const auto pair = [&](I first, I second) {
        return _mm512_ternarylogic_epi32(_mm512_and_si512(first, low), second, high, 0xF8);
      };
      const I x = nibbles[g];
      SixteenRows::put(out.pair[2 * g], pair(_mm512_srli_epi32(x, 4), _mm512_slli_epi32(x, 4)));
      SixteenRows::put(out.pair[2 * g + 1],
                       pair(_mm512_srli_epi32(x, 20), _mm512_srli_epi32(x, 12)));
    }
    SixteenRows::all_quarters([&]<int h, int j>() { quarter<h, j>(packed, nibbles, out.value); });

    alignas(64) std::uint32_t floats[16];
    for (int i = 0; i < 16; ++i) std::memcpy(floats + i, &block(i).d, 4);
    const I both = _mm512_load_si512(floats);
    _mm512_store_ps(out.d, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(both)));
    _mm512_store_ps(out.dmin, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(both, 16))));
  }

 private:
  template <int h, int j, class Values>
  [[gnu::always_inline]] static void quarter(const __m512i* packed, const __m512i* nibbles,
                                             Values& value) {
    for (int k = 0; k < 2; ++k) {
      constexpr int kGroup = 8 * h + 2 * j;
      const __m512i scale = _mm512_and_si512(
          _mm512_srl_epi32(nibbles[kGroup / 4], _mm_cvtsi32_si128((kGroup % 4 + k) * 8)),
          _mm512_set1_epi32(15));
      const __m512i products = _mm512_mullo_epi32(scale, _mm512_set1_epi32(0x03020100));
      for (int l = 4 * k; l < 4 * k + 4; ++l) {
        SixteenRows::put(
            value[32 * h + 8 * j + l][0],
            _mm512_shuffle_epi8(products, SixteenRows::fields<2 * j>(packed[8 * h + l])));
      }
    }
  }
};

struct PanelQ3K : FastQ3K {
  static constexpr bool kFillsPanels = true;
  static constexpr int kManyFrom = 3;

  template <class PanelBlock>
  static void fill_panel(const std::uint8_t* const* rows, std::int64_t b, PanelBlock& out) {
    using I = __m512i;
    const auto block = [&](int i) -> const Block& {
      return *reinterpret_cast<const Block*>(rows[i] + b * kBytes);
    };
    I packed[16];
    SixteenRows::dwords([&](int i) { return block(i).qs; }, packed);
    I high[8];
    SixteenRows::eight_dwords([&](int i) { return block(i).hmask; }, high);
    I scales[4];
    SixteenRows::four_dwords([&](int i) { return stored_scales(block(i)); }, scales);
    SixteenRows::all_quarters(
        [&]<int h, int j>() { quarter<h, j>(packed, high, scales, out.value); });
    alignas(32) std::uint16_t d[16];
    for (int i = 0; i < 16; ++i) d[i] = block(i).d;
    Ints::store_floats(d, -kFactor, out.d);
  }

 private:
  // 128 - (value - 4) scale, the value's third bit being bit 4 h + j of hmask. With u the stored
  // scale, 32 more than the scale: without that bit, of the lower two bits v, this is
  // (4 - v) u + 32 v; with it, 4 u - 128 less, modulo 256.
  template <int h, int j, class Values>
  [[gnu::always_inline]] static void quarter(const __m512i* packed, const __m512i* high,
                                             const __m512i* scales, Values& value) {
    for (int k = 0; k < 2; ++k) {
      constexpr int kGroup = 8 * h + 2 * j;
      const __m512i u = _mm512_and_si512(
          _mm512_srl_epi32(scales[kGroup / 4], _mm_cvtsi32_si128((kGroup % 4 + k) * 8)),
          _mm512_set1_epi32(255));
      const __m512i products = _mm512_add_epi8(_mm512_mullo_epi32(u, _mm512_set1_epi32(0x01020304)),
                                               _mm512_set1_epi32(0x60402000));
      const __m512i four =
          _mm512_add_epi8(_mm512_mullo_epi32(u, _mm512_set1_epi32(0x04040404)), Ints::set1(128));
      for (int l = 4 * k; l < 4 * k + 4; ++l) {
        const __m512i x =
            _mm512_shuffle_epi8(products, SixteenRows::fields<2 * j>(packed[8 * h + l]));
        const __mmask64 third = _mm512_test_epi8_mask(high[l], Ints::set1(1 << (4 * h + j)));
        SixteenRows::put(value[32 * h + 8 * j + l][0], _mm512_mask_sub_epi8(x, third, x, four));
      }
    }
  }
};

}  // namespace moesaic::kernels::avx512vnni
