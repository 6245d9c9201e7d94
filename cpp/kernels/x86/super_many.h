// Super-block weights against many columns: X::kRows rows at a time are unpacked over the whole
// of k into a panel of bytes that stays in the second-level cache (rows in lanes, four k to a
// dword), and every tile of columns is multiplied with it in registers. Formulas and order:
// unpack.h.
#pragma once

#include "kernels/x86/pack.h"
#include "kernels/x86/panel_dots.h"
#include "kernels/x86/super_direct.h"
#include "kernels/x86/super_types.h"

namespace moesaic::kernels {

// What a panel holds for one super-block of X::kRows rows.
template <class X, class T>
struct SuperPanel {
  static constexpr int kRows = X::kRows;
  static constexpr int kRows16 = (kRows + 15) / 16 * 16;  // scales are transposed by sixteen rows
  static constexpr int kOffset = T::kWide ? X::kWideOffset : T::kOffset;
  // Sub-scales multiplied into the bytes, where that saves instructions.
  static constexpr bool kFolded = T::kFoldable && !X::kWords;
  // An offset that is the same for all values: taken back by way of the sum of all activations.
  static constexpr int kTotalOffset = kFolded ? T::kFoldOffset : (T::kScaled ? 0 : kOffset);
  static constexpr bool kSubtractsScales = !kFolded && T::kScaled && kOffset != 0;
  static constexpr bool kHasPairs = T::kHasMin || kSubtractsScales;

  struct Block {
    alignas(64) std::uint8_t value[64][kRows][4];
    alignas(64) std::int8_t scale[16][kRows16];
    // For pairs of groups: minima, or -kOffset times the sub-scales.
    alignas(64) std::int16_t pair[kHasPairs ? 8 : 1][kRows][2];
    alignas(64) float d[kRows];
    alignas(64) float dmin[T::kHasMin ? kRows : 1];
  };

  static_assert(sizeof(Block) <= kPanelBytesPerK * kChunk);

  // Rows past n_rows repeat the last one; their outputs are never stored.
  static void fill(const MatmulJob& job, std::int64_t r, int n_rows, Block* panel) {
    const std::uint8_t* rows[kRows];
    for (int i = 0; i < kRows; ++i) {
      const std::int64_t row = r + (i < n_rows ? i : n_rows - 1);
      rows[i] = job.weight + static_cast<std::size_t>(row) * job.weight_row_bytes;
    }
    for (std::int64_t b = 0; b < job.k / kChunk; ++b) {
      if constexpr (T::kFillsPanels) {
        fill_turned(rows, b, panel[b]);
      } else {
        fill_block(rows, b, panel[b]);
      }
    }
  }

  static void fill_turned(const std::uint8_t* const* rows, std::int64_t b, Block& out) {
    typename T::Turned turned;
    turn<X, T>(rows, b, turned);
    for (int eighth = 0; eighth < 8; ++eighth) {
      T::template each_eighth<1>(
          &turned, eighth, [&](int i, const typename X::V* x) { X::store_v(out.value[i][0], *x); });
    }
    if constexpr (T::kHasMin) {
      T::each_pair(turned, [&](int g, typename X::V x) { X::store_v(out.pair[g][0], x); });
      X::store_f(out.dmin, turned.dmin, kRows);
    }
    X::store_f(out.d, turned.d, kRows);
  }

  static void fill_block(const std::uint8_t* const* rows, std::int64_t b, Block& out) {
    alignas(64) std::uint8_t bytes[kRows][256];
    __m128i scale[kRows16];
    __m128i min[kRows16];
    std::uint16_t d[kRows16];
    std::uint16_t dmin[kRows16];
    for (int i = kRows; i < kRows16; ++i) scale[i] = min[i] = _mm_setzero_si128();
    for (int i = 0; i < kRows; ++i) {
      const auto& block = *reinterpret_cast<const typename T::Block*>(rows[i] + b * T::kBytes);
      const typename T::Head head = T::head(block);
      scale[i] = T::scales(block);
      store<0>(block, head, scale[i], bytes[i]);
      store<1>(block, head, scale[i], bytes[i]);
      store<2>(block, head, scale[i], bytes[i]);
      store<3>(block, head, scale[i], bytes[i]);
      d[i] = T::d(block);
      if constexpr (T::kHasMin) {
        min[i] = T::mins(block);
        dmin[i] = T::dmin(block);
      }
    }
    for (int c = 0; c < 4; ++c) {
      X::transpose(bytes[0] + 64 * c, 256, out.value[16 * c][0]);
    }
    for (int i = 0; i < kRows; i += 16) {
      if constexpr (!kFolded) {
        transpose_bytes(scale + i);
        for (int g = 0; g < 16; ++g) {
          _mm_store_si128(reinterpret_cast<__m128i*>(out.scale[g] + i), scale[i + g]);
        }
      }
      if constexpr (kHasPairs) {
        if constexpr (T::kHasMin) transpose_bytes(min + i);
        const __m128i* from = (T::kHasMin ? min : scale) + i;
        for (int g = 0; g < 16; g += 2) {
          X::store_pairs(reinterpret_cast<std::uint8_t*>(out.pair[g / 2][i]), from[g], from[g + 1],
                         T::kHasMin ? 1 : -kOffset);
        }
      }
    }
    X::store_floats(d, kFolded && T::kFoldNegative ? -T::kFactor : T::kFactor, out.d);
    if constexpr (T::kHasMin) X::store_floats(dmin, 1.0F, out.dmin);
  }

