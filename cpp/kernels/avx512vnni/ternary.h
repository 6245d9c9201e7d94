// TQ1_0 with VBMI: the digits of 64 values by one permute, one product modulo 256 and two
// comparisons. What it does not change it inherits from x86/super_types.h.
#pragma once

#include <array>

#include "kernels/avx512vnni/isa.h"
#include "kernels/x86/super_types.h"

namespace moesaic::kernels::avx512vnni {

// Where value i comes from (quant/tq1_0.h): digit n of a byte is the top digit of byte * 3^n.
struct TernarySource {
  alignas(64) std::array<std::uint8_t, 256> byte{};
  alignas(64) std::array<std::uint8_t, 256> power{};
  constexpr TernarySource() {
    constexpr std::uint8_t kPowers[] = {1, 3, 9, 27, 81};
    const auto put = [&](int begin, int end, int first, int n_bytes) {
      for (int i = begin; i < end; ++i) {
        byte[static_cast<std::size_t>(i)] =
            static_cast<std::uint8_t>(first + (i - begin) % n_bytes);
        power[static_cast<std::size_t>(i)] = kPowers[(i - begin) / n_bytes];
      }
    };
    put(0, 160, 0, 32);
    put(160, 240, 32, 16);
    put(240, 256, 48, 4);
  }
};
inline constexpr TernarySource kTernarySource = {};

struct FastTQ1 : TQ1<Ints> {
  struct Head {
    __m512i bytes;
  };
  static Head head(const Block& b) { return {Ints::load64_of(&b, sizeof(Block), 0)}; }

  template <int c>
  static B values(const Block&, const Head& h) {
    const __m512i bytes =
        _mm512_permutexvar_epi8(_mm512_load_si512(kTernarySource.byte.data() + 64 * c), h.bytes);
    const __m512i x =
        Ints::multiply(bytes, _mm512_load_si512(kTernarySource.power.data() + 64 * c));
    // x * 3 / 256: 1 from 86 on, 2 from 171 on.
    const __m512i one =
        _mm512_maskz_mov_epi8(_mm512_cmpge_epu8_mask(x, Ints::set1(86)), Ints::set1(1));
    return Ints::add_where(one, _mm512_cmpge_epu8_mask(x, Ints::set1(171)), 1);
  }
};

}  // namespace moesaic::kernels::avx512vnni
