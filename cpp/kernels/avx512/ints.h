// The integer vocabulary of x86/*.h in 512-bit registers: 64 bytes of weights at a time, panels of
// sixteen rows. With MOESAIC_VNNI the dot products are single instructions; without, pairs of them.
// Included by the files of avx512/ and avx512vnni/, which name their namespace first.
#pragma once

#include <immintrin.h>

#include <cstdint>

#ifndef MOESAIC_AVX512_NAMESPACE
#error "define MOESAIC_AVX512_NAMESPACE before including"
#endif

namespace moesaic::kernels::MOESAIC_AVX512_NAMESPACE {

struct Ints {
  // Rows of a panel (its lanes), and columns of a register tile.
  static constexpr int kRows = 16;
  static constexpr int kColTile = 8;
  static constexpr int kManyFrom = 5;  // columns from which panels are faster (measured, Zen 5)
#ifdef MOESAIC_VNNI
  // What is added to a signed byte so that it can stand on the unsigned side of a dot product;
  // 0 where signed bytes are multiplied by way of their magnitudes.
  static constexpr int kWideOffset = 128;
  static constexpr bool kWords = false;  // whether panels are multiplied by way of 16-bit sums
#else
  static constexpr bool kWords = true;
  static constexpr int kWideOffset = 0;
#endif

  using B = __m512i;    // 64 bytes
  using V = __m512i;    // one int32 per panel row
  using Vf = __m512;    // one float per panel row
  using A = __m512i;    // four activations, or a pair of their sums, in every lane
  using Acc = __m512i;  // int32 partial sums of one output

  // ---- bytes -------------------------------------------------------------------------------

  static __m256i load256(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
  }
  static __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

