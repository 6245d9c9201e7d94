// Unpacking of the types with blocks of 32 into bytes, over the vocabulary X; the skeletons in
// small_few.h and small_many.h do the rest. Bit layouts are tabled in quant/<type>.h, the formulas
// in unpack.h.
//
// A type gives:
//   kQtype, Block        which type, its block
//   kHasMin              it has a minimum
//   kOffset              values are stored with this added (a power of two, or 0)
//   kTop                 the largest stored value
//   kWide                values are signed bytes of any size instead (X::widen, X::dot_wide)
//   kHasD16              it has a scale per 16 (d16() beside d())
//   kHasQuarter          its blocks are larger than 32 (quarter() instead of values())
//   kQuads               it unpacks four blocks at a time for few columns (avx512vnni/nibbles.h)
//   values(p, q)         the values of the blocks p and q, one after the other
//   quarter(blocks, i)   the values 64 i .. 64 i + 63 of a chunk
//   d(blocks), min(...)  the floats of a chunk of 256 values (WholeChunk or CutChunk), eight of
//   each
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/x86/reduce.h"
#include "quant/grids.h"
#include "quant/iq4_nl.h"
#include "quant/mxfp4.h"
#include "quant/nvfp4.h"
#include "quant/q1_0.h"
#include "quant/q2_0.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q5_0.h"
#include "quant/q5_1.h"
#include "quant/q8_0.h"
#include "quant/qtype.h"

namespace moesaic::kernels {

// The blocks of a chunk of 256 values, one after the other.
template <class X, class Block>
struct WholeChunk {
  const std::uint8_t* data;
  static constexpr int n_quarters() { return 4; }  // of 64 values
  typename X::B load64(int offset) const { return X::load64(data + offset); }
  const std::uint8_t* operator()(int i) const { return data + i * static_cast<int>(sizeof(Block)); }
};

// The same where a row of type T ends before its chunk does: blocks past the end are made up (the
// activations there are zeros), with a scale that is quick to multiply by.
template <class X, class T>
struct CutChunk {
  const std::uint8_t* data;
  int n_blocks;
  int n_quarters() const { return (n_blocks * T::kBlockValues + 63) / 64; }
  // 64 bytes from an offset on, those of missing blocks made up (X with masks only).
  typename X::B load64(int offset) const {
    return X::load64_of(data + offset, n_blocks * T::kBytes - offset, T::kMissingByte);
  }
  const std::uint8_t* operator()(int i) const {
    return i < n_blocks ? data + i * T::kBytes : kMissing.bytes;
  }

  struct Missing {
    std::uint8_t bytes[T::kBytes] = {};
    constexpr Missing() {
      for (std::uint8_t& byte : bytes) byte = T::kMissingByte;
    }
  };
  static constexpr Missing kMissing = {};
};

template <class X, class Block_, quant::Qtype type>
struct SmallTypeBase {
  using B = typename X::B;
  using Block = Block_;
  static constexpr quant::Qtype kQtype = type;
  static constexpr int kBytes = sizeof(Block);
  static constexpr bool kHasMin = false;
  static constexpr bool kHasD16 = false;
  static constexpr bool kHasQuarter = false;
  static constexpr bool kQuads = false;
  static constexpr bool kWide = false;
  static constexpr int kOffset = 0;
  static constexpr int kTop = 127;
  static constexpr int kBlockValues = 32;
  static constexpr std::uint8_t kMissingByte = 0;
  static constexpr int kChunkBytes = 8 * kBytes;  // of 256 values

