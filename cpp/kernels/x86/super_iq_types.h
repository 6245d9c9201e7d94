// Unpacking of the lattice types (IQ1, IQ2, IQ3); see super_types.h for what a type gives.
#pragma once

#include "kernels/x86/super_types.h"

namespace moesaic::kernels {

// Magnitudes up to 62 with signs apart: value + 64 fits the unsigned side.
template <class X, class Block, quant::Qtype type>
struct SignedPoints : SuperTypeBase<X, Block, type> {
  static constexpr int kOffset = 64;

  // Two words of four 7-bit sign fields -> eight bytes, the eighth bit making their number even.
  static std::uint64_t even_signs(std::uint32_t first, std::uint32_t second) {
    const std::uint64_t low = _pdep_u32(first, 0x7F7F7F7FU);
    const std::uint64_t high = _pdep_u32(second, 0x7F7F7F7FU);
    return even_bytes(low | (high << 32));
  }
  // Eight bytes of seven bits, each completed to an even number of bits.
  static std::uint64_t even_bytes(std::uint64_t x) {
    std::uint64_t parity = x ^ (x >> 4);
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return x | ((parity & 0x0101010101010101ULL) << 7);
  }
};

template <class X>
struct IQ2XXS : SignedPoints<X, quant::BlockIQ2_XXS, quant::Qtype::kIQ2_XXS> {
  using Base = SignedPoints<X, quant::BlockIQ2_XXS, quant::Qtype::kIQ2_XXS>;
  using typename Base::B;
  using typename Base::Block;
  using typename Base::Head;
  static constexpr int kGroup = 32;
  static constexpr float kFactor = 0.125F;

  template <int c>
  [[gnu::always_inline]] static B magnitudes(const Block& b) {
    const auto* qs = reinterpret_cast<const std::uint8_t*>(&b) + offsetof(Block, qs) + 16 * c;
    std::uint32_t index[8];
    for (int i = 0; i < 4; ++i) {
      index[i] = qs[i];
      index[4 + i] = qs[8 + i];
    }
    return X::points8(quant::kIq2xxsGrid.data(), index);
  }
  template <int c>
  static B values(const Block& b, const Head&) {
    const auto* words = b.qs + 8 * c;
    return X::offset_signed(magnitudes<c>(b),
                            Base::even_signs(Base::template word<std::uint32_t>(words + 2),
                                             Base::template word<std::uint32_t>(words + 6)),
                            Base::kOffset);
  }
  static __m128i scales(const Block& b) {
    // The top nibble of the second word of each group.
    std::uint64_t bytes = 0;
    for (int g = 7; g >= 0; --g) bytes = (bytes << 8) | (b.qs[4 * g + 3] >> 12);
    return Base::odd(Base::twice(bytes));
  }
};

template <class X>
struct IQ2XS : SignedPoints<X, quant::BlockIQ2_XS, quant::Qtype::kIQ2_XS> {
  using Base = SignedPoints<X, quant::BlockIQ2_XS, quant::Qtype::kIQ2_XS>;
  using typename Base::B;
  using typename Base::Block;
  using typename Base::Head;
  static constexpr float kFactor = 0.125F;

  template <int c>
  [[gnu::always_inline]] static B magnitudes(const Block& b) {
    std::uint32_t index[8];
    for (int i = 0; i < 8; ++i) index[i] = b.qs[8 * c + i] & 511U;
    return X::points8(quant::kIq2xsGrid.data(), index);
  }
  template <int c>
  static B values(const Block& b, const Head&) {
    const __m128i signs = _mm_srli_epi16(X::load128(b.qs + 8 * c), 9);
    const auto bytes =
        static_cast<std::uint64_t>(_mm_cvtsi128_si64(_mm_packus_epi16(signs, signs)));
    return X::offset_signed(magnitudes<c>(b), Base::even_bytes(bytes), Base::kOffset);
  }
  static __m128i scales(const Block& b) {
    return Base::odd(Base::nibbles16(Base::template word<std::uint64_t>(b.scales)));
  }
};

template <class X>
struct IQ2S : SignedPoints<X, quant::BlockIQ2_S, quant::Qtype::kIQ2_S> {
  using Base = SignedPoints<X, quant::BlockIQ2_S, quant::Qtype::kIQ2_S>;
  using typename Base::B;
  using typename Base::Block;
  using typename Base::Head;
  static constexpr float kFactor = 0.125F;

