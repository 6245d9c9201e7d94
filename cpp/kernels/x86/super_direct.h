// Super-block weights against few columns without panels, for types that have a way of their own to
// a panel's bytes (avx512vnni/folded_panels.h): these are multiplied as they come, in registers,
// and the next block's rows are turned between the products. Either two times X::kRows rows go
// together against one tile of columns, so that an activation is fetched once for two products
// (with one for each, fetching is what takes the time), or one time against two tiles, which are
// turned for only once. The same sums as in super_many.h, whose formulas these are.
#pragma once

#include <iterator>
#include <utility>

#include "kernels/x86/pack.h"
#include "kernels/x86/panel_dots.h"

namespace moesaic::kernels {

// Piece number i of a block of X::kRows rows.
template <class X, class T>
[[gnu::always_inline]] inline void turn_piece(const std::uint8_t* const* rows, std::int64_t b,
                                              std::size_t i, typename T::Turned& out) {
  const std::int64_t at = b * T::kBytes + T::kPieces[i];
  X::turn_dwords([&](int row) { return X::load128(rows[row] + at); }, out.dwords + 4 * i);
}

template <class X, class T>
[[gnu::always_inline]] inline void turn(const std::uint8_t* const* rows, std::int64_t b,
                                        typename T::Turned& out) {
  for (std::size_t i = 0; i < std::size(T::kPieces); ++i) turn_piece<X, T>(rows, b, i, out);
  T::complete(out);
}

// kGroups: of X::kRows rows, 2 for a single tile or 1 for two at a time.
template <class X, class T, int kGroups>
class SuperDirect {
 public:
  SuperDirect(const MatmulJob& job, const PackedCols& cols)
      : job_(job), cols_(cols), n_blocks_(job.k / kChunk) {}

  void run() {
    if (job_.n_rows == 0) return;
    const TileCut cut = cut_tiles<X>(cols_.n_cols);
    constexpr std::int64_t kTiles = 3 - kGroups;
    take_rows(0, rows_);
    for (int g = 0; g < kGroups; ++g) turn<X, T>(rows_ + g * X::kRows, 0, turned_[0][g]);
    for (r_ = 0; r_ < job_.n_rows; r_ += kRows) {
      take_rows(r_ + kRows < job_.n_rows ? r_ + kRows : r_, next_rows_);
      next_ = panel_from(job_, r_ + kRows, kRows);
      std::int64_t c = 0;
      for (std::int64_t i = 0; i < cut.n_tiles; i += kTiles) {
        then_rows_ = i + kTiles < cut.n_tiles ? rows_ : next_rows_;
        const std::int64_t w = cut.narrow + (i < cut.n_wide ? 1 : 0);
        const bool has_two = kTiles == 2 && i + 1 < cut.n_tiles;
        const std::int64_t w2 = has_two ? cut.narrow + (i + 1 < cut.n_wide ? 1 : 0) : 0;
        tiles_of(c, w, w2);
        c += w + w2;
      }
      std::swap(rows_, next_rows_);
    }
  }

 private:
  using V = typename X::V;
  using Vf = typename X::Vf;
  static constexpr int kRows = kGroups * X::kRows;
  template <int w>
  using Sums = Vf[w > 0 ? w : 1];

  // Past the last row it is repeated; what comes of it is not stored.
  void take_rows(std::int64_t r, const std::uint8_t** rows) const {
    for (std::int64_t i = 0; i < kRows; ++i) {
      const std::int64_t row = r + i < job_.n_rows ? r + i : job_.n_rows - 1;
      rows[i] = job_.weight + static_cast<std::size_t>(row) * job_.weight_row_bytes;
    }
  }

  // Tiles as pack.h cuts them: two that follow each other differ by at most one column, and where
  // there are two, none is narrower than four.
  void tiles_of(std::int64_t c, std::int64_t w, std::int64_t w2) {
    static_assert(X::kColTile == 8);
    switch (w * 16 + w2) {
#define MOESAIC_TILES(w, w2) \
  case (w)*16 + (w2):        \
    return tiles<w, w2>(c);
      MOESAIC_TILES(1, 0)
      MOESAIC_TILES(2, 0)
      MOESAIC_TILES(3, 0)
      MOESAIC_TILES(4, 0)
      MOESAIC_TILES(5, 0)
      MOESAIC_TILES(6, 0)
      MOESAIC_TILES(7, 0)
      MOESAIC_TILES(8, 0)
#undef MOESAIC_TILES
#define MOESAIC_TILES(w, w2)                     \
  case (w)*16 + (w2):                            \
    if constexpr (kGroups == 1) tiles<w, w2>(c); \
    break;
      MOESAIC_TILES(5, 4)
      MOESAIC_TILES(5, 5)
      MOESAIC_TILES(6, 5)
      MOESAIC_TILES(6, 6)
      MOESAIC_TILES(7, 6)
      MOESAIC_TILES(7, 7)
      MOESAIC_TILES(8, 7)
      MOESAIC_TILES(8, 8)
#undef MOESAIC_TILES
    }
  }

  template <int w, int w2>
  void tiles(std::int64_t c) {
    FetchShare ahead = next_.share(c, w + w2, cols_.n_cols, n_blocks_);
    const PackedTile a = Packing<X>::tile(cols_.data, ActFormat::kQ8x256, job_.k, c, w);
    const PackedTile a2 = Packing<X>::tile(cols_.data, ActFormat::kQ8x256, job_.k, c + w, w2);
    Sums<w> total[kGroups];
    Sums<w2> total2[kGroups];
    for (int g = 0; g < kGroups; ++g) {
      for (Vf& t : total[g]) t = X::zero_f();
      for (Vf& t : total2[g]) t = X::zero_f();
    }
    for (std::int64_t b = 0; b < n_blocks_; ++b) {
      ahead.step();
      block<w, w2>(b, a, a2, total, total2);
    }
    for (int g = 0; g < kGroups; ++g) {
      const std::int64_t r = r_ + g * X::kRows;
      if (r >= job_.n_rows) break;
      const int n_rows = job_.n_rows - r < X::kRows ? static_cast<int>(job_.n_rows - r) : X::kRows;
      for (int j = 0; j < w; ++j) X::store_f(job_.outs[c + j] + r, total[g][j], n_rows);
      for (int j = 0; j < w2; ++j) X::store_f(job_.outs[c + w + j] + r, total2[g][j], n_rows);
    }
  }

