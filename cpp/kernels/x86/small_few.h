// Weights with blocks of 32 against a few columns: one row at a time, read once in file order,
// eight blocks (a chunk of 256 values) to a step. Formulas and order: unpack.h.
#pragma once

#include "kernels/act_layout.h"
#include "kernels/x86/small_types.h"

namespace moesaic::kernels {

template <class X, class T, int kCols>
struct SmallFew {
  static constexpr int kOffset = T::kWide ? X::kWideOffset : T::kOffset;

  struct Column {
    ActRow act;
    __m256 lanes;
  };

  // Eight sums of q, over 16 values where `first` or `second` is 0, times -offset where it is not.
  static __m256i act_sums(const ActRow& act, std::int64_t chunk, int first, int second) {
    const __m256i sums = X::load256(act.sum + chunk * (kChunk / kSumGroup));
    const __m256i factors =
        _mm256_set1_epi32((first & 0xFFFF) | static_cast<int>(static_cast<unsigned>(second) << 16));
    return _mm256_madd_epi16(sums, factors);
  }

  // The eight dot products of a chunk's blocks with each column, offset and all; for types with a
  // scale per 16, those of the first halves of the blocks beside them.
  struct Dots {
    __m256i whole[kCols];
    __m256i first[T::kHasD16 ? kCols : 1];
  };

  template <class Chunk>
  static Dots dots_of(const Chunk& blocks, const std::int8_t* const* q) {
    typename X::B w[4] = {};
    const int n_quarters = blocks.n_quarters();
    for (int i = 0; i < 4; ++i) {
      if (i < n_quarters) w[i] = small_quarter<X, T>(blocks, i);
    }
    Dots out;
    for (int j = 0; j < kCols; ++j) {
      typename X::Acc acc[4];
      for (int i = 0; i < 4; ++i) {
        acc[i] = X::zero();
        if (i >= n_quarters) continue;
        const typename X::B a = X::load64(q[j] + 64 * i);
        acc[i] = T::kWide ? X::dot_wide(X::zero(), w[i], a) : X::dot(X::zero(), w[i], a);
      }
      out.whole[j] = X::fold_blocks(acc);
      if constexpr (T::kHasD16) {
        for (auto& a : acc) a = X::first_halves(a);
        out.first[j] = X::fold_blocks(acc);
      }
    }
    return out;
  }

  // The same where four blocks are unpacked at once: first halves of the blocks in one register,
  // second halves in another.
  template <class Bytes>
  static Dots dots_of_quads(const Bytes& bytes, const std::int8_t* const* q) {
    typename X::B first[2];
    typename X::B second[2];
    for (int h = 0; h < 2; ++h) T::unpack_quad(bytes, h, first[h], second[h]);
    Dots out;
    for (int j = 0; j < kCols; ++j) {
      typename X::Acc acc[2];
      for (int h = 0; h < 2; ++h) {
        const typename X::B a = X::load64(q[j] + 128 * h);
        const typename X::B b = X::load64(q[j] + 128 * h + 64);
        acc[h] = X::dot(X::zero(), first[h], X::even_groups(a, b));
        acc[h] = X::dot(acc[h], second[h], X::odd_groups(a, b));
      }
      out.whole[j] = X::fold_quads(acc[0], acc[1]);
    }
    return out;
  }

  template <class Chunk>
  static void step(const Chunk& blocks, std::int64_t chunk, Column* columns) {
    const std::int8_t* q[kCols];
    for (int j = 0; j < kCols; ++j) q[j] = columns[j].act.q + chunk * kChunk;
    if constexpr (T::kQuads) {
      const auto bytes = T::load(blocks);
      finish(bytes, dots_of_quads(bytes, q), chunk, columns);
    } else {
      finish(blocks, dots_of(blocks, q), chunk, columns);
    }
  }

  // Scales and minima, in whatever form the type takes them from.
  template <class Source>
  static void finish(const Source& source, const Dots& sums, std::int64_t chunk, Column* columns) {
    __m256 d;
    __m256 minimum = _mm256_setzero_ps();
    if constexpr (T::kHasMin) {
      T::d_and_min(source, d, minimum);
    } else {
      d = T::d(source);
    }
    for (int j = 0; j < kCols; ++j) {
      const ActRow& act = columns[j].act;
      __m256i dots = sums.whole[j];
      const __m256 da = _mm256_loadu_ps(act.scale + chunk * 8);
      if constexpr (T::kHasD16) {
        __m256i first = sums.first[j];
        __m256i second = _mm256_sub_epi32(dots, first);
        first = _mm256_add_epi32(first, act_sums(act, chunk, -kOffset, 0));
        second = _mm256_add_epi32(second, act_sums(act, chunk, 0, -kOffset));
        const __m256 f = _mm256_fmadd_ps(T::d16(source), _mm256_cvtepi32_ps(second),
                                         _mm256_mul_ps(d, _mm256_cvtepi32_ps(first)));
        columns[j].lanes = _mm256_fmadd_ps(da, f, columns[j].lanes);
      } else {
        if constexpr (kOffset != 0) {
          dots = _mm256_add_epi32(dots, act_sums(act, chunk, -kOffset, -kOffset));
        }
        columns[j].lanes =
            _mm256_fmadd_ps(_mm256_mul_ps(d, da), _mm256_cvtepi32_ps(dots), columns[j].lanes);
      }
      if constexpr (T::kHasMin) {
        const __m256 sum = _mm256_mul_ps(da, _mm256_cvtepi32_ps(act_sums(act, chunk, 1, 1)));
        columns[j].lanes = _mm256_fmadd_ps(minimum, sum, columns[j].lanes);
      }
    }
  }

  static void row(const MatmulJob& job, std::int64_t r, std::int64_t c) {
    const std::int64_t kp = padded_k(job.k);
    Column columns[kCols];
    for (int j = 0; j < kCols; ++j)
      columns[j] = {act_row(job.acts[c + j], kp), _mm256_setzero_ps()};
    const std::uint8_t* p = job.weight + static_cast<std::size_t>(r) * job.weight_row_bytes;
    const std::int64_t n_chunks = job.k / kChunk;
    using Block = typename T::Block;
    for (std::int64_t i = 0; i < n_chunks; ++i, p += T::kChunkBytes) {
      fetch_ahead(p, T::kChunkBytes);
      step(WholeChunk<X, Block>{p}, i, columns);
    }
    if (job.k % kChunk != 0) {
      const auto n_bytes = static_cast<int>(job.k % kChunk * T::kChunkBytes / kChunk);
      fetch_ahead(p, n_bytes);
      step(CutChunk<X, T>{p, n_bytes / T::kBytes}, n_chunks, columns);
    }
    for (int j = 0; j < kCols; ++j) {
      alignas(32) float lanes[8];
      _mm256_store_ps(lanes, columns[j].lanes);
      float total = lanes[0];
      for (int l = 1; l < 8; ++l) total = total + lanes[l];
      job.outs[c + j][r] = total;
    }
  }
};

template <class X, class T>
void small_few(const MatmulJob& job) {
  for (std::int64_t r = 0; r < job.n_rows; ++r) {
    std::int64_t c = 0;
    for (; c + 4 <= job.n_cols; c += 4) SmallFew<X, T, 4>::row(job, r, c);
    for (; c + 2 <= job.n_cols; c += 2) SmallFew<X, T, 2>::row(job, r, c);
    for (; c < job.n_cols; ++c) SmallFew<X, T, 1>::row(job, r, c);
  }
}

}  // namespace moesaic::kernels