  static B load64(const void* p) { return _mm512_loadu_si512(p); }
  // The first n of the 64 bytes at p (any n), `fill` in place of the others, which are not read.
  static B load64_of(const void* p, int n, std::uint8_t fill) {
    const std::uint64_t mask =
        n <= 0 ? 0 : _bzhi_u64(~std::uint64_t{0}, n < 64 ? static_cast<unsigned>(n) : 64U);
    return _mm512_mask_loadu_epi8(set1(fill), mask, p);
  }
  // The same 32 bytes in both halves.
  static B dup32(const void* p) { return _mm512_broadcast_i64x4(load256(p)); }
  static B pair32(const void* p, const void* q) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(load256(p)), load256(q), 1);
  }
  // 16 bytes at p twice, then 16 bytes at q twice.
  static B pair16(const void* p, const void* q) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_broadcastsi128_si256(load128(p))),
                              _mm256_broadcastsi128_si256(load128(q)), 1);
  }
  static B set1(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
  static B add(B a, B b) { return _mm512_add_epi8(a, b); }
  static B subtract(B a, B b) { return _mm512_sub_epi8(a, b); }
  // Products modulo 256.
  static B multiply(B a, B b) {
    const __m512i high = _mm512_set1_epi16(static_cast<short>(0xFF00));
    const __m512i odd = _mm512_mullo_epi16(_mm512_srli_epi16(a, 8), _mm512_and_si512(b, high));
    const __m512i even = _mm512_mullo_epi16(a, b);
    return _mm512_ternarylogic_epi32(high, odd, even, 0xCA);  // high ? odd : even
  }
  // Of sixteen bytes, number 4 c + g in all of 16-byte group g.
  template <int c>
  static B spread_scales(__m128i scales) {
    const __m512i order = _mm512_set_epi32(
        (4 * c + 3) * 0x01010101, (4 * c + 3) * 0x01010101, (4 * c + 3) * 0x01010101,
        (4 * c + 3) * 0x01010101, (4 * c + 2) * 0x01010101, (4 * c + 2) * 0x01010101,
        (4 * c + 2) * 0x01010101, (4 * c + 2) * 0x01010101, (4 * c + 1) * 0x01010101,
        (4 * c + 1) * 0x01010101, (4 * c + 1) * 0x01010101, (4 * c + 1) * 0x01010101,
        (4 * c) * 0x01010101, (4 * c) * 0x01010101, (4 * c) * 0x01010101, (4 * c) * 0x01010101);
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(scales), order);
  }
  static B or_bytes(B a, B b) { return _mm512_or_si512(a, b); }
  // 8 x, for bytes of -1, 0 and 1.
  static B times8(B x) { return _mm512_and_si512(_mm512_slli_epi16(x, 3), set1(0xF8)); }
  // Byte i eight times, at 8 i.
  static B eight_times(std::uint64_t bytes) {
    return eight_times_of(_mm512_set1_epi64(static_cast<long long>(bytes)));
  }
  static B eight_times_of(B copies) {  // of the eight bytes
    const __m512i order = _mm512_set_epi64(
        0x0707070707070707, 0x0606060606060606, 0x0505050505050505, 0x0404040404040404,
        0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0);
    return _mm512_shuffle_epi8(copies, order);
  }
  // Of each byte, the bits under `mask` after moving bit `from_low` (in the low 32 bytes) or
  // `from_high` (in the high ones) to bit `to`.
  template <int from_low, int from_high, int to, int mask>
  static B field(B x) {
    constexpr int kLow = (from_low - to) & 31;
    constexpr int kHigh = (from_high - to) & 31;
    if constexpr (kLow == 0 && kHigh == 0) {
      return _mm512_and_si512(x, set1(mask));
    } else if constexpr (kLow == kHigh) {
      return _mm512_and_si512(_mm512_ror_epi32(x, kLow), set1(mask));
    } else {
      const __m512i shift =
          _mm512_inserti64x4(_mm512_set1_epi32(kLow), _mm256_set1_epi32(kHigh), 1);
      return _mm512_and_si512(_mm512_rorv_epi32(x, shift), set1(mask));
    }
  }
  // Low nibbles in 16-byte groups 0 and 2, high nibbles in groups 1 and 3.
  static B nibbles_by_16(B x) {
    const __m512i shift = _mm512_set_epi64(4, 4, 0, 0, 4, 4, 0, 0);
    return _mm512_and_si512(_mm512_srlv_epi64(x, shift), set1(15));
  }
  // Low nibbles of bytes 8 g .. 8 g + 7 of 32, then their high nibbles, in 16-byte group g.
  static B nibbles_by_8(const void* p) {
    const __m512i order = _mm512_setr_epi64(0, 0, 1, 1, 2, 2, 3, 3);
    const __m512i shift = _mm512_setr_epi64(0, 4, 0, 4, 0, 4, 0, 4);
    const __m512i x = _mm512_permutexvar_epi64(order, _mm512_castsi256_si512(load256(p)));
    return _mm512_and_si512(_mm512_srlv_epi64(x, shift), set1(15));
  }
  static B lookup(__m128i levels, B index) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(levels), index);
  }
  // x + n where bit `low` (low half) or `high` (high half) of `bits` is set.
  template <int low, int high>
  static B add_where_bit(B x, B bits, int n) {
    const __m512i test =
        _mm512_inserti64x4(set1(1 << low), _mm256_set1_epi8(static_cast<char>(1 << high)), 1);
    return _mm512_mask_add_epi8(x, _mm512_test_epi8_mask(bits, test), x, set1(n));
  }
  // x + n where bit i of mask is set, i the byte's number.
  static B add_where(B x, std::uint64_t mask, int n) {
    return _mm512_mask_add_epi8(x, mask, x, set1(n));
  }
  // offset + x, or offset - x where the mask has a bit.
  static B offset_signed(B x, std::uint64_t mask, int offset) {
    const __m512i o = set1(offset);
    return _mm512_mask_sub_epi8(_mm512_add_epi8(o, x), mask, o, x);
  }
  [[gnu::always_inline]] static B points8(const std::uint64_t* grid, const std::uint32_t (&i)[8]) {
    const auto two = [&](int j) {  // a load each, the second one joined to the first by it
      const __m128i first = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(grid + i[j]));
      return _mm_castps_si128(
          _mm_loadh_pi(_mm_castsi128_ps(first), reinterpret_cast<const __m64*>(grid + i[j + 1])));
    };
    const __m512i low = _mm512_castsi256_si512(_mm256_set_m128i(two(2), two(0)));
    return _mm512_inserti64x4(low, _mm256_set_m128i(two(6), two(4)), 1);
  }
  [[gnu::always_inline]] static B points4(const std::uint32_t* grid, const std::uint32_t (&i)[16]) {
    const auto at = [&](int j) { return static_cast<int>(grid[i[j]]); };
    return _mm512_set_epi32(at(15), at(14), at(13), at(12), at(11), at(10), at(9), at(8), at(7),
                            at(6), at(5), at(4), at(3), at(2), at(1), at(0));
  }
  static void store64(void* p, B x) { _mm512_storeu_si512(p, x); }

  // ---- one row at a time -------------------------------------------------------------------

  // Sub-scales of the sixteen groups of a super-block, as 16-bit numbers.
  using Scales = __m512i;
  static Scales expand(__m128i scales) {
    return _mm512_castsi256_si512(_mm256_cvtepi8_epi16(scales));
  }
  // Those of the four groups of quarter c, one per 128 bits.
  template <int c>
  static __m512i quarter_scales(Scales s) {
    const __m512i order =
        _mm512_set_epi64((4 * c + 3) * 0x0001000100010001, (4 * c + 3) * 0x0001000100010001,
                         (4 * c + 2) * 0x0001000100010001, (4 * c + 2) * 0x0001000100010001,
                         (4 * c + 1) * 0x0001000100010001, (4 * c + 1) * 0x0001000100010001,
                         (4 * c) * 0x0001000100010001, (4 * c) * 0x0001000100010001);
    return _mm512_permutexvar_epi16(order, s);
  }
  static Acc zero() { return _mm512_setzero_si512(); }
  static Acc add_pairs(Acc acc, __m512i a, __m512i b) {
#ifdef MOESAIC_VNNI
    // Spelt out: for the intrinsic the compiler (GCC 12) copies the accumulator every time.
    __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
    return acc;
#else
    return _mm512_add_epi32(acc, _mm512_madd_epi16(a, b));
#endif
  }
  // acc + sum of w * a; w unsigned up to 128.
  static Acc dot(Acc acc, B w, B a) {
#ifdef MOESAIC_VNNI
    return _mm512_dpbusd_epi32(acc, w, a);
#else
    return add_pairs(acc, _mm512_maddubs_epi16(w, a), _mm512_set1_epi16(1));
#endif
  }
  // The same for signed w, without VNNI; with VNNI w has kWideOffset added.
  static Acc dot_wide(Acc acc, B w, B a) {
#ifdef MOESAIC_VNNI
    return _mm512_dpbusd_epi32(acc, w, a);
#else
    return dot(acc, _mm512_abs_epi8(w), negate_as(a, w));
#endif
  }
  static B negate_as(B a, B w) {
    return _mm512_mask_sub_epi8(a, _mm512_movepi8_mask(w), _mm512_setzero_si512(), a);
  }
  static B widen(B w) {
#ifdef MOESAIC_VNNI
    return _mm512_xor_si512(w, set1(128));
#else
    return w;
#endif
  }
  // acc + quarter c of a super-block: values w, activations at a, sub-scales s.
  template <int c>
  static Acc step(Acc acc, B w, const std::int8_t* a, Scales s) {
    return add_pairs(acc, _mm512_maddubs_epi16(w, load64(a)), quarter_scales<c>(s));
  }
  template <int c, class SomeScales>  // the same with another form of sub-scales
  static Acc step_of(Acc acc, B w, B a, const SomeScales& s) {
    return add_pairs(acc, _mm512_maddubs_epi16(w, a), s.template quarter<c>());
  }
  template <int c>
  static Acc step_wide(Acc acc, B w, const std::int8_t* a, Scales s) {
#ifdef MOESAIC_VNNI
    const __m512i order = _mm512_set_epi32(12, 12, 12, 12, 8, 8, 8, 8, 4, 4, 4, 4, 0, 0, 0, 0);
    const __m512i all = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(s));
    const __m512i index = _mm512_add_epi32(_mm512_srli_epi32(order, 2), _mm512_set1_epi32(4 * c));
    const __m512i t = _mm512_dpbusd_epi32(_mm512_setzero_si512(), w, load64(a));
    return _mm512_add_epi32(acc, _mm512_mullo_epi32(t, _mm512_permutexvar_epi32(index, all)));
