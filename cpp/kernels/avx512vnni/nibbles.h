// The types with blocks of 32 nibbles, four blocks at a time for few columns: one two-register
// permute (VBMI) brings the nibbles of four blocks side by side, another one fetches the scales of
// eight. And IQ4_XS, whose groups of 32 lie side by side in the file. Everything else is inherited
// from x86/small_types.h and x86/super_types.h.
#pragma once

#include <array>

#include "kernels/avx512vnni/isa.h"
#include "kernels/x86/small_types.h"
#include "kernels/x86/super_types.h"

namespace moesaic::kernels::avx512vnni {

// The bytes of eight blocks of n: from the first and from the fifth block on, and the last 64 bytes
// of each four.
struct EightBlocks {
  __m512i head[2];
  __m512i tail[2];
};

template <class T>
struct Quads : T {
  using typename T::B;
  static constexpr bool kQuads = true;
  static constexpr int kBytes = T::kBytes;
  static constexpr int kNibblesAt = kBytes - 16;  // nibbles are the last 16 bytes of a block
  static_assert(kBytes <= 20 && 3 * kBytes + kNibblesAt <= 64 && 4 * kBytes >= 64);

  template <class Chunk>
  static EightBlocks load(const Chunk& blocks) {
    return {{blocks.load64(0), blocks.load64(4 * kBytes)},
            {blocks.load64(4 * kBytes - 64), blocks.load64(8 * kBytes - 64)}};
  }

  // Where byte i of the nibbles of four blocks stands: in head[h], or (from 64 on) in tail[h].
  static constexpr std::array<std::uint8_t, 64> nibble_order() {
    std::array<std::uint8_t, 64> order{};
    for (int i = 0; i < 64; ++i) {
      const int at = i / 16 * kBytes + kNibblesAt + i % 16;
      order[static_cast<std::size_t>(i)] =
          static_cast<std::uint8_t>(at < 64 ? at : 64 + at - (4 * kBytes - 64));
    }
    return order;
  }
  alignas(64) static constexpr std::array<std::uint8_t, 64> kNibbleOrder = nibble_order();

  // Values of the first and second halves of four blocks.
  static void unpack_quad(const EightBlocks& bytes, int h, B& first, B& second) {
    const __m512i x = _mm512_permutex2var_epi8(
        bytes.head[h], _mm512_load_si512(kNibbleOrder.data()), bytes.tail[h]);
    first = T::levels(_mm512_and_si512(x, Ints::set1(15)));
    second = T::levels(_mm512_and_si512(_mm512_srli_epi16(x, 4), Ints::set1(15)));
    if constexpr (T::kWide) {
      first = Ints::widen(first);
      second = Ints::widen(second);
    }
  }

  // f16 numbers at an even offset in the first 64 bytes of each four blocks.
  template <int offset>
  static __m256 eight_halves(const EightBlocks& bytes) {
    constexpr auto kWord = [](int i) { return (i % 4 * kBytes + offset) / 2 + i / 4 * 32; };
    const __m512i order = _mm512_castsi128_si512(_mm_setr_epi16(
        kWord(0), kWord(1), kWord(2), kWord(3), kWord(4), kWord(5), kWord(6), kWord(7)));
    const __m512i words = _mm512_permutex2var_epi16(bytes.head[0], order, bytes.head[1]);
    return _mm256_cvtph_ps(_mm512_castsi512_si128(words));
  }
  using T::d;
  using T::d_and_min;
  static __m256 d(const EightBlocks& bytes) {
    if constexpr (T::kQtype == quant::Qtype::kMXFP4) {
      // The first byte of every block, each in a word of 32 bits.
      const __m512i order =
          _mm512_castsi256_si512(_mm256_setr_epi32(0, 17, 34, 51, 64, 64 + 17, 64 + 34, 64 + 51));
      return T::scales_of(_mm512_castsi512_si256(
          _mm512_maskz_permutex2var_epi8(0x11111111, bytes.head[0], order, bytes.head[1])));
    } else {
      return eight_halves<0>(bytes);
    }
  }
  static void d_and_min(const EightBlocks& bytes, __m256& scale, __m256& minimum) {
    scale = eight_halves<0>(bytes);
    minimum = eight_halves<2>(bytes);
  }
};

struct FastIQ4XS : IQ4XS<Ints> {
  static constexpr bool kQuads = true;

  // Values of the first and second halves of the groups 4 h .. 4 h + 3.
  static void unpack_quad(const Block& b, int h, B& first, B& second) {
    const __m128i raised =
        _mm_xor_si128(Ints::load128(quant::kIq4nlLevels.data()), _mm_set1_epi8(-128));
    const __m512i x = Ints::load64(b.qs + 64 * h);
    first = Ints::lookup(raised, _mm512_and_si512(x, Ints::set1(15)));
    second = Ints::lookup(raised, _mm512_and_si512(_mm512_srli_epi16(x, 4), Ints::set1(15)));
  }
};

}  // namespace moesaic::kernels::avx512vnni