  // Loops over columns are unrolled early, or their sums are in memory as well.
  template <int w, int w2>
  [[gnu::always_inline]] void block(std::int64_t b, const PackedTile& a, const PackedTile& a2,
                                    Sums<w> (&total)[kGroups], Sums<w2> (&total2)[kGroups]) {
    const typename T::Turned* turned = turned_[at_];
    at_ ^= 1;
    typename T::Turned* ahead = turned_[at_];
    const bool is_last = b + 1 == n_blocks_;
    const std::uint8_t* const* ahead_rows = is_last ? then_rows_ : rows_;
    const std::int64_t ahead_b = is_last ? 0 : b + 1;
    V isum[kGroups][w];
    V isum2[kGroups][w2 > 0 ? w2 : 1];
    begin_sums<w>(a, b, isum);
    begin_sums<w2>(a2, b, isum2);
    const std::uint8_t* q = a.q + b * kChunk * w;
    const std::uint8_t* q2 = a2.q + b * kChunk * w2;
    for (int eighth = 0; eighth < 8; ++eighth) {
      T::template each_eighth<kGroups>(turned, eighth, [&](int i, const V* x) {
        dots<w>(x, q + i * w * 4, isum);
        dots<w2>(x, q2 + i * w2 * 4, isum2);
      });
      const auto piece = static_cast<std::size_t>(eighth);
      if (piece >= std::size(T::kPieces)) continue;
      for (int g = 0; g < kGroups; ++g) {
        turn_piece<X, T>(ahead_rows + g * X::kRows, ahead_b, piece, ahead[g]);
      }
    }
    for (int g = 0; g < kGroups; ++g) T::complete(ahead[g]);
#pragma GCC unroll 2
    for (int g = 0; g < kGroups; ++g) {
      end_sums<w>(turned[g], a, b, isum[g], total[g]);
      end_sums<w2>(turned[g], a2, b, isum2[g], total2[g]);
    }
  }

  template <int w, class Ints>
  [[gnu::always_inline]] static void begin_sums(const PackedTile& acts, std::int64_t b,
                                                Ints (&isum)[kGroups]) {
#pragma GCC unroll 8
    for (int j = 0; j < w; ++j) {
      V begin = X::zero_v();
      if constexpr (T::kFoldOffset != 0) {
        begin = X::template minus_times<T::kFoldOffset>(X::broadcast(acts.total + (b * w + j) * 4));
      }
#pragma GCC unroll 2
      for (int g = 0; g < kGroups; ++g) isum[g][j] = begin;
    }
  }

  template <int w, class Ints>
  [[gnu::always_inline]] static void dots(const V* x, const std::uint8_t* q,
                                          Ints (&isum)[kGroups]) {
#pragma GCC unroll 8
    for (int j = 0; j < w; ++j) {
      if constexpr (kGroups == 1) {
        isum[0][j] = X::dot_v(isum[0][j], x[0], q + j * 4);
      } else {
        const V a = X::fetch_dword(q + j * 4);
#pragma GCC unroll 2
        for (int g = 0; g < kGroups; ++g) isum[g][j] = X::dot_with(isum[g][j], x[g], a);
      }
    }
  }

  template <int w, class Ints>
  [[gnu::always_inline]] static void end_sums(const typename T::Turned& turned,
                                              const PackedTile& acts, std::int64_t b,
                                              const Ints& isum, Sums<w>& total) {
    if constexpr (w > 0) {
      V msum[w];
      if constexpr (T::kHasMin) {
        for (V& x : msum) x = X::zero_v();
        const std::uint8_t* sums = acts.sum + b * (kChunk / kSumGroup * 2) * w;
        T::each_pair(turned, [&](int g, V pair) {
#pragma GCC unroll 8
          for (int j = 0; j < w; ++j) {
            msum[j] = X::add_pairs_v(msum[j], pair, sums + (g * w + j) * 4);
          }
        });
      }
#pragma GCC unroll 8
      for (int j = 0; j < w; ++j) {
        const Vf da = X::broadcast_f(acts.scale + b * w + j);
        const Vf scale = X::mul_f(turned.d, da);
        Vf p;
        if constexpr (T::kHasMin) {
          const Vf m = X::mul_f(X::mul_f(turned.dmin, da), X::to_float(msum[j]));
          p = X::fms_f(scale, X::to_float(isum[j]), m);
        } else {
          p = X::mul_f(scale, X::to_float(isum[j]));
        }
        total[j] = X::add_f(total[j], p);
      }
    }
  }

  const MatmulJob& job_;
  const PackedCols& cols_;
  const std::int64_t n_blocks_;
  std::int64_t r_ = 0;
  NextPanel next_{};
  const std::uint8_t* row_memory_[2][kRows];
  const std::uint8_t** rows_ = row_memory_[0];
  const std::uint8_t** next_rows_ = row_memory_[1];
  const std::uint8_t* const* then_rows_ = nullptr;  // whose first block follows these tiles' last
  typename T::Turned turned_[2][kGroups];           // the block that is worked on is number at_
  int at_ = 0;
};

}  // namespace moesaic::kernels
