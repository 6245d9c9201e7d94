// The lattice types with VBMI and GFNI: their grids fit registers as 16-bit words (two or four bits
// an element), so that all points of a super-block are looked up by a few permutes instead of one
// load each. A type here gives what x86/super_types.h asks for; what it does not change it inherits
// from x86/super_iq_types.h.
#pragma once

#include "kernels/avx512vnni/isa.h"
#include "kernels/x86/super_iq_types.h"
#include "quant/grids_packed.h"

namespace moesaic::kernels::avx512vnni {

struct Lattice {
  // table[i] for 32 indices below n, a power of two from 64 on.
  template <int n>
  static __m512i look_up(const std::uint16_t* table, __m512i index) {
    if constexpr (n == 64) {
      return _mm512_permutex2var_epi16(_mm512_loadu_si512(table), index,
                                       _mm512_loadu_si512(table + 32));
    } else {
      const __m512i low = look_up<n / 2>(table, index);
      const __m512i high = look_up<n / 2>(table + n / 2, index);
      const __mmask32 upper = _mm512_test_epi16_mask(index, _mm512_set1_epi16(n / 2));
      return _mm512_mask_blend_epi16(upper, low, high);
    }
  }

  // Words 8 c .. 8 c + 7, each eight fields of two bits -> 64 bytes.
  template <int c>
  static __m512i eight_fields(__m512i words) {
    const __m512i order =
        _mm512_set_epi64(copies(8 * c + 7), copies(8 * c + 6), copies(8 * c + 5), copies(8 * c + 4),
                         copies(8 * c + 3), copies(8 * c + 2), copies(8 * c + 1), copies(8 * c));
    const __m512i shift = _mm512_set1_epi64(0x0E0C0A0806040200);
    return _mm512_and_si512(
        _mm512_multishift_epi64_epi8(shift, _mm512_permutexvar_epi16(order, words)), Ints::set1(3));
  }
  // Words 16 c .. 16 c + 15, each four fields of four bits -> 64 bytes.
  template <int c>
  static __m512i four_fields(__m512i words) {
    const __m512i order =
        _mm512_set_epi64(pair(16 * c + 14), pair(16 * c + 12), pair(16 * c + 10), pair(16 * c + 8),
                         pair(16 * c + 6), pair(16 * c + 4), pair(16 * c + 2), pair(16 * c));
    const __m512i shift = _mm512_set1_epi64(0x2C2824200C080400);
    return _mm512_and_si512(
        _mm512_multishift_epi64_epi8(shift, _mm512_permutexvar_epi16(order, words)),
        Ints::set1(15));
  }
  static constexpr long long copies(int word) { return word * 0x0001000100010001LL; }
  static constexpr long long pair(int word) {  // word, word, word + 1, word + 1
    return copies(word) + 0x0001000100000000LL;
  }

  // 64 + level of a field, or 64 - level where the mask has a bit.
  static __m512i signed_levels(__m128i raised, __m512i field, std::uint64_t negative) {
    const __m512i x = Ints::lookup(raised, field);
    return _mm512_mask_sub_epi8(x, negative, Ints::set1(128), x);
  }

  // Sign masks of the four quarters of a block.
  struct Signs {
    std::uint64_t quarter[4];
  };
  // 32 bytes of seven signs; the eighth makes their number even.
  static Signs even_signs(__m256i sevens) {
    const __m256i matrix = _mm256_set1_epi64x(0x010204081020407F);
    Signs out;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out.quarter),
                        _mm256_gf2p8affine_epi64_epi8(sevens, matrix, 0));
    return out;
  }
  // The same from eight words of four 7-bit fields.
  static Signs even_signs_of_words(__m256i words) {
    const __m256i shift = _mm256_set1_epi64x(0x352E2720150E0700);
    return even_signs(_mm256_multishift_epi64_epi8(shift, words));
  }
  // The top nibbles n of eight words -> 2 n + 1, each twice.
  static __m128i odd_scales(__m256i words) {
    const __m128i n = _mm256_cvtepi32_epi8(_mm256_srli_epi32(words, 28));
    const __m128i odd = _mm_add_epi8(_mm_add_epi8(n, n), _mm_set1_epi8(1));
    return _mm_unpacklo_epi8(odd, odd);
  }
};

alignas(16) inline constexpr std::uint8_t kRaised2[16] = {64 + 8, 64 + 25, 64 + 43};
alignas(16) inline constexpr std::uint8_t kRaised3xxs[16] = {64 + 4,  64 + 12, 64 + 20, 64 + 28,
                                                             64 + 36, 64 + 44, 64 + 52, 64 + 62};
alignas(16) inline constexpr std::uint8_t kRaised3s[16] = {64 + 1, 64 + 3,  64 + 5,  64 + 7,
                                                           64 + 9, 64 + 11, 64 + 13, 64 + 15};

// Points of eight two-bit fields, 32 to a block.
struct EightFieldHead {
  __m512i words;
  Lattice::Signs signs;