  // f16 numbers at offset `at` of eight blocks.
  template <class Chunk>
  static __m256 halves(const Chunk& blocks, int at) {
    const auto half = [&](int i) {
      short bits;
      __builtin_memcpy(&bits, blocks(i) + at, 2);
      return bits;
    };
    return _mm256_cvtph_ps(
        _mm_setr_epi16(half(0), half(1), half(2), half(3), half(4), half(5), half(6), half(7)));
  }
  template <class Chunk>
  static __m256 d(const Chunk& blocks) {
    return halves(blocks, 0);
  }
  // Scale and minimum of eight blocks that begin with the two as f16 numbers.
  template <class Chunk>
  static void d_and_min(const Chunk& blocks, __m256& scale, __m256& minimum) {
    const auto both = [&](int i) {
      int bits;
      __builtin_memcpy(&bits, blocks(i), 4);
      return bits;
    };
    const __m128i low = _mm_setr_epi32(both(0), both(1), both(2), both(3));
    const __m128i high = _mm_setr_epi32(both(4), both(5), both(6), both(7));
    const __m128i word = _mm_set1_epi32(0xFFFF);
    scale = _mm256_cvtph_ps(_mm_packus_epi32(_mm_and_si128(low, word), _mm_and_si128(high, word)));
    minimum = _mm256_cvtph_ps(_mm_packus_epi32(_mm_srli_epi32(low, 16), _mm_srli_epi32(high, 16)));
  }

  // Low nibbles of 16 bytes, then high ones, of two blocks.
  static B nibbles(const Block& p, const Block& q) {
    return X::nibbles_by_16(X::pair16(p.qs, q.qs));
  }
  // What nibbles stand for, as values() gives it.
  static B levels(B nibbles) { return nibbles; }
};

template <class X>
struct Q40 : SmallTypeBase<X, quant::BlockQ4_0, quant::Qtype::kQ4_0> {
  using Base = SmallTypeBase<X, quant::BlockQ4_0, quant::Qtype::kQ4_0>;
  using typename Base::B;
  using typename Base::Block;
  static constexpr int kOffset = 8;
  static constexpr int kTop = 15;
  static B values(const Block& p, const Block& q) { return Base::nibbles(p, q); }
};

template <class X>
struct Q41 : SmallTypeBase<X, quant::BlockQ4_1, quant::Qtype::kQ4_1> {
  using Base = SmallTypeBase<X, quant::BlockQ4_1, quant::Qtype::kQ4_1>;
  using typename Base::B;
  using typename Base::Block;
  static constexpr int kTop = 15;
  static constexpr bool kHasMin = true;
  static B values(const Block& p, const Block& q) { return Base::nibbles(p, q); }
};

// Nibbles and a fifth bit; bit i of qh belongs to value i.
template <class X, class Block>
typename X::B five_bits(typename X::B nibbles, const Block& p, const Block& q) {
  const std::uint64_t high = p.qh | (static_cast<std::uint64_t>(q.qh) << 32);
  return X::add_where(nibbles, high, 16);
}

template <class X>
struct Q50 : SmallTypeBase<X, quant::BlockQ5_0, quant::Qtype::kQ5_0> {
  using Base = SmallTypeBase<X, quant::BlockQ5_0, quant::Qtype::kQ5_0>;
  using typename Base::B;
  using typename Base::Block;
  static constexpr int kTop = 31;
  static constexpr int kOffset = 16;
  static B values(const Block& p, const Block& q) {
    return five_bits<X>(Base::nibbles(p, q), p, q);
  }
};

template <class X>
struct Q51 : SmallTypeBase<X, quant::BlockQ5_1, quant::Qtype::kQ5_1> {
  using Base = SmallTypeBase<X, quant::BlockQ5_1, quant::Qtype::kQ5_1>;
  using typename Base::B;
  using typename Base::Block;
  static constexpr int kTop = 31;
  static constexpr bool kHasMin = true;
  static B values(const Block& p, const Block& q) {
    return five_bits<X>(Base::nibbles(p, q), p, q);
  }
};

template <class X>
struct Q80 : SmallTypeBase<X, quant::BlockQ8_0, quant::Qtype::kQ8_0> {
  using Base = SmallTypeBase<X, quant::BlockQ8_0, quant::Qtype::kQ8_0>;
  using typename Base::B;
  using typename Base::Block;
  static constexpr bool kWide = true;
  static B values(const Block& p, const Block& q) { return X::pair32(p.qs, q.qs); }
};

template <class X>
struct IQ4NL : SmallTypeBase<X, quant::BlockIQ4_NL, quant::Qtype::kIQ4_NL> {
  using Base = SmallTypeBase<X, quant::BlockIQ4_NL, quant::Qtype::kIQ4_NL>;
  using typename Base::B;
  using typename Base::Block;
  static constexpr bool kWide = true;
  static B levels(B nibbles) { return X::lookup(X::load128(quant::kIq4nlLevels.data()), nibbles); }
  static B values(const Block& p, const Block& q) { return levels(Base::nibbles(p, q)); }
};

// The E2M1 levels plus 16.
alignas(16) inline constexpr std::uint8_t kFp4Raised[16] = {16, 17, 18, 19, 20, 22, 24, 28,
                                                            16, 15, 14, 13, 12, 10, 8,  4};

template <class X>
struct MXFP4 : SmallTypeBase<X, quant::BlockMXFP4, quant::Qtype::kMXFP4> {
  using Base = SmallTypeBase<X, quant::BlockMXFP4, quant::Qtype::kMXFP4>;
  using typename Base::B;
  using typename Base::Block;
  static constexpr int kTop = 28;
  static constexpr int kOffset = 16;
  static constexpr std::uint8_t kMissingByte = 0x77;  // 0 would be a subnormal scale
  static B levels(B nibbles) { return X::lookup(X::load128(kFp4Raised), nibbles); }
  static B values(const Block& p, const Block& q) { return levels(Base::nibbles(p, q)); }
  template <class Chunk>
  static __m256 d(const Chunk& blocks) {
    const auto e = [&](int i) { return static_cast<int>(*blocks(i)); };
    return scales_of(_mm256_setr_epi32(e(0), e(1), e(2), e(3), e(4), e(5), e(6), e(7)));
  }
  // 2^(e - 128); e = 0 and 1 are subnormal floats.
  static __m256 scales_of(__m256i exponent) {
    const __m256i one = _mm256_set1_epi32(1);
    const __m256i normal = _mm256_slli_epi32(_mm256_sub_epi32(exponent, one), 23);
    const __m256i subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), exponent);
    const __m256i is_normal = _mm256_cmpgt_epi32(exponent, one);
    return _mm256_castsi256_ps(_mm256_blendv_epi8(subnormal, normal, is_normal));
  }
};

