// Super-block weights against a few columns: one row at a time, read once in file order. A block is
// unpacked in registers and multiplied with every column; the whole numbers of as many blocks as a
// register has lanes are then added up and turned into floats together. Formulas and order:
// unpack.h.
#pragma once

#include "kernels/act_layout.h"
#include "kernels/x86/reduce.h"
#include "kernels/x86/super_types.h"

namespace moesaic::kernels {

template <class X, class T, int kCols>
struct SuperFew {
  static constexpr int kOffset = T::kWide ? X::kWideOffset : T::kOffset;
  static constexpr int kSpan = X::kRows;  // blocks whose sums are finished together
  using Vf = typename X::Vf;

  struct Column {
    ActRow act;
    float total;
    alignas(64) float repeated[kSpan];  // scales of a short row, again and again
  };
  // Eight partial sums of each block of a span.
  struct Sums {
    alignas(64) std::int32_t isum[kCols][kSpan][8];
    alignas(64) std::int32_t msum[T::kHasMin ? kCols : 1][kSpan][8];
  };

  template <int c>
  static void quarter(const typename T::Block& block, const typename T::Head& head,
                      typename X::Scales scales, const Column* columns, std::int64_t b,
                      typename X::Acc* acc) {
    typename X::B w = T::template values<c>(block, head);
    if constexpr (T::kWide) w = X::widen(w);
    for (int j = 0; j < kCols; ++j) {
      const std::int8_t* a = columns[j].act.q + b * kChunk + 64 * c;
      if constexpr (T::kWide) {
        acc[j] = X::template step_wide<c>(acc[j], w, a, scales);
      } else if constexpr (T::kScaled) {
        acc[j] = X::template step<c>(acc[j], w, a, scales);
      } else {
        acc[j] = X::dot(acc[j], w, X::load64(a));
      }
    }
  }

  static const typename T::Block& block_at(const std::uint8_t* p) {
    return *reinterpret_cast<const typename T::Block*>(p);
  }