  template <int c>
  __m512i values() const {
    return Lattice::signed_levels(Ints::load128(kRaised2), Lattice::eight_fields<c>(words),
                                  signs.quarter[c]);
  }
};

struct FastIQ2XXS : IQ2XXS<Ints> {
  using Head = EightFieldHead;

  static __m256i sign_words(__m512i block) {
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
    return _mm512_castsi512_si256(_mm512_permutexvar_epi32(odd, block));
  }
  static Head head(const Block& b) {
    const __m512i x = _mm512_loadu_si512(b.qs);
    // Bytes 0..3 of every eight, as words.
    const __m512i order = _mm512_set_epi64(
        0x003B003A00390038, 0x0033003200310030, 0x002B002A00290028, 0x0023002200210020,
        0x001B001A00190018, 0x0013001200110010, 0x000B000A00090008, 0x0003000200010000);
    const __m512i index = _mm512_maskz_permutexvar_epi8(0x5555555555555555ULL, order, x);
    return {Lattice::look_up<256>(quant::packed::kIq2xxs, index),
            Lattice::even_signs_of_words(sign_words(x))};
  }
  template <int c>
  static B values(const Block&, const Head& h) {
    return h.values<c>();
  }
  static __m128i scales(const Block& b) {
    return Lattice::odd_scales(sign_words(_mm512_loadu_si512(b.qs)));
  }
};

struct FastIQ2XS : IQ2XS<Ints> {
  using Head = EightFieldHead;

  static Head head(const Block& b) {
    const __m512i x = _mm512_loadu_si512(b.qs);
    const __m512i index = _mm512_and_si512(x, _mm512_set1_epi16(511));
    return {Lattice::look_up<512>(quant::packed::kIq2xs, index),
            Lattice::even_signs(_mm512_cvtepi16_epi8(_mm512_srli_epi16(x, 9)))};
  }
  template <int c>
  static B values(const Block&, const Head& h) {
    return h.values<c>();
  }
};

struct FastIQ2S : IQ2S<Ints> {
  using Head = EightFieldHead;

  static Head head(const Block& b) {
    // Word g: byte g of qs, above it bits 2 g and 2 g + 1 of qh.
    const __m512i shift = _mm512_set_epi64(
        0x3E003C003A003800, 0x3600340032003000, 0x2E002C002A002800, 0x2600240022002000,
        0x1E001C001A001800, 0x1600140012001000, 0x0E000C000A000800, 0x0600040002000000);
    const __m512i all = _mm512_set1_epi64(word<long long>(b.qh));
    const __m512i high =
        _mm512_and_si512(_mm512_multishift_epi64_epi8(shift, all), _mm512_set1_epi16(0x0300));
    const __m512i index = _mm512_or_si512(high, _mm512_cvtepu8_epi16(Ints::load256(b.qs)));
    Head h{Lattice::look_up<1024>(quant::packed::kIq2s, index), {}};
    __builtin_memcpy(h.signs.quarter, b.signs, 32);
    return h;
  }
  template <int c>
  static B values(const Block&, const Head& h) {
    return h.values<c>();
  }
};

// Points of four four-bit fields, 64 to a block.
struct FourFieldHead {
  __m512i words[2];
  Lattice::Signs signs;

  template <int c>
  __m512i values(const std::uint8_t* raised) const {
    return Lattice::signed_levels(Ints::load128(raised), Lattice::four_fields<c % 2>(words[c / 2]),
                                  signs.quarter[c]);
  }
};

struct FastIQ3XXS : IQ3XXS<Ints> {
  using Head = FourFieldHead;

  static __m256i sign_words(const Block& b) {
    return Ints::load256(reinterpret_cast<const std::uint8_t*>(&b) + offsetof(Block, signs));
  }
  static Head head(const Block& b) {
    const auto points = [&](int at) {
      return Lattice::look_up<256>(quant::packed::kIq3xxs,
                                   _mm512_cvtepu8_epi16(Ints::load256(b.qs + at)));
    };
    return {{points(0), points(32)}, Lattice::even_signs_of_words(sign_words(b))};
  }
  template <int c>
  static B values(const Block&, const Head& h) {
    return h.values<c>(kRaised3xxs);
  }
  static __m128i scales(const Block& b) { return Lattice::odd_scales(sign_words(b)); }
};

struct FastIQ3S : IQ3S<Ints> {
  using Head = FourFieldHead;

  static Head head(const Block& b) {
    const auto points = [&](int at) {
      const __m512i low = _mm512_cvtepu8_epi16(Ints::load256(b.qs + at));
      const auto high = word<__mmask32>(b.qh + at / 8);
      return Lattice::look_up<512>(quant::packed::kIq3s,
                                   _mm512_mask_add_epi16(low, high, low, _mm512_set1_epi16(256)));
    };
    Head h{{points(0), points(32)}, {}};
    __builtin_memcpy(h.signs.quarter, b.signs, 32);
    return h;
  }
  template <int c>
  static B values(const Block&, const Head& h) {
    return h.values<c>(kRaised3s);
  }
};

}  // namespace moesaic::kernels::avx512vnni