// Blocks of 64 with a scale per 16: each counts as two blocks of 32 with two scales.
template <class X>
struct NVFP4 : SmallTypeBase<X, quant::BlockNVFP4, quant::Qtype::kNVFP4> {
  using Base = SmallTypeBase<X, quant::BlockNVFP4, quant::Qtype::kNVFP4>;
  using typename Base::B;
  using typename Base::Block;
  static constexpr int kTop = 28;
  static constexpr bool kHasD16 = true;
  static constexpr bool kHasQuarter = true;
  static constexpr int kOffset = 16;
  static constexpr int kBlockValues = 64;
  static constexpr int kChunkBytes = 4 * Base::kBytes;

  template <class Chunk>
  static B quarter(const Chunk& blocks, int i) {
    const auto& block = *reinterpret_cast<const Block*>(blocks(i));
    return X::lookup(X::load128(kFp4Raised), X::nibbles_by_8(block.qs));
  }
  // Scales 2 i + first of the sixteen of a chunk: E4M3 without a sign, halved; 0x7F stands for 0.
  template <class Chunk>
  static __m256 scales(const Chunk& blocks, int first) {
    const auto at = [&](int i) { return static_cast<int>(blocks(i / 2)[i % 2 * 2 + first]); };
    const __m256i x = _mm256_setr_epi32(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7));
    const __m256i low7 = _mm256_and_si256(x, _mm256_set1_epi32(127));
    const __m256 normal = _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(low7, _mm256_set1_epi32(119 << 3)), 20));
    const __m256 subnormal = _mm256_mul_ps(_mm256_cvtepi32_ps(low7), _mm256_set1_ps(0x1p-10F));
    const __m256i is_normal = _mm256_cmpgt_epi32(low7, _mm256_set1_epi32(7));
    const __m256i is_zero = _mm256_cmpeq_epi32(x, _mm256_set1_epi32(127));
    return _mm256_andnot_ps(_mm256_castsi256_ps(is_zero),
                            _mm256_blendv_ps(subnormal, normal, _mm256_castsi256_ps(is_normal)));
  }
  template <class Chunk>
  static __m256 d(const Chunk& blocks) {
    return scales(blocks, 0);
  }
  template <class Chunk>
  static __m256 d16(const Chunk& blocks) {
    return scales(blocks, 1);
  }
};