  template <int c>
  [[gnu::always_inline]] static B magnitudes(const Block& b) {
    std::uint32_t index[8];
    const std::uint32_t high = b.qh[2 * c] | (static_cast<std::uint32_t>(b.qh[2 * c + 1]) << 8);
    for (int i = 0; i < 8; ++i) index[i] = b.qs[8 * c + i] | (((high >> (2 * i)) & 3U) << 8);
    return X::points8(quant::kIq2sGrid.data(), index);
  }
  template <int c>
  static B values(const Block& b, const Head&) {
    return X::offset_signed(magnitudes<c>(b), Base::template word<std::uint64_t>(b.signs + 8 * c),
                            Base::kOffset);
  }
  static __m128i scales(const Block& b) {
    return Base::odd(Base::nibbles16(Base::template word<std::uint64_t>(b.scales)));
  }
};

template <class X>
struct IQ3XXS : SignedPoints<X, quant::BlockIQ3_XXS, quant::Qtype::kIQ3_XXS> {
  using Base = SignedPoints<X, quant::BlockIQ3_XXS, quant::Qtype::kIQ3_XXS>;
  using typename Base::B;
  using typename Base::Block;
  using typename Base::Head;
  static constexpr int kGroup = 32;
  static constexpr float kFactor = 0.25F;

  template <int c>
  [[gnu::always_inline]] static B magnitudes(const Block& b) {
    std::uint32_t index[16];
    for (int i = 0; i < 16; ++i) index[i] = b.qs[16 * c + i];
    return X::points4(quant::kIq3xxsGrid.data(), index);
  }
  template <int c>
  static B values(const Block& b, const Head&) {
    const auto* signs = reinterpret_cast<const std::uint8_t*>(&b) + offsetof(Block, signs) + 8 * c;
    return X::offset_signed(magnitudes<c>(b),
                            Base::even_signs(Base::template word<std::uint32_t>(signs),
                                             Base::template word<std::uint32_t>(signs + 4)),
                            Base::kOffset);
  }
  static __m128i scales(const Block& b) {
    const auto* signs = reinterpret_cast<const std::uint8_t*>(&b) + offsetof(Block, signs);
    const __m128i low = _mm_srli_epi32(X::load128(signs), 28);
    const __m128i high = _mm_srli_epi32(X::load128(signs + 16), 28);
    const __m128i words = _mm_packus_epi32(low, high);
    const __m128i bytes = _mm_packus_epi16(words, words);
    return Base::odd(_mm_unpacklo_epi8(bytes, bytes));
  }
};

template <class X>
struct IQ3S : SignedPoints<X, quant::BlockIQ3_S, quant::Qtype::kIQ3_S> {
  using Base = SignedPoints<X, quant::BlockIQ3_S, quant::Qtype::kIQ3_S>;
  using typename Base::B;
  using typename Base::Block;
  using typename Base::Head;
  static constexpr int kGroup = 32;

  template <int c>
  [[gnu::always_inline]] static B magnitudes(const Block& b) {
    std::uint32_t index[16];
    const std::uint32_t high = b.qh[2 * c] | (static_cast<std::uint32_t>(b.qh[2 * c + 1]) << 8);
    for (int i = 0; i < 16; ++i) index[i] = b.qs[16 * c + i] | (((high >> i) & 1U) << 8);
    return X::points4(quant::kIq3sGrid.data(), index);
  }
  template <int c>
  static B values(const Block& b, const Head&) {
    return X::offset_signed(magnitudes<c>(b), Base::template word<std::uint64_t>(b.signs + 8 * c),
                            Base::kOffset);
  }
  static __m128i scales(const Block& b) {
    const __m128i nibbles = Base::nibbles16(Base::template word<std::uint32_t>(b.scales));
    return Base::odd(_mm_unpacklo_epi8(nibbles, nibbles));
  }
};

// The points of eight 16-bit indices.
template <class X>
[[gnu::always_inline]] inline typename X::B indexed_points(const std::uint64_t* grid,
                                                           std::uint64_t first,
                                                           std::uint64_t second) {
  std::uint32_t index[8];
  for (int i = 0; i < 4; ++i) {
    index[i] = static_cast<std::uint16_t>(first >> (16 * i));
    index[4 + i] = static_cast<std::uint16_t>(second >> (16 * i));
  }
  return X::points8(grid, index);
}

// 8 point + delta (+-1) + 16, from points of -1, 0, 1; byte i of `negative` is 1 where the delta of
// point i is -1, else 0.
template <class X>
[[gnu::always_inline]] inline typename X::B moved_points(std::uint64_t first, std::uint64_t second,
                                                         std::uint64_t negative) {
  const typename X::B points = indexed_points<X>(quant::kIq1sGrid.data(), first, second);
  return X::add(X::times8(points), X::eight_times(0x1111111111111111ULL - 2 * negative));
}

template <class X>
struct IQ1S : SuperTypeBase<X, quant::BlockIQ1_S, quant::Qtype::kIQ1_S> {
  using Base = SuperTypeBase<X, quant::BlockIQ1_S, quant::Qtype::kIQ1_S>;
  using typename Base::B;
  using typename Base::Block;
  using typename Base::Head;
  static constexpr int kOffset = 16;
  static constexpr int kTop = 25;
  static constexpr int kGroup = 32;
  static constexpr float kFactor = 0.125F;