  template <int c>
  static void store(const typename T::Block& block, const typename T::Head& head, __m128i scales,
                    std::uint8_t* bytes) {
    typename X::B w = T::template values<c>(block, head);
    if constexpr (kFolded) w = T::fold(w, X::template spread_scales<c>(scales));
    if constexpr (T::kWide) w = X::widen(w);
    X::store64(bytes + 64 * c, w);
  }

  static void transpose_bytes(__m128i* x) {
    __m128i t[16];
    // Four rounds of pairing row i with row i + 8 turn (row, byte) into (byte, row).
    for (int round = 0; round < 4; ++round) {
      for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm_unpacklo_epi8(x[i], x[i + 8]);
        t[2 * i + 1] = _mm_unpackhi_epi8(x[i], x[i + 8]);
      }
      for (int i = 0; i < 16; ++i) x[i] = t[i];
    }
  }
};

template <class X, class T>
struct SuperTiles {
  using Panel = SuperPanel<X, T>;
  using V = typename X::V;
  using Vf = typename X::Vf;
  const MatmulJob& job;
  const PackedCols& cols;
  const typename Panel::Block* panel;
  std::int64_t r;
  int n_rows;
  NextPanel next;

  template <int w>
  void tile(std::int64_t c) const {
    FetchShare ahead = next.share(c, w, cols.n_cols, job.k / kChunk);
    const PackedTile acts = Packing<X>::tile(cols.data, ActFormat::kQ8x256, job.k, c, w);
    Vf total[w];
    for (Vf& t : total) t = X::zero_f();
    for (std::int64_t b = 0; b < job.k / kChunk; ++b) {
      const typename Panel::Block& block = panel[b];
      ahead.step();
      V isum[w];
      for (int j = 0; j < w; ++j) {
        isum[j] = X::zero_v();
        if constexpr (Panel::kTotalOffset != 0) {
          isum[j] = X::template minus_times<Panel::kTotalOffset>(
              X::broadcast(acts.total + (b * w + j) * 4));
        }
      }
      groups<w>(block, acts.q + b * kChunk * w, isum);
      V msum[w];
      if constexpr (Panel::kHasPairs) {
        for (int j = 0; j < w; ++j) msum[j] = T::kHasMin ? X::zero_v() : isum[j];
        const std::uint8_t* sums = acts.sum + b * (kChunk / kSumGroup * 2) * w;
        for (int g = 0; g < 8; ++g) {
          const V pair = X::load_v(block.pair[g]);
          for (int j = 0; j < w; ++j) {
            msum[j] = X::add_pairs_v(msum[j], pair, sums + (g * w + j) * 4);
          }
        }
      }
      const Vf d = X::load_f(block.d);
      for (int j = 0; j < w; ++j) {
        const Vf da = X::broadcast_f(acts.scale + b * w + j);
        Vf p;
        if constexpr (T::kHasMin) {
          const Vf m = X::mul_f(X::mul_f(X::load_f(block.dmin), da), X::to_float(msum[j]));
          p = X::fms_f(X::mul_f(d, da), X::to_float(isum[j]), m);
        } else {
          p = X::mul_f(X::mul_f(d, da), X::to_float(Panel::kHasPairs ? msum[j] : isum[j]));
        }
        total[j] = X::add_f(total[j], p);
      }
    }
    for (int j = 0; j < w; ++j) X::store_f(job.outs[c + j] + r, total[j], n_rows);
  }

  // isum[j] += sum over groups of scale * dot product.
  template <int w>
  static void groups(const typename Panel::Block& block, const std::uint8_t* q, V (&isum)[w]) {
    if constexpr (Panel::kFolded || !T::kScaled) {
      PanelDots<X, T>::template plain<w, 64>(block.value[0][0], q, isum);
    } else {
      constexpr int kDwords = T::kGroup / 4;
      for (int g = 0; g < 64; g += kDwords) {
        PanelDots<X, T>::template scaled<w, kDwords>(block.value[g][0], q + g * 4 * w,
                                                     block.scale[g / 4], isum);
      }
    }
  }
};

template <class X, class T>
void super_many(const MatmulJob& job, const PackedCols& cols) {
  if constexpr (T::kFillsPanels) {
    if (cols.n_cols <= X::kColTile) return SuperDirect<X, T, 2>(job, cols).run();
    if (cols.n_cols <= T::kDirectTo) return SuperDirect<X, T, 1>(job, cols).run();
  }
  auto* panel = reinterpret_cast<typename SuperPanel<X, T>::Block*>(job.scratch);
  for (std::int64_t r = 0; r < job.n_rows; r += X::kRows) {
    const int n_rows = job.n_rows - r < X::kRows ? static_cast<int>(job.n_rows - r) : X::kRows;
    SuperPanel<X, T>::fill(job, r, n_rows, panel);
    const NextPanel next = panel_from(job, r + X::kRows, X::kRows);
    for_each_tile<X>(cols.n_cols, SuperTiles<X, T>{job, cols, panel, r, n_rows, next});
  }
}

}  // namespace moesaic::kernels
