// K-quants with VBMI: sub-scales of six bits are taken out of their bytes by shifts of any distance
// (vpmultishiftqb), all at once, instead of by scalar code. A type here gives what
// x86/super_types.h asks for; the layouts are tabled in quant/k_scales.h and quant/q3_k.h.
#pragma once

#include "kernels/avx512vnni/isa.h"
#include "kernels/x86/super_types.h"

namespace moesaic::kernels::avx512vnni {

struct SixBits {
  // Eight scales, then eight minima of Q4_K and Q5_K, whose twelve bytes begin at `bytes` and
  // follow two f16 numbers.
  static __m128i scales_and_mins(const std::uint8_t* bytes) {
    // Scales: bytes 0..3 | 8..11; minima: 4..7 | 8..11.
    const __m128i order = _mm_setr_epi8(4, 5, 6, 7, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m128i x = _mm_shuffle_epi8(Ints::load128(bytes - 4), order);
    // Low parts: six bits of the first four, a nibble of the others (minima: the high one).
    const __m128i low =
        _mm_multishift_epi64_epi8(_mm_set_epi64x(0x3C342C2418100800, 0x3830282018100800), x);
    // The others' bits 4 and 5: bits 6 and 7 of the first four.
    const __m128i high = _mm_multishift_epi64_epi8(_mm_set1_epi64x(0x1A120A021A120A02), x);
    const __m128i low_mask = _mm_set1_epi64x(0x0F0F0F0F3F3F3F3F);
    const __m128i high_mask = _mm_set1_epi64x(0x3030303000000000);
    return _mm_ternarylogic_epi64(_mm_and_si128(low, low_mask), high, high_mask, 0xF8);
  }
};

// Q4_K and Q5_K.
template <class T>
struct FastKScaled : T {
  using Block = typename T::Block;
  static __m128i scales(const Block& b) {
    const __m128i x = SixBits::scales_and_mins(b.scales);
    return _mm_unpacklo_epi8(x, x);
  }
  static __m128i mins(const Block& b) {
    const __m128i x = SixBits::scales_and_mins(b.scales);
    return _mm_unpackhi_epi8(x, x);
  }
};

struct FastQ3K : Q3K<Ints> {
  static __m128i scales(const Block& b) {
    return _mm_sub_epi8(stored_scales(b), _mm_set1_epi8(32));
  }
  // The same as they are stored, with 32 added.
  static __m128i stored_scales(const Block& b) {
    // Bytes 94 .. 109 of the block: two of qs, twelve of scales, d.
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(&b) + sizeof(Block) - 16;
    const __m128i x = Ints::load128(bytes);
    const __m128i lows =
        _mm_shuffle_epi8(x, _mm_setr_epi8(2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5, 6, 7, 8, 9));
    const __m128i highs = _mm_shuffle_epi8(
        x, _mm_setr_epi8(10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13, 10, 11, 12, 13));
    // Scale i: nibble i / 8 of byte i % 8, above it bits 2 (i / 4) of byte 8 + i % 4 (here they
    // come to stand at bits 4 and 5).
    const __m128i low =
        _mm_multishift_epi64_epi8(_mm_set_epi64x(0x3C342C241C140C04, 0x3830282018100800), lows);
    const __m128i high =
        _mm_multishift_epi64_epi8(_mm_set_epi64x(0x1A120A0218100800, 0x160E063E140C043C), highs);
    return _mm_ternarylogic_epi64(_mm_and_si128(low, _mm_set1_epi8(15)), high, _mm_set1_epi8(0x30),
                                  0xF8);
  }
};

}  // namespace moesaic::kernels::avx512vnni
