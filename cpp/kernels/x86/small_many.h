// Weights with blocks of 32 against many columns: panels of X::kRows rows as in super_many.h. Lane
// by lane (block b belongs to lane b % 8), so that one register holds the running lane and one the
// total. Formulas and order: unpack.h.
#pragma once

#include "kernels/x86/pack.h"
#include "kernels/x86/panel_dots.h"
#include "kernels/x86/small_types.h"

namespace moesaic::kernels {

// What a panel holds for 256 values of X::kRows rows.
template <class X, class T>
struct SmallPanel {
  static constexpr int kRows = X::kRows;

  struct Chunk {
    alignas(64) std::uint8_t value[64][kRows][4];
    alignas(64) float d[8][kRows];
    alignas(64) float d16[T::kHasD16 ? 8 : 1][kRows];
    alignas(64) float min[T::kHasMin ? 8 : 1][kRows];
  };

  static_assert(sizeof(Chunk) <= kPanelBytesPerK * kChunk);

  // Rows past n_rows repeat the last one; their outputs are never stored.
  static void fill(const MatmulJob& job, std::int64_t r, int n_rows, Chunk* panel) {
    const std::int64_t n_chunks = job.k / kChunk;
    const auto rest_bytes = static_cast<int>(job.k % kChunk * T::kChunkBytes / kChunk);
    WholeChunk<X, typename T::Block> rows[kRows];
    for (int i = 0; i < kRows; ++i) {
      const std::int64_t row = r + (i < n_rows ? i : n_rows - 1);
      rows[i] = {job.weight + static_cast<std::size_t>(row) * job.weight_row_bytes};
    }
    for (std::int64_t c = 0; c < n_chunks; ++c) {
      fill_chunk(rows, panel[c]);
      for (auto& row : rows) row.data += T::kChunkBytes;
    }
    if (rest_bytes != 0) {
      CutChunk<X, T> ends[kRows];
      for (int i = 0; i < kRows; ++i) ends[i] = {rows[i].data, rest_bytes / T::kBytes};
      fill_chunk(ends, panel[n_chunks]);
    }
  }

  template <class Blocks>
  static void fill_chunk(const Blocks* rows, Chunk& out) {
    alignas(64) std::uint8_t bytes[kRows][256];
    alignas(32) float floats[3][kRows][8];
    for (int i = 0; i < kRows; ++i) {
      for (int c = 0; c < 4; ++c) X::store64(bytes[i] + 64 * c, small_quarter<X, T>(rows[i], c));
      if constexpr (T::kHasMin) {
        __m256 d;
        __m256 minimum;
        T::d_and_min(rows[i], d, minimum);
        _mm256_store_ps(floats[0][i], d);
        _mm256_store_ps(floats[2][i], minimum);
      } else {
        _mm256_store_ps(floats[0][i], T::d(rows[i]));
      }
      if constexpr (T::kHasD16) _mm256_store_ps(floats[1][i], T::d16(rows[i]));
    }
    for (int c = 0; c < 4; ++c) X::transpose(bytes[0] + 64 * c, 256, out.value[16 * c][0]);
    for (int l = 0; l < 8; ++l) {
      for (int i = 0; i < kRows; ++i) {
        out.d[l][i] = floats[0][i][l];
        if constexpr (T::kHasD16) out.d16[l][i] = floats[1][i][l];
        if constexpr (T::kHasMin) out.min[l][i] = floats[2][i][l];
      }
    }
  }
};

template <class X, class T>
struct SmallTiles {
  using Panel = SmallPanel<X, T>;
  using V = typename X::V;
  using Vf = typename X::Vf;
  static constexpr int kOffset = T::kWide ? X::kWideOffset : T::kOffset;
  const MatmulJob& job;
  const PackedCols& cols;
  const typename Panel::Chunk* panel;
  std::int64_t r;
  int n_rows;
  NextPanel next;