  static void block_sums(const std::uint8_t* p, std::int64_t b, int slot, const Column* columns,
                         Sums& sums) {
    fetch_ahead(p, T::kBytes);
    const auto& block = block_at(p);
    const typename T::Head head = T::head(block);
    const __m128i scale_bytes = T::scales(block);
    const auto group_sums = [&](int j) {
      return X::load256(columns[j].act.sum + b * (kChunk / kSumGroup));
    };
    if constexpr (T::kHasMin) {
      const __m256i mins = _mm256_cvtepi8_epi16(T::mins(block));
      for (int j = 0; j < kCols; ++j) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums.msum[j][slot]),
                           _mm256_madd_epi16(mins, group_sums(j)));
      }
    }
    __m256i isum[kCols];
    if constexpr (T::kQuads) {
      quad_sums(block, columns, b, isum);
    } else {
      const typename X::Scales scales = X::expand(scale_bytes);
      typename X::Acc acc[kCols];
      for (auto& a : acc) a = X::zero();
      quarter<0>(block, head, scales, columns, b, acc);
      quarter<1>(block, head, scales, columns, b, acc);
      quarter<2>(block, head, scales, columns, b, acc);
      quarter<3>(block, head, scales, columns, b, acc);
      for (int j = 0; j < kCols; ++j) isum[j] = X::fold(acc[j]);
    }
    for (int j = 0; j < kCols; ++j) {
      if constexpr (kOffset != 0) {
        const __m256i factors =
            _mm256_mullo_epi16(_mm256_cvtepi8_epi16(scale_bytes), _mm256_set1_epi16(-kOffset));
        isum[j] = _mm256_add_epi32(isum[j], _mm256_madd_epi16(factors, group_sums(j)));
      }
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums.isum[j][slot]), isum[j]);
    }
  }

  // The same of n blocks lying one after the other, in the form that their type has for few
  // columns, all of it in line: registers by way of memory cost more than what they carry. The
  // first block meets chunk b of the activations; after chunk n_chunks - 1 comes 0 again.
  [[gnu::always_inline]] static void few_sums(const std::uint8_t* p, int n, std::int64_t b,
                                              std::int64_t n_chunks, const Column* columns,
                                              Sums& sums) {
    using Few = typename T::Few;
    Few next(block_at(p));
    for (int slot = 0; slot < n; ++slot, p += T::kBytes) {
      const Few few = next;
      // One ahead: signs and scales are many steps away from their block, points only two.
      if (slot + 1 < n) next = Few(block_at(p + T::kBytes));
      fetch_ahead(p, T::kBytes);
      typename X::Acc acc[kCols];
      for (auto& a : acc) a = X::zero();
      few_quarter<0>(few, columns, b, acc);
      few_quarter<1>(few, columns, b, acc);
      few_quarter<2>(few, columns, b, acc);
      few_quarter<3>(few, columns, b, acc);
      for (int j = 0; j < kCols; ++j) {
        __m256i isum = X::fold(acc[j]);
        if constexpr (Few::kOffset != 0) {
          const __m256i group_sums = X::load256(columns[j].act.sum + b * (kChunk / kSumGroup));
          isum = _mm256_add_epi32(isum, _mm256_madd_epi16(few.factors(), group_sums));
        }
        _mm256_store_si256(reinterpret_cast<__m256i*>(sums.isum[j][slot]), isum);
      }
      if (++b == n_chunks) b = 0;
    }
  }
  template <int c, class Few>
  [[gnu::always_inline]] static void few_quarter(const Few& few, const Column* columns,
                                                 std::int64_t b, typename X::Acc* acc) {
    const typename X::B w = few.template values<c>();
    for (int j = 0; j < kCols; ++j) {
      acc[j] = few.template step<c>(acc[j], w, columns[j].act.q + b * kChunk + 64 * c);
    }
  }

  // Scale times dot product of the eight groups of 32, for types that are unpacked by quads.
  static void quad_sums(const typename T::Block& block, const Column* columns, std::int64_t b,
                        __m256i* isum) {
    typename X::B first[2];
    typename X::B second[2];
    for (int h = 0; h < 2; ++h) T::unpack_quad(block, h, first[h], second[h]);
    const __m256i scales = _mm256_cvtepi8_epi32(T::group_scales(block));
    for (int j = 0; j < kCols; ++j) {
      typename X::Acc acc[2];
      for (int h = 0; h < 2; ++h) {
        const std::int8_t* q = columns[j].act.q + b * kChunk + 128 * h;
        const typename X::B lower = X::load64(q);
        const typename X::B upper = X::load64(q + 64);
        acc[h] = X::dot(X::zero(), first[h], X::even_groups(lower, upper));
        acc[h] = X::dot(acc[h], second[h], X::odd_groups(lower, upper));
      }
      isum[j] = _mm256_mullo_epi32(X::fold_quads(acc[0], acc[1]), scales);
    }
  }

  // p of every slot, for column j with the activation scales da; block(i) lies at address at(i).
  template <class At>
  static Vf products(const Sums& sums, int j, Vf da, const At& at) {
    const Vf d =
        X::halves([&](int i) { return static_cast<short>(T::d(block_at(at(i)))); }, T::kFactor);
    const Vf isum = X::to_float(X::add_rows(sums.isum[j]));
    if constexpr (T::kHasMin) {
      const Vf dmin =
          X::halves([&](int i) { return static_cast<short>(T::dmin(block_at(at(i)))); }, 1.0F);
      const Vf msum = X::to_float(X::add_rows(sums.msum[j]));
      return X::fms_f(X::mul_f(d, da), isum, X::mul_f(X::mul_f(dmin, da), msum));
    } else {
      return X::mul_f(X::mul_f(d, da), isum);
    }
  }

  // Blocks [b, b + n) of the row at p, n <= kSpan; adds their p to the totals one after the other.
  // Slots past n keep what an earlier span left in them.
  template <bool kWhole>
  static void span(const std::uint8_t* p, std::int64_t b, int n, Column* columns, Sums& sums) {
    const std::uint8_t* first = p + b * T::kBytes;
    if constexpr (T::kHasFew) {
      few_sums(first, n, b, 0, columns, sums);
    } else {
      for (int i = 0; i < n; ++i) block_sums(first + i * T::kBytes, b + i, i, columns, sums);
    }
    const auto at = [&](int i) { return first + (kWhole || i < n ? i : 0) * T::kBytes; };
    for (int j = 0; j < kCols; ++j) {
      const float* scale = columns[j].act.scale + b;
      alignas(64) float each[kSpan];
      X::store_f(
          each,
          products(sums, j, kWhole ? X::load_some_f(scale, kSpan) : X::load_some_f(scale, n), at),
          kSpan);
      float total = columns[j].total;
      for (int i = 0; i < n; ++i) total = total + each[i];
      columns[j].total = total;
    }
  }

  static void long_row(const MatmulJob& job, std::int64_t r, std::int64_t c, Column* columns,
                       Sums& sums) {
    const std::uint8_t* p = job.weight + static_cast<std::size_t>(r) * job.weight_row_bytes;
    const std::int64_t n_blocks = job.k / kChunk;
    for (int j = 0; j < kCols; ++j) columns[j].total = 0.0F;
    std::int64_t b = 0;
    for (; b + kSpan <= n_blocks; b += kSpan) span<true>(p, b, kSpan, columns, sums);
    if (b < n_blocks) span<false>(p, b, static_cast<int>(n_blocks - b), columns, sums);
    for (int j = 0; j < kCols; ++j) job.outs[c + j][r] = columns[j].total;
  }

  // Several rows of n_blocks <= kSpan / 2, lying one after the other, in one span.
  static void short_rows(const MatmulJob& job, std::int64_t r, int n_rows, int n_blocks,
                         std::int64_t c, const Column* columns, Sums& sums) {
    const std::uint8_t* first = job.weight + static_cast<std::size_t>(r) * job.weight_row_bytes;
    const int n = n_rows * n_blocks;
    if constexpr (T::kHasFew) {
      few_sums(first, n, 0, n_blocks, columns, sums);
    } else {
      const std::uint8_t* p = first;
      for (int i = 0, slot = 0; i < n_rows; ++i) {
        for (int b = 0; b < n_blocks; ++b, ++slot, p += T::kBytes) {
          block_sums(p, b, slot, columns, sums);
        }
      }
    }
    const auto at = [&](int i) { return first + (i < n ? i : 0) * T::kBytes; };
    for (int j = 0; j < kCols; ++j) {
      // All rows add up at once: a row's total comes to stand where its first product stood.
      Vf each = products(sums, j, X::load_f(columns[j].repeated), at);
      Vf total = X::add_f(X::zero_f(), each);
      for (int b = 1; b < n_blocks; ++b) {
        each = X::rotate_f(each);
        total = X::add_f(total, each);
      }
      alignas(64) float totals[kSpan];
      X::store_f(totals, total, kSpan);
      for (int i = 0; i < n_rows; ++i) job.outs[c + j][r + i] = totals[i * n_blocks];
    }
  }

  // Rows [r, end), columns [c, c + kCols).
  static void run(const MatmulJob& job, std::int64_t r, std::int64_t end, std::int64_t c) {
    const auto n_blocks = static_cast<int>(job.k / kChunk);
    Column columns[kCols];
    for (int j = 0; j < kCols; ++j) {
      columns[j].act = act_row(job.acts[c + j], job.k);
      for (int i = 0; i < kSpan; ++i) {
        columns[j].repeated[i] = n_blocks == 0 ? 0.0F : columns[j].act.scale[i % n_blocks];
      }
    }
    Sums sums = {};
    const bool adjoin = job.weight_row_bytes == static_cast<std::size_t>(n_blocks) * T::kBytes;
    if (n_blocks > kSpan / 2 || n_blocks == 0 || !adjoin) {
      for (; r < end; ++r) long_row(job, r, c, columns, sums);
      return;
    }
    const int at_once = kSpan / n_blocks;
    for (; r < end; r += at_once) {
      const auto n_rows = static_cast<int>(end - r < at_once ? end - r : at_once);
      short_rows(job, r, n_rows, n_blocks, c, columns, sums);
    }
  }
};

// Columns are taken by four, two and one. When that makes more than one pass, rows are cut so that
// only the first pass reads them from memory.
template <class X, class T>
void super_few(const MatmulJob& job) {
  const bool one_pass = job.n_cols == 1 || job.n_cols == 2 || job.n_cols == 4;
  const std::int64_t step = one_pass ? job.n_rows : 16;
  for (std::int64_t r = 0; r < job.n_rows; r += step) {
    const std::int64_t end = r + step < job.n_rows ? r + step : job.n_rows;
    std::int64_t c = 0;
    for (; c + 4 <= job.n_cols; c += 4) SuperFew<X, T, 4>::run(job, r, end, c);
    for (; c + 2 <= job.n_cols; c += 2) SuperFew<X, T, 2>::run(job, r, end, c);
    for (; c < job.n_cols; ++c) SuperFew<X, T, 1>::run(job, r, end, c);
  }
}

}  // namespace moesaic::kernels