  template <int c>
  [[gnu::always_inline]] static B values(const Block& b, const Head&) {
    return moved_points<X>(indices(b, 2 * c), indices(b, 2 * c + 1),
                           four_times(b.qh[2 * c] >> 15, b.qh[2 * c + 1] >> 15));
  }
  // Those of the four points of group g, 16 bits each.
  [[gnu::always_inline]] static std::uint64_t indices(const Block& b, int g) {
    return _pdep_u64(Base::template word<std::uint32_t>(b.qs + 4 * g), 0x00FF00FF00FF00FFULL) |
           _pdep_u64(b.qh[g], 0x0700070007000700ULL);
  }
  // Bytes of four times one bit and four times another.
  static std::uint64_t four_times(std::uint32_t first, std::uint32_t second) {
    return (first | (static_cast<std::uint64_t>(second) << 32)) * 0x01010101U;
  }
  static __m128i scales(const Block& b) {
    const __m128i words = _mm_and_si128(_mm_srli_epi16(X::load128(b.qh), 12), _mm_set1_epi16(7));
    const __m128i bytes = _mm_packus_epi16(words, words);
    return Base::odd(_mm_unpacklo_epi8(bytes, bytes));
  }
};

template <class X>
struct IQ1M : SuperTypeBase<X, quant::BlockIQ1_M, quant::Qtype::kIQ1_M> {
  using Base = SuperTypeBase<X, quant::BlockIQ1_M, quant::Qtype::kIQ1_M>;
  using typename Base::B;
  using typename Base::Block;
  using typename Base::Head;
  static constexpr int kOffset = 16;
  static constexpr int kTop = 25;
  static constexpr float kFactor = 0.125F;

  template <int c>
  [[gnu::always_inline]] static B values(const Block& b, const Head&) {
    const auto deltas = _pext_u32(Base::template word<std::uint32_t>(b.qh + 4 * c), 0x88888888U);
    return moved_points<X>(indices(b, 2 * c), indices(b, 2 * c + 1),
                           _pdep_u64(deltas, 0x0101010101010101ULL));
  }
  // Those of the four points of values 32 g .. 32 g + 31, 16 bits each.
  [[gnu::always_inline]] static std::uint64_t indices(const Block& b, int g) {
    return _pdep_u64(Base::template word<std::uint32_t>(b.qs + 4 * g), 0x00FF00FF00FF00FFULL) |
           _pdep_u64(Base::template word<std::uint16_t>(b.qh + 2 * g) & 0x7777U,
                     0x0F000F000F000F00ULL);
  }
  static __m128i scales(const Block& b) {
    const auto all = Base::template word<std::uint64_t>(b.scales);
    const std::uint64_t low =
        _pdep_u64((all & 0xFFFU) | ((all >> 4) & 0xFFF000U), 0x0707070707070707ULL);
    const std::uint64_t high =
        _pdep_u64(((all >> 32) & 0xFFFU) | ((all >> 36) & 0xFFF000U), 0x0707070707070707ULL);
    return Base::odd(_mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low)));
  }
  static std::uint16_t d(const Block& b) {
    const auto all = Base::template word<std::uint64_t>(b.scales);
    return static_cast<std::uint16_t>(_pext_u64(all, 0xF000F000F000F000ULL));
  }
};

}  // namespace moesaic::kernels