#else
    return add_pairs(acc, _mm512_maddubs_epi16(_mm512_abs_epi8(w), negate_as(load64(a), w)),
                     quarter_scales<c>(s));
#endif
  }
  static __m256i fold(Acc x) {
    return _mm256_add_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
  }
  // Four accumulators of 64 values, each two blocks of 32 -> the eight dot products in order.
  static __m256i fold_blocks(const Acc (&x)[4]) {
    const __m512i a =
        _mm512_add_epi32(_mm512_unpacklo_epi32(x[0], x[1]), _mm512_unpackhi_epi32(x[0], x[1]));
    const __m512i b =
        _mm512_add_epi32(_mm512_unpacklo_epi32(x[2], x[3]), _mm512_unpackhi_epi32(x[2], x[3]));
    const __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    const __m512i d = _mm512_add_epi32(c, _mm512_shuffle_i32x4(c, c, 0xB1));
    const __m512i order = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 0, 8, 1, 9, 2, 10, 3, 11);
    return _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, d));
  }

  // Of 16-byte groups 0 .. 7 (a, then b), the even ones; the odd ones.
  static B even_groups(B a, B b) { return _mm512_shuffle_i64x2(a, b, 0x88); }
  static B odd_groups(B a, B b) { return _mm512_shuffle_i64x2(a, b, 0xDD); }
  // Two accumulators whose four 128-bit groups belong to one block each -> eight dot products.
  static __m256i fold_quads(Acc a, Acc b) {
    const __m512i c = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    const __m512i d = _mm512_add_epi32(c, _mm512_shuffle_epi32(c, _MM_PERM_BADC));
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 0, 4, 8, 12, 1, 5, 9, 13);
    return _mm512_castsi512_si256(_mm512_permutexvar_epi32(order, d));
  }

  // The part of an accumulator of 64 values that belongs to the first 16 of each 32.
  static Acc first_halves(Acc x) { return _mm512_maskz_mov_epi32(0x0F0F, x); }

  // ---- panels ------------------------------------------------------------------------------

  static V load_v(const void* p) { return _mm512_load_si512(p); }
  static A broadcast(const void* p) {
    return _mm512_set1_epi32(*static_cast<const std::int32_t*>(p));
  }
  static void store_v(void* p, V x) { _mm512_store_si512(p, x); }
  static V zero_v() { return _mm512_setzero_si512(); }
  // acc + w * the four activations (dot) or the pair of sums (add_pairs) at p.
