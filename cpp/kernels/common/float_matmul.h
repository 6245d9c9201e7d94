// F32, F16 and BF16 weights against float activations, over the vector vocabulary S. An output is
// sixteen interleaved lanes of fma, k ascending, joined by S::reduce_add; a ragged end counts as
// zeros. Tiles of rows x columns share loads and change no sum.
#pragma once

#include "kernels/table.h"

namespace moesaic::kernels {

template <class S>
struct F32Weight {
  static constexpr int kBytes = 4;
  static typename S::F load(const std::uint8_t* p) {
    return S::load(reinterpret_cast<const float*>(p));
  }
  static typename S::F load_n(const std::uint8_t* p, int n) {
    return S::load_n(reinterpret_cast<const float*>(p), n);
  }
};
template <class S>
struct F16Weight {
  static constexpr int kBytes = 2;
  static typename S::F load(const std::uint8_t* p) {
    return S::load_f16(reinterpret_cast<const std::uint16_t*>(p));
  }
  static typename S::F load_n(const std::uint8_t* p, int n) {
    return S::load_f16_n(reinterpret_cast<const std::uint16_t*>(p), n);
  }
};
template <class S>
struct BF16Weight {
  static constexpr int kBytes = 2;
  static typename S::F load(const std::uint8_t* p) {
    return S::load_bf16(reinterpret_cast<const std::uint16_t*>(p));
  }
  static typename S::F load_n(const std::uint8_t* p, int n) {
    return S::load_bf16_n(reinterpret_cast<const std::uint16_t*>(p), n);
  }
};

template <class S, class W, int kRows, int kCols>
void float_tile(const MatmulJob& job, std::int64_t r, std::int64_t c) {
  using F = typename S::F;
  const std::uint8_t* w[kRows];
  const float* x[kCols];
  for (int i = 0; i < kRows; ++i) {
    w[i] = job.weight + static_cast<std::size_t>(r + i) * job.weight_row_bytes;
  }
  for (int j = 0; j < kCols; ++j) x[j] = reinterpret_cast<const float*>(job.acts[c + j]);
  F acc[kRows * kCols];
  for (F& a : acc) a = S::zero();
  const auto step = [&](std::int64_t k, auto load_weight) {
    F wk[kRows];
    for (int i = 0; i < kRows; ++i) wk[i] = load_weight(w[i] + k * W::kBytes);
    for (int j = 0; j < kCols; ++j) {
      const F xk = S::load(x[j] + k);  // prepared rows are padded with zeros to sixteen
      for (int i = 0; i < kRows; ++i) acc[j * kRows + i] = S::fma(wk[i], xk, acc[j * kRows + i]);
    }
  };
  std::int64_t k = 0;
  for (; k + 16 <= job.k; k += 16) step(k, [](const std::uint8_t* p) { return W::load(p); });
  if (k < job.k) {
    const int n = static_cast<int>(job.k - k);
    step(k, [n](const std::uint8_t* p) { return W::load_n(p, n); });
  }
  float sums[kRows * kCols];
  S::reduce_add_each(acc, sums);
  for (int j = 0; j < kCols; ++j) {
    for (int i = 0; i < kRows; ++i) job.outs[c + j][r + i] = sums[j * kRows + i];
  }
}

template <class S, class W, int kRows>
void float_rows(const MatmulJob& job, std::int64_t r) {
  std::int64_t c = 0;
  for (; c + S::kTileCols <= job.n_cols; c += S::kTileCols) {
    float_tile<S, W, kRows, S::kTileCols>(job, r, c);
  }
  for (; c < job.n_cols; ++c) float_tile<S, W, kRows, 1>(job, r, c);
}

template <class S, class W>
void float_few(const MatmulJob& job) {
  std::int64_t r = 0;
  for (; r + S::kTileRows <= job.n_rows; r += S::kTileRows) {
    float_rows<S, W, S::kTileRows>(job, r);
  }
  for (; r < job.n_rows; ++r) float_rows<S, W, 1>(job, r);
}

// The packed form of float columns is the prepared rows one after the other.
template <class S, class W>
void float_many(const MatmulJob& job, const PackedCols& cols) {
  const std::size_t row_bytes = act_row_bytes(ActFormat::kF32, job.k);
  constexpr std::int64_t kGroup = 64;
  const std::uint8_t* acts[kGroup];
  for (std::int64_t c = 0; c < cols.n_cols; c += kGroup) {
    MatmulJob part = job;
    part.n_cols = cols.n_cols - c < kGroup ? cols.n_cols - c : kGroup;
    for (std::int64_t j = 0; j < part.n_cols; ++j) {
      acts[j] = cols.data + static_cast<std::size_t>(c + j) * row_bytes;
    }
    part.acts = acts;
    part.outs = job.outs + c;
    float_few<S, W>(part);
  }
}

}  // namespace moesaic::kernels
