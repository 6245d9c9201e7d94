// Columns of activations interleaved for the register tiles of the many-column kernels: as few
// tiles of at most X::kColTile columns as there can be, of nearly equal widths w, each holding
//   q      [k / 4][w] dwords of four values
//   sum    [k / 32][w] pairs of the int16 sums of 16
//   scale  [scales][w] floats
// and, for super-blocks,
//   total  [k / 256][w] int32 sums of 256
// or, for blocks of 32,
//   total  [k / 32][w] int32 sums of 32
//   scaled [k / 32][w] floats, these times the scale
// with k the padded length. Only the kernels of the same table read it.
#pragma once

#include <cstring>

#include "kernels/act_layout.h"
#include "kernels/x86/reduce.h"

namespace moesaic::kernels {

struct PackedTile {
  const std::uint8_t* q;
  const std::uint8_t* sum;
  const float* scale;
  const std::uint8_t* total;
  const float* scaled;
};

// Bytes of one column in a tile, whatever the tile's width.
[[gnu::always_inline]] constexpr std::int64_t packed_col_bytes(ActFormat format, std::int64_t kp) {
  const std::int64_t n_scales = kp / scale_group(format);
  const std::int64_t n_scaled = format == ActFormat::kQ8x32 ? n_scales : 0;
  return kp + kp / kSumGroup * 2 + (2 * n_scales + n_scaled) * 4;
}

// How n columns are cut into tiles: the first n % n_tiles are one wider than the rest.
struct TileCut {
  std::int64_t n_tiles;
  std::int64_t narrow;  // width of the narrower tiles
  std::int64_t n_wide;
};

template <class X>
TileCut cut_tiles(std::int64_t n_cols) {
  const std::int64_t n_tiles = (n_cols + X::kColTile - 1) / X::kColTile;
  if (n_tiles == 0) return {0, 0, 0};
  return {n_tiles, n_cols / n_tiles, n_cols % n_tiles};
}

template <class X>
struct Packing {
  static std::size_t bytes(ActFormat format, std::int64_t n_cols, std::int64_t k) {
    if (format == ActFormat::kF32) {
      return static_cast<std::size_t>(n_cols) * act_row_bytes(format, k);
    }
    return static_cast<std::size_t>(n_cols * packed_col_bytes(format, padded_k(k)));
  }

  // The tile that begins at column c and is w wide.
  static PackedTile tile(const std::uint8_t* data, ActFormat format, std::int64_t kp,
                         std::int64_t c, int w) {
    const std::uint8_t* q = data + c * packed_col_bytes(format, kp);
    const std::uint8_t* sum = q + w * kp;
    const std::uint8_t* scale = sum + w * (kp / kSumGroup * 2);
    const std::uint8_t* total = scale + w * (kp / scale_group(format) * 4);
    const std::uint8_t* scaled = total + w * (kp / scale_group(format) * 4);
    return {q, sum, reinterpret_cast<const float*>(scale), total,
            reinterpret_cast<const float*>(scaled)};
  }

  // The values: eight dwords of every column at a time through an 8 x 8 transpose. Each store of
  // eight lanes is overwritten from lane w on by the next one, the last by the sums that follow.
  static void interleave_values(const std::uint8_t* const* columns, std::int64_t n_words,
                                std::int64_t w, std::uint8_t* out) {
    for (std::int64_t i = 0; i < n_words; i += 8) {
      __m256i r[8];
      for (int j = 0; j < 8; ++j) {
        r[j] = X::load256(columns[j < w ? j : w - 1] + 4 * i);
      }
      transpose_8x8<X>(r);
      for (int j = 0; j < 8; ++j, out += 4 * w) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), r[j]);
      }
    }
  }

  static void interleave(const std::uint8_t* const* columns, std::int64_t offset,
                         std::int64_t n_words, std::int64_t w, std::uint8_t* out) {
    for (std::int64_t i = 0; i < n_words; ++i) {
      for (std::int64_t j = 0; j < w; ++j) {
        std::memcpy(out + (i * w + j) * 4, columns[j] + offset + 4 * i, 4);
      }
    }
  }

  // One column's total and scaled.
  static void totals(ActFormat format, const ActRow& act, std::int64_t n, std::int64_t w,
                     std::uint8_t* out) {
    const std::int64_t n_sums = scale_group(format) / kSumGroup;
    for (std::int64_t i = 0; i < n; ++i) {
      std::int32_t total = 0;
      for (std::int64_t g = 0; g < n_sums; ++g) total += act.sum[i * n_sums + g];
      std::memcpy(out + 4 * i * w, &total, 4);
      if (format == ActFormat::kQ8x32) {
        const float scaled = act.scale[i] * static_cast<float>(total);
        std::memcpy(out + 4 * (n + i) * w, &scaled, 4);
      }
    }
  }

  static void pack(ActFormat format, const std::uint8_t* const* acts, std::int64_t n_cols,
                   std::int64_t k, std::uint8_t* out) {
    if (format == ActFormat::kF32) {
      const std::size_t row_bytes = act_row_bytes(format, k);
      for (std::int64_t c = 0; c < n_cols; ++c) {
        std::memcpy(out + static_cast<std::size_t>(c) * row_bytes, acts[c], row_bytes);
      }
      return;
    }
    const std::int64_t kp = padded_k(k);
    const std::int64_t n_sums = kp / kSumGroup / 2;
    const std::int64_t n_scales = kp / scale_group(format);
    const TileCut cut = cut_tiles<X>(n_cols);
    for (std::int64_t t = 0, c = 0, w = 0; t < cut.n_tiles; ++t, c += w) {
      w = cut.narrow + (t < cut.n_wide ? 1 : 0);
      interleave_values(acts + c, kp / 4, w, out);
      interleave(acts + c, kp, n_sums, w, out + w * kp);
      interleave(acts + c, kp + 4 * n_sums, n_scales, w, out + w * (kp + 4 * n_sums));
      out += w * (kp + 4 * n_sums + 4 * n_scales);
      for (std::int64_t j = 0; j < w; ++j) {
        totals(format, act_row(acts[c + j], kp), n_scales, w, out + 4 * j);
      }
      out += w * n_scales * 4 * (format == ActFormat::kQ8x32 ? 2 : 1);
    }
  }
};

// Calls kernel.template tile<w>(c) for each tile of n_cols columns.
template <class X, class Kernel>
void for_each_tile(std::int64_t n_cols, const Kernel& kernel) {
  const TileCut cut = cut_tiles<X>(n_cols);
  for (std::int64_t i = 0, c = 0, w = 0; i < cut.n_tiles; ++i, c += w) {
    w = cut.narrow + (i < cut.n_wide ? 1 : 0);
    switch (w) {
      case 1:
        kernel.template tile<1>(c);
        break;
      case 2:
        kernel.template tile<2>(c);
        break;
      case 3:
        kernel.template tile<3>(c);
        break;
      case 4:
        kernel.template tile<4>(c);
        break;
      case 5:
        if constexpr (X::kColTile >= 5) kernel.template tile<5>(c);
        break;
      case 6:
        if constexpr (X::kColTile >= 6) kernel.template tile<6>(c);
        break;
      case 7:
        if constexpr (X::kColTile >= 7) kernel.template tile<7>(c);
        break;
      default:
        if constexpr (X::kColTile >= 8) kernel.template tile<8>(c);
        break;
    }
  }
}

}  // namespace moesaic::kernels