  template <int w>
  void tile(std::int64_t c) const {
    const PackedTile acts = Packing<X>::tile(cols.data, ActFormat::kQ8x32, padded_k(job.k), c, w);
    const std::int64_t n_blocks = job.k / 32;
    FetchShare ahead = next.share(c, w, cols.n_cols, n_blocks);
    Vf total[w];
    for (int lane = 0; lane < 8; ++lane) {
      Vf sum[w];
      for (Vf& s : sum) s = X::zero_f();
      for (std::int64_t b = lane; b < n_blocks; b += 8) {
        ahead.step();
        block<w>(panel[b / 8], lane, acts, b, sum);
      }
      for (int j = 0; j < w; ++j) total[j] = lane == 0 ? sum[j] : X::add_f(total[j], sum[j]);
    }
    for (int j = 0; j < w; ++j) X::store_f(job.outs[c + j] + r, total[j], n_rows);
  }

  template <int w>
  static void block(const typename Panel::Chunk& chunk, int lane, const PackedTile& acts,
                    std::int64_t b, Vf (&sum)[w]) {
    const std::uint8_t* q = acts.q + b * 32 * w;
    const float* scale = acts.scale + b * w;
    const std::uint8_t* values = chunk.value[8 * lane][0];
    const Vf d = X::load_f(chunk.d[lane]);
    V dot[w];
    if constexpr (T::kHasD16) {
      V second[w];
      const std::uint8_t* pairs = acts.sum + b * 4 * w;
      for (int j = 0; j < w; ++j) dot[j] = offset(pairs + 4 * j, -kOffset, 0);
      PanelDots<X, T>::template plain<w, 4>(values, q, dot);
      for (int j = 0; j < w; ++j) second[j] = offset(pairs + 4 * j, 0, -kOffset);
      PanelDots<X, T>::template plain<w, 4>(values + 4 * 4 * X::kRows, q + 4 * 4 * w, second);
      const Vf d16 = X::load_f(chunk.d16[lane]);
      for (int j = 0; j < w; ++j) {
        const Vf f = X::fma_f(d16, X::to_float(second[j]), X::mul_f(d, X::to_float(dot[j])));
        sum[j] = X::fma_f(X::broadcast_f(scale + j), f, sum[j]);
      }
    } else {
      for (int j = 0; j < w; ++j) {
        dot[j] = X::zero_v();
        if constexpr (kOffset != 0) {
          dot[j] = X::template minus_times<kOffset>(X::broadcast(acts.total + (b * w + j) * 4));
        }
      }
      PanelDots<X, T>::template plain<w, 8>(values, q, dot);
      for (int j = 0; j < w; ++j) {
        const Vf da = X::broadcast_f(scale + j);
        sum[j] = X::fma_f(X::mul_f(d, da), X::to_float(dot[j]), sum[j]);
        if constexpr (T::kHasMin) {
          sum[j] =
              X::fma_f(X::load_f(chunk.min[lane]), X::broadcast_f(acts.scaled + b * w + j), sum[j]);
        }
      }
    }
  }

  // first * (sum of the first 16 activations) + second * (sum of the last 16), in every lane.
  static V offset(const std::uint8_t* pair, int first, int second) {
    return X::scaled_sums(X::broadcast(pair), first, second);
  }
};

template <class X, class T>
void small_many(const MatmulJob& job, const PackedCols& cols) {
  auto* panel = reinterpret_cast<typename SmallPanel<X, T>::Chunk*>(job.scratch);
  for (std::int64_t r = 0; r < job.n_rows; r += X::kRows) {
    const int n_rows = job.n_rows - r < X::kRows ? static_cast<int>(job.n_rows - r) : X::kRows;
    SmallPanel<X, T>::fill(job, r, n_rows, panel);
    const NextPanel next = panel_from(job, r + X::kRows, X::kRows);
    for_each_tile<X>(cols.n_cols, SmallTiles<X, T>{job, cols, panel, r, n_rows, next});
  }
}

}  // namespace moesaic::kernels
