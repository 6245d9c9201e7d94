// The integer vocabulary of x86/*.h in 256-bit registers: 64 bytes of weights in two of them,
// panels of eight rows. Included by the files of avx2/ only.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/x86/reduce.h"

namespace moesaic::kernels::avx2 {

struct Ints {
  static constexpr int kRows = 8;
  static constexpr int kColTile = 4;
  static constexpr int kManyFrom = 8;    // columns from which panels are faster (measured, Zen 5)
  static constexpr bool kWords = true;   // panels are multiplied by way of 16-bit sums
  static constexpr int kWideOffset = 0;  // signed bytes are multiplied by way of their magnitudes

  struct B {  // 64 bytes
    __m256i lo;
    __m256i hi;
  };
  using V = __m256i;  // one int32 per panel row
  using Vf = __m256;  // one float per panel row
  using A = __m256i;  // four activations, or a pair of their sums, in every lane

  // ---- bytes -------------------------------------------------------------------------------

  static __m256i load256(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

  static B load64(const void* p) {
    const auto* v = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(v), _mm256_loadu_si256(v + 1)};
  }
  // The same 32 bytes in both halves.
  static B dup32(const void* p) { return {load256(p), load256(p)}; }
  static B pair32(const void* p, const void* q) { return {load256(p), load256(q)}; }
  // 16 bytes at p twice, then 16 bytes at q twice.
  static B pair16(const void* p, const void* q) {
    return {_mm256_broadcastsi128_si256(load128(p)), _mm256_broadcastsi128_si256(load128(q))};
  }
  static __m256i bytes(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
  static B set1(int x) { return {bytes(x), bytes(x)}; }
  static B add(B a, B b) { return {_mm256_add_epi8(a.lo, b.lo), _mm256_add_epi8(a.hi, b.hi)}; }
  static B or_bytes(B a, B b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
  // 8 x, for bytes of -1, 0 and 1.
  static B times8(B x) {
    return {_mm256_and_si256(_mm256_slli_epi16(x.lo, 3), bytes(0xF8)),
            _mm256_and_si256(_mm256_slli_epi16(x.hi, 3), bytes(0xF8))};
  }
  // Byte i eight times, at 8 i.
  static B eight_times(std::uint64_t values) {
    const __m256i x = _mm256_set1_epi64x(static_cast<long long>(values));
    return {_mm256_shuffle_epi8(x, _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202,
                                                      0x0303030303030303)),
            _mm256_shuffle_epi8(x, _mm256_setr_epi64x(0x0404040404040404, 0x0505050505050505,
                                                      0x0606060606060606, 0x0707070707070707))};
  }
  template <int from, int to, int mask>
  static __m256i field_of(__m256i x) {
    if constexpr (from > to) x = _mm256_srli_epi16(x, from - to);
    if constexpr (from < to) x = _mm256_slli_epi16(x, to - from);
    return _mm256_and_si256(x, bytes(mask));
  }
  // Of each byte, the bits under `mask` after moving bit `from_low` (in the low 32 bytes) or
  // `from_high` (in the high ones) to bit `to`.
  template <int from_low, int from_high, int to, int mask>
  static B field(B x) {
    return {field_of<from_low, to, mask>(x.lo), field_of<from_high, to, mask>(x.hi)};
  }
  // Low nibbles in 16-byte groups 0 and 2, high nibbles in groups 1 and 3.
  static B nibbles_by_16(B x) { return shifted_nibbles(x, _mm256_set_epi64x(4, 4, 0, 0)); }
  // Low nibbles of bytes 8 g .. 8 g + 7 of 32, then their high nibbles, in 16-byte group g.
  static B nibbles_by_8(const void* p) {
    const __m256i x = load256(p);
    return shifted_nibbles({_mm256_permute4x64_epi64(x, 0x50), _mm256_permute4x64_epi64(x, 0xFA)},
                           _mm256_set_epi64x(4, 0, 4, 0));
  }
  static B shifted_nibbles(B x, __m256i shift) {
    return {_mm256_and_si256(_mm256_srlv_epi64(x.lo, shift), bytes(15)),
            _mm256_and_si256(_mm256_srlv_epi64(x.hi, shift), bytes(15))};
  }
  static B lookup(__m128i levels, B index) {
    const __m256i table = _mm256_broadcastsi128_si256(levels);
    return {_mm256_shuffle_epi8(table, index.lo), _mm256_shuffle_epi8(table, index.hi)};
  }
  static __m256i add_where_bit_of(__m256i x, __m256i bits, int bit, int n) {
    const __m256i test = bytes(1 << bit);
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(bits, test), test);
    return _mm256_add_epi8(x, _mm256_and_si256(set, bytes(n)));
  }
  // x + n where bit `low` (low half) or `high` (high half) of `bits` is set.
  template <int low, int high>
  static B add_where_bit(B x, B bits, int n) {
    return {add_where_bit_of(x.lo, bits.lo, low, n), add_where_bit_of(x.hi, bits.hi, high, n)};
  }
  // 0xFF in byte i where bit i of mask is set.
  static __m256i spread(std::uint32_t mask) {
    const __m256i which =
        _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
    const __m256i bit = _mm256_set1_epi64x(static_cast<long long>(0x8040201008040201ULL));
    const __m256i copies = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(mask)), which);
    return _mm256_cmpeq_epi8(_mm256_and_si256(copies, bit), bit);
  }
  // x + n where bit i of mask is set, i the byte's number.
  static B add_where(B x, std::uint64_t mask, int n) {
    const __m256i low = spread(static_cast<std::uint32_t>(mask));
    const __m256i high = spread(static_cast<std::uint32_t>(mask >> 32));
    return {_mm256_add_epi8(x.lo, _mm256_and_si256(low, bytes(n))),
            _mm256_add_epi8(x.hi, _mm256_and_si256(high, bytes(n)))};
  }
  static __m256i offset_signed_of(__m256i x, std::uint32_t mask, int offset) {
    const __m256i negative = spread(mask);
    const __m256i value = _mm256_sub_epi8(_mm256_xor_si256(x, negative), negative);
    return _mm256_add_epi8(value, bytes(offset));
  }
  // offset + x, or offset - x where the mask has a bit.
  static B offset_signed(B x, std::uint64_t mask, int offset) {
    return {offset_signed_of(x.lo, static_cast<std::uint32_t>(mask), offset),
            offset_signed_of(x.hi, static_cast<std::uint32_t>(mask >> 32), offset)};
  }
  [[gnu::always_inline]] static B points8(const std::uint64_t* grid, const std::uint32_t (&i)[8]) {
    const auto two = [&](int j) {  // a load each, the second one joined to the first by it
      const __m128i first = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(grid + i[j]));
      return _mm_castps_si128(
          _mm_loadh_pi(_mm_castsi128_ps(first), reinterpret_cast<const __m64*>(grid + i[j + 1])));
    };
    return {_mm256_set_m128i(two(2), two(0)), _mm256_set_m128i(two(6), two(4))};
  }
  [[gnu::always_inline]] static B points4(const std::uint32_t* grid, const std::uint32_t (&i)[16]) {
    const auto at = [&](int j) { return static_cast<int>(grid[i[j]]); };
    return {_mm256_set_epi32(at(7), at(6), at(5), at(4), at(3), at(2), at(1), at(0)),
            _mm256_set_epi32(at(15), at(14), at(13), at(12), at(11), at(10), at(9), at(8))};
  }
  static void store64(void* p, B x) {
    auto* v = static_cast<__m256i*>(p);
    _mm256_storeu_si256(v, x.lo);
    _mm256_storeu_si256(v + 1, x.hi);
  }

  // ---- one row at a time -------------------------------------------------------------------

  // Int32 partial sums of one output: of the low and the high 32 of each 64 values.
  struct Acc {
    __m256i lo;
    __m256i hi;
  };
  // Sub-scales of groups 0..7 and 8..15 of a super-block as 16-bit numbers, each set twice.
  struct Scales {
    __m256i low;
    __m256i high;

    // Those of the two groups of values 32 g .. 32 g + 31, one per 128 bits.
    template <int g>
    __m256i at() const {
      constexpr long long kFirst = 0x0100010001000100 + g % 4 * 4 * 0x0101010101010101;
      constexpr long long kSecond = kFirst + 0x0202020202020202;
      return _mm256_shuffle_epi8(g < 4 ? low : high,
                                 _mm256_setr_epi64x(kFirst, kFirst, kSecond, kSecond));
    }
  };
  static Scales expand(__m128i scales) {
    const __m256i words = _mm256_cvtepi8_epi16(scales);
    return {_mm256_permute2x128_si256(words, words, 0x00),
            _mm256_permute2x128_si256(words, words, 0x11)};
  }
  static Acc zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  static __m256i add_pairs(__m256i acc, __m256i a, __m256i b) {
    return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b));
  }
  static __m256i dot_of(__m256i acc, __m256i w, __m256i a) {
    return add_pairs(acc, _mm256_maddubs_epi16(w, a), _mm256_set1_epi16(1));
  }
  static __m256i dot_wide_of(__m256i acc, __m256i w, __m256i a) {
    return dot_of(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
  }
  // acc + sum of w * a; w unsigned up to 128.
  static Acc dot(Acc acc, B w, B a) {
    return {dot_of(acc.lo, w.lo, a.lo), dot_of(acc.hi, w.hi, a.hi)};
  }
  // The same for signed w.
  static Acc dot_wide(Acc acc, B w, B a) {
    return {dot_wide_of(acc.lo, w.lo, a.lo), dot_wide_of(acc.hi, w.hi, a.hi)};
  }
  static B widen(B w) { return w; }
  // acc + quarter c of a super-block: values w, activations at a, sub-scales s.
  template <int c>
  static Acc step(Acc acc, B w, const std::int8_t* a, Scales s) {
    return step_of<c>(acc, w, load64(a), s);
  }
  template <int c>
  static Acc step_wide(Acc acc, B w, const std::int8_t* a, Scales s) {
    const B signed_a = {_mm256_sign_epi8(load256(a), w.lo),
                        _mm256_sign_epi8(load256(a + 32), w.hi)};
    return step_of<c>(acc, {_mm256_abs_epi8(w.lo), _mm256_abs_epi8(w.hi)}, signed_a, s);
  }
  template <int c, class AnyScales>
  static Acc step_of(Acc acc, B w, B a, const AnyScales& s) {
    return {add_pairs(acc.lo, _mm256_maddubs_epi16(w.lo, a.lo), s.template at<2 * c>()),
            add_pairs(acc.hi, _mm256_maddubs_epi16(w.hi, a.hi), s.template at<2 * c + 1>())};
  }
  static __m256i fold(Acc x) { return _mm256_add_epi32(x.lo, x.hi); }
  // Four accumulators of 64 values, each two blocks of 32 -> the eight dot products in order.
  static __m256i fold_blocks(const Acc (&x)[4]) {
    const auto pair32 = [](__m256i a, __m256i b) {
      return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    };
    const auto pair64 = [](__m256i a, __m256i b) {
      return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
    };
    const __m256i low = pair64(pair32(x[0].lo, x[0].hi), pair32(x[1].lo, x[1].hi));
    const __m256i high = pair64(pair32(x[2].lo, x[2].hi), pair32(x[3].lo, x[3].hi));
    return _mm256_add_epi32(_mm256_permute2x128_si256(low, high, 0x20),
                            _mm256_permute2x128_si256(low, high, 0x31));
  }
  // The part of an accumulator of 64 values that belongs to the first 16 of each 32.
  static Acc first_halves(Acc x) {
    const __m256i none = _mm256_setzero_si256();
    return {_mm256_blend_epi32(none, x.lo, 0x0F), _mm256_blend_epi32(none, x.hi, 0x0F)};
  }

  // ---- panels ------------------------------------------------------------------------------

  static V load_v(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }
  static A broadcast(const void* p) {
    return _mm256_set1_epi32(*static_cast<const std::int32_t*>(p));
  }
  static V zero_v() { return _mm256_setzero_si256(); }
  static V add_pairs_v(V acc, V w, const void* p) { return add_pairs(acc, w, broadcast(p)); }
  // -factor * a, for a power of two: shifts have a unit to spare where products have none.
  template <int factor>
  static V minus_times(A a) {
    const V x = _mm256_slli_epi32(a, __builtin_ctz(factor));
    return _mm256_sub_epi32(_mm256_setzero_si256(), x);
  }
  static V ones_v() { return _mm256_set1_epi16(1); }
  static V words_v(V w, A a) { return _mm256_maddubs_epi16(w, a); }
  static V words_wide_v(V w, A a) {
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(a, w));
  }
  static V add_words_v(V a, V b) { return _mm256_add_epi16(a, b); }
  static V madd_words_v(V a, V b) { return _mm256_madd_epi16(a, b); }
  // first * (sum of one 16) + second * (sum of the next), in every lane.
  static V scaled_sums(A pair, int first, int second) {
    return _mm256_madd_epi16(
        pair, _mm256_set1_epi32((first & 0xFFFF) |
                                static_cast<int>(static_cast<unsigned>(second) << 16)));
  }
  static V add_v(V a, V b) { return _mm256_add_epi32(a, b); }
  // Signed bytes, one per row.
  static V load_scales(const std::int8_t* p) {
    return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  // The same, each as a pair of 16-bit numbers.
  static V load_scale_pairs(const std::int8_t* p) {
    const V s = load_scales(p);
    return _mm256_blend_epi16(s, _mm256_slli_epi32(s, 16), 0xAA);
  }
  static Vf zero_f() { return _mm256_setzero_ps(); }
  static Vf to_float(V a) { return _mm256_cvtepi32_ps(a); }
  static Vf load_f(const float* p) { return _mm256_load_ps(p); }
  static Vf load_some_f(const float* p, int n) {  // the first n, then zeros
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
  }
  // Eight rows of eight numbers -> their eight sums.
  static V add_rows(const std::int32_t (*rows)[8]) { return add_rows_8<Ints>(rows); }
  // Each lane from the one after it, the last from the first.
  static Vf rotate_f(Vf x) {
    return _mm256_permutevar8x32_ps(x, _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0));
  }
  // f16 numbers bits(0), bits(1), ... -> floats, times an exact factor.
  template <class Bits>
  static Vf halves(const Bits& bits, float factor) {
    const __m128i x =
        _mm_setr_epi16(bits(0), bits(1), bits(2), bits(3), bits(4), bits(5), bits(6), bits(7));
    return _mm256_mul_ps(_mm256_cvtph_ps(x), _mm256_set1_ps(factor));
  }
  static Vf broadcast_f(const float* p) { return _mm256_broadcast_ss(p); }
  static Vf mul_f(Vf a, Vf b) { return _mm256_mul_ps(a, b); }
  static Vf add_f(Vf a, Vf b) { return _mm256_add_ps(a, b); }
  static Vf fma_f(Vf a, Vf b, Vf c) { return _mm256_fmadd_ps(a, b, c); }
  static Vf fms_f(Vf a, Vf b, Vf c) { return _mm256_fmsub_ps(a, b, c); }
  static void store_f(float* p, Vf x, int n) {
    if (n == 8) return _mm256_storeu_ps(p, x);
    alignas(32) float lanes[8];
    _mm256_store_ps(lanes, x);
    for (int i = 0; i < n; ++i) p[i] = lanes[i];
  }

  // 64 bytes of each row (row i at from + i * stride) -> 16 dword columns: column j of out holds
  // bytes 4 j .. 4 j + 3 of every row.
  static void transpose(const std::uint8_t* from, int stride, std::uint8_t* out) {
    transpose_half(from, stride, out);
    transpose_half(from + 32, stride, out + 256);
  }
  static void transpose_half(const std::uint8_t* from, int stride, std::uint8_t* out) {
    __m256i r[8];
    for (int i = 0; i < 8; ++i) r[i] = load256(from + i * stride);
    transpose_8x8<Ints>(r);
    for (int j = 0; j < 8; ++j) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(out + 32 * j), r[j]);
    }
  }
  // Bits of f16 numbers, one per row -> floats, times an exact factor.
  static void store_floats(const std::uint16_t* bits, float factor, float* out) {
    _mm256_store_ps(out, _mm256_mul_ps(_mm256_cvtph_ps(load128(bits)), _mm256_set1_ps(factor)));
  }
  // Bytes of two groups for eight rows -> eight pairs of 16-bit numbers, times factor.
  static void store_pairs(std::uint8_t* out, __m128i first, __m128i second, int factor) {
    const __m256i pairs = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(first, second));
    _mm256_store_si256(reinterpret_cast<__m256i*>(out),
                       _mm256_mullo_epi16(pairs, _mm256_set1_epi16(static_cast<short>(factor))));
  }
};

}  // namespace moesaic::kernels::avx2