#ifdef MOESAIC_VNNI
  // Spelt out, for the compiler does not put a broadcast into the instruction, and one apart takes
  // a third of the throughput (Zen 5).
  static V dot_v(V acc, V w, const void* p) {
    __asm__("vpdpbusd %2%{1to16%}, %1, %0"
            : "+v"(acc)
            : "v"(w), "m"(*static_cast<const std::int32_t*>(p)));
    return acc;
  }
  static V dot_wide_v(V acc, V w, const void* p) { return dot_v(acc, w, p); }
  // An activation for several products; the compiler would put it into each of them instead.
  static V fetch_dword(const void* p) {
    V a;
    __asm__("vpbroadcastd %1, %0" : "=v"(a) : "m"(*static_cast<const std::int32_t*>(p)));
    return a;
  }
  static V dot_with(V acc, V w, V a) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(a));
    return acc;
  }
  static V add_pairs_v(V acc, V w, const void* p) {
    __asm__("vpdpwssd %2%{1to16%}, %1, %0"
            : "+v"(acc)
            : "v"(w), "m"(*static_cast<const std::int32_t*>(p)));
    return acc;
  }
#else
  static V add_pairs_v(V acc, V w, const void* p) { return add_pairs(acc, w, broadcast(p)); }
#endif
  // -factor * a, for a power of two: shifts have a unit to spare where products have none.
  template <int factor>
  static V minus_times(A a) {
    const V x = _mm512_slli_epi32(a, __builtin_ctz(factor));
    return _mm512_sub_epi32(_mm512_setzero_si512(), x);
  }
  static V ones_v() { return _mm512_set1_epi16(1); }
  static V words_v(V w, A a) { return _mm512_maddubs_epi16(w, a); }
  static V words_wide_v(V w, A a) {
    return _mm512_maddubs_epi16(_mm512_abs_epi8(w), negate_as(a, w));
  }
  static V add_words_v(V a, V b) { return _mm512_add_epi16(a, b); }
  static V madd_words_v(V a, V b) { return _mm512_madd_epi16(a, b); }
  // first * (sum of one 16) + second * (sum of the next), in every lane.
  static V scaled_sums(A pair, int first, int second) {
    return _mm512_madd_epi16(
        pair, _mm512_set1_epi32((first & 0xFFFF) |
                                static_cast<int>(static_cast<unsigned>(second) << 16)));
  }
  static V add_v(V a, V b) { return _mm512_add_epi32(a, b); }
  static V mul_v(V a, V b) { return _mm512_mullo_epi32(a, b); }
  // Signed bytes, one per row.
  static V load_scales(const std::int8_t* p) { return _mm512_cvtepi8_epi32(load128(p)); }
  // The same, each as a pair of 16-bit numbers.
  static V load_scale_pairs(const std::int8_t* p) {
    const V s = load_scales(p);
    return _mm512_mask_blend_epi16(0xAAAAAAAA, s, _mm512_slli_epi32(s, 16));
  }
  static Vf zero_f() { return _mm512_setzero_ps(); }
  static Vf to_float(V a) { return _mm512_cvtepi32_ps(a); }
  static Vf load_f(const float* p) { return _mm512_load_ps(p); }
  static Vf load_some_f(const float* p, int n) {  // the first n, then zeros
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1U << n) - 1U), p);
  }
  // Sixteen rows of eight numbers -> their sixteen sums.
  static V add_rows(const std::int32_t (*rows)[8]) {
    // By halves, as they were stored: whole, they would have to wait for the stores to end.
    const auto two = [&](int i) { return pair32(rows[2 * i], rows[2 * i + 1]); };
    const auto pair32 = [](V a, V b) {
      return add_v(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    };
    const auto pair64 = [](V a, V b) {
      return add_v(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    };
    // In 128-bit group g of low: halves of the sums of rows g / 2, + 2, + 4, + 6.
    const V low = pair64(pair32(two(0), two(1)), pair32(two(2), two(3)));
    const V high = pair64(pair32(two(4), two(5)), pair32(two(6), two(7)));
    const V sums =
        add_v(_mm512_shuffle_i32x4(low, high, 0x88), _mm512_shuffle_i32x4(low, high, 0xDD));
    const V order = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
    return _mm512_permutexvar_epi32(order, sums);
  }
  // Each lane from the one after it, the last from the first.
  static Vf rotate_f(Vf x) {
    const V bits = _mm512_castps_si512(x);
    return _mm512_castsi512_ps(_mm512_alignr_epi32(bits, bits, 1));
  }
  // f16 numbers bits(0), bits(1), ... -> floats, times an exact factor.
  template <class Bits>
  static Vf halves(const Bits& bits, float factor) {
    const __m256i x = _mm256_setr_epi16(bits(0), bits(1), bits(2), bits(3), bits(4), bits(5),
                                        bits(6), bits(7), bits(8), bits(9), bits(10), bits(11),
                                        bits(12), bits(13), bits(14), bits(15));
    return _mm512_mul_ps(_mm512_cvtph_ps(x), _mm512_set1_ps(factor));
  }
  static Vf broadcast_f(const float* p) { return _mm512_set1_ps(*p); }
  static Vf mul_f(Vf a, Vf b) { return _mm512_mul_ps(a, b); }
  static Vf add_f(Vf a, Vf b) { return _mm512_add_ps(a, b); }
  static Vf fma_f(Vf a, Vf b, Vf c) { return _mm512_fmadd_ps(a, b, c); }
  static Vf fms_f(Vf a, Vf b, Vf c) { return _mm512_fmsub_ps(a, b, c); }
  static void store_f(float* p, Vf x, int n) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1U << n) - 1U), x);
  }

  // Sixteen bytes of each row, at(row) -> register j: dword j of every row.
  template <class At>
  [[gnu::always_inline]] static void turn_dwords(const At& at, V* out) {
    V r[4];
    for (int q = 0; q < 4; ++q) {
      r[q] = _mm512_castsi128_si512(at(4 * q));
      r[q] = _mm512_inserti32x4(r[q], at(4 * q + 1), 1);
      r[q] = _mm512_inserti32x4(r[q], at(4 * q + 2), 2);
      r[q] = _mm512_inserti32x4(r[q], at(4 * q + 3), 3);
    }
    const V low = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 1, 5, 9, 13, 17, 21, 25, 29);
    const V high = _mm512_setr_epi32(2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31);
    const V a = _mm512_permutex2var_epi32(r[0], low, r[1]);
    const V b = _mm512_permutex2var_epi32(r[2], low, r[3]);
    const V c = _mm512_permutex2var_epi32(r[0], high, r[1]);
    const V d = _mm512_permutex2var_epi32(r[2], high, r[3]);
    out[0] = _mm512_shuffle_i32x4(a, b, 0x44);
    out[1] = _mm512_shuffle_i32x4(a, b, 0xEE);
    out[2] = _mm512_shuffle_i32x4(c, d, 0x44);
    out[3] = _mm512_shuffle_i32x4(c, d, 0xEE);
  }
  // 64 bytes of each row (row i at from + i * stride) -> 16 dword columns: column j of out holds
  // bytes 4 j .. 4 j + 3 of every row.
  static void transpose(const std::uint8_t* from, int stride, std::uint8_t* out) {
    transpose_rows([&](int i) { return from + i * stride; }, out);
  }
  template <class Row>
  [[gnu::always_inline]] static void transpose_rows(const Row& row, std::uint8_t* out) {
    __m512i r[16];
    __m512i t[16];
    for (int i = 0; i < 16; ++i) r[i] = load64(row(i));
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
      r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
      r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
      r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
      r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // r[4 q + j]: 128-bit group g holds dword 4 g + j of rows 4 q .. 4 q + 3.
    for (int j = 0; j < 4; ++j) {
      const __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
      const __m512i b = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xDD);
      const __m512i c = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
      const __m512i d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xDD);
      store64(out + 64 * j, _mm512_shuffle_i32x4(a, c, 0x88));
      store64(out + 64 * (4 + j), _mm512_shuffle_i32x4(b, d, 0x88));
      store64(out + 64 * (8 + j), _mm512_shuffle_i32x4(a, c, 0xDD));
      store64(out + 64 * (12 + j), _mm512_shuffle_i32x4(b, d, 0xDD));
    }
  }
  // Bits of f16 numbers, one per row -> floats, times an exact factor.
  static void store_floats(const std::uint16_t* bits, float factor, float* out) {
    _mm512_store_ps(out, _mm512_mul_ps(_mm512_cvtph_ps(load256(bits)), _mm512_set1_ps(factor)));
  }
  // Bytes of two groups for sixteen rows -> sixteen pairs of 16-bit numbers, times factor.
  static void store_pairs(std::uint8_t* out, __m128i first, __m128i second, int factor) {
    const __m256i bytes =
        _mm256_set_m128i(_mm_unpackhi_epi8(first, second), _mm_unpacklo_epi8(first, second));
    store64(out, _mm512_mullo_epi16(_mm512_cvtepi8_epi16(bytes),
                                    _mm512_set1_epi16(static_cast<short>(factor))));
  }
};

// What x86/few_iq1.h needs beside Ints.
struct FewParts {
  struct Scales {
    Ints::Scales words;

    // From eight 32-bit numbers below 2^15, one per 32 values.
    static Scales of_eight(__m256i scales) {
      return of_sixteen(_mm256_or_si256(scales, _mm256_slli_epi32(scales, 16)));
    }
    static Scales of_sixteen(__m256i words) { return {_mm512_castsi256_si512(words)}; }
    template <int c>
    __m512i quarter() const {
      return Ints::quarter_scales<c>(words);
    }
  };
  struct EightTimes {
    __m512i bytes;

    static EightTimes of(__m256i x) { return {_mm512_castsi256_si512(x)}; }
    // Bytes 8 c .. 8 c + 7, each eight times.
    template <int c>
    __m512i quarter() const {
      return Ints::eight_times_of(_mm512_permutexvar_epi64(_mm512_set1_epi64(c), bytes));
    }
  };
};

}  // namespace moesaic::kernels::MOESAIC_AVX512_NAMESPACE