// Blocks of 128 signs with one scale: each counts as four blocks of 32. Stored here as 0 and 2.
template <class X>
struct Q10 : SmallTypeBase<X, quant::BlockQ1_0, quant::Qtype::kQ1_0> {
  using Base = SmallTypeBase<X, quant::BlockQ1_0, quant::Qtype::kQ1_0>;
  using typename Base::B;
  using typename Base::Block;
  static constexpr int kTop = 2;
  static constexpr int kOffset = 1;
  static constexpr bool kHasQuarter = true;
  static constexpr int kBlockValues = 128;
  static constexpr int kChunkBytes = 2 * Base::kBytes;

  template <class Chunk>
  static B quarter(const Chunk& blocks, int i) {
    const auto& block = *reinterpret_cast<const Block*>(blocks(i / 2));
    std::uint64_t signs;
    __builtin_memcpy(&signs, block.qs + i % 2 * 8, 8);
    return X::add_where(X::set1(0), signs, 2);
  }
  template <class Chunk>
  static __m256 d(const Chunk& blocks) {
    return Base::halves([&](int i) { return blocks(i / 4); }, 0);
  }
};

// Blocks of 64 with one scale: each counts as two blocks of 32.
template <class X>
struct Q20 : SmallTypeBase<X, quant::BlockQ2_0, quant::Qtype::kQ2_0> {
  using Base = SmallTypeBase<X, quant::BlockQ2_0, quant::Qtype::kQ2_0>;
  using typename Base::B;
  using typename Base::Block;
  static constexpr int kTop = 3;
  static constexpr int kOffset = 1;
  static constexpr bool kHasQuarter = true;
  static constexpr int kBlockValues = 64;
  static constexpr int kChunkBytes = 4 * Base::kBytes;

  template <class Chunk>
  static B quarter(const Chunk& blocks, int i) {
    const auto& block = *reinterpret_cast<const Block*>(blocks(i));
    std::uint64_t codes[2];  // of 32 values each
    __builtin_memcpy(codes, block.qs, 16);
    const std::uint64_t low = every_other_bit(codes[0]) | every_other_bit(codes[1]) << 32;
    const std::uint64_t high = every_other_bit(codes[0] >> 1) | every_other_bit(codes[1] >> 1)
                                                                    << 32;
    return X::add_where(X::add_where(X::set1(0), low, 1), high, 2);
  }
  template <class Chunk>
  static __m256 d(const Chunk& blocks) {
    return Base::halves([&](int i) { return blocks(i / 2); }, 0);
  }

 private:
  // Bits 0, 2, 4 ... side by side.
  static std::uint64_t every_other_bit(std::uint64_t x) {
    return _pext_u64(x, 0x5555555555555555ULL);
  }
};

// Values 64 i .. 64 i + 63 of a chunk of 256 values.
template <class X, class T, class Chunk>
typename X::B small_quarter(const Chunk& blocks, int i) {
  typename X::B w;
  if constexpr (T::kHasQuarter) {
    w = T::quarter(blocks, i);
  } else {
    w = T::values(*reinterpret_cast<const typename T::Block*>(blocks(2 * i)),
                  *reinterpret_cast<const typename T::Block*>(blocks(2 * i + 1)));
  }
  if constexpr (T::kWide) w = X::widen(w);
  return w;
}

}  // namespace moesaic::kernels
