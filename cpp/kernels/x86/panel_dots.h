// Products of a panel (rows in lanes, four k to a dword) with a tile of w columns: the inner loop
// of super_many.h and small_many.h, and the touch of memory ahead of it.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "kernels/table.h"

namespace moesaic::kernels {

template <class X, class T>
struct PanelDots {
  using V = typename X::V;
  using A = typename X::A;

  // Without VNNI, products are summed in pairs of 16 bits: for how many dwords these cannot
  // overflow (a power of two).
  static constexpr int run_length() {
    int n = 1;
    while (!T::kWide && 2 * n * 2 * 127 * T::kTop <= 32767 && n < 64) n *= 2;
    return n;
  }

  // acc[j] += dot product of n dwords.
  template <int w, int n>
  static void plain(const std::uint8_t* values, const std::uint8_t* q, V (&acc)[w]) {
    if constexpr (X::kWords) {
      runs<w, n>(values, q, X::ones_v(), acc);
    } else if constexpr (n < 16) {
      for (int i = 0; i < n; ++i) dots<w>(values, q, i, acc);
    } else {
      // Two chains for each column: one alone waits for its own sums.
      V odd[w];
      for (V& x : odd) x = X::zero_v();
      for (int i = 0; i < n; i += 2) {
        dots<w>(values, q, i, acc);
        dots<w>(values, q, i + 1, odd);
      }
      for (int j = 0; j < w; ++j) acc[j] = X::add_v(acc[j], odd[j]);
    }
  }

  // The same for dword i alone.
  template <int w>
  [[gnu::always_inline]] static void dots(const std::uint8_t* values, const std::uint8_t* q, int i,
                                          V (&acc)[w]) {
    const V x = X::load_v(values + i * 4 * X::kRows);
    for (int j = 0; j < w; ++j) {
      const std::uint8_t* a = q + (i * w + j) * 4;
      acc[j] = T::kWide ? X::dot_wide_v(acc[j], x, a) : X::dot_v(acc[j], x, a);
    }
  }

  // acc[j] += scale (one signed byte per row) * dot product of n dwords.
  template <int w, int n>
  static void scaled(const std::uint8_t* values, const std::uint8_t* q, const std::int8_t* scale,
                     V (&acc)[w]) {
    if constexpr (X::kWords) {
      runs<w, n>(values, q, X::load_scale_pairs(scale), acc);
    } else {
      V t[w];
      for (V& x : t) x = X::zero_v();
      plain<w, n>(values, q, t);
      const V s = X::load_scales(scale);
      for (int j = 0; j < w; ++j) acc[j] = X::add_v(acc[j], X::mul_v(t[j], s));
    }
  }

  template <int w, int n>
  static void runs(const std::uint8_t* values, const std::uint8_t* q, V factor, V (&acc)[w]) {
    constexpr int kRun = run_length() < n ? run_length() : n;
    for (int first = 0; first < n; first += kRun) {
      V words[w];
      for (V& x : words) x = X::zero_v();
#pragma GCC unroll 2
      for (int i = first; i < first + kRun; ++i) {
        const V x = X::load_v(values + i * 4 * X::kRows);
        for (int j = 0; j < w; ++j) {
          const A a = X::broadcast(q + (i * w + j) * 4);
          const V product = T::kWide ? X::words_wide_v(x, a) : X::words_v(x, a);
          words[j] = X::add_words_v(words[j], product);
        }
      }
      for (int j = 0; j < w; ++j) acc[j] = X::add_v(acc[j], X::madd_words_v(words[j], factor));
    }
  }
};

// Bytes to be asked for in steps, a few lines each: all at once they would hold up what computes.
class FetchShare {
 public:
  FetchShare(const std::uint8_t* begin, const std::uint8_t* end, std::int64_t n_steps)
      : at_(begin), end_(end), step_bytes_(((end - begin) / n_steps + 64) / 64 * 64) {}
  void step() {
    const std::uint8_t* stop = end_ - at_ > step_bytes_ ? at_ + step_bytes_ : end_;
    for (; at_ < stop; at_ += 64) _mm_prefetch(reinterpret_cast<const char*>(at_), _MM_HINT_T1);
  }

 private:
  const std::uint8_t* at_;
  const std::uint8_t* end_;
  std::int64_t step_bytes_;
};

// The weights of the panel that comes next: tiles fetch a share each while they compute.
struct NextPanel {
  const std::uint8_t* data;
  std::int64_t n_bytes;

  // The share of columns [c, c + w) of n_cols.
  FetchShare share(std::int64_t c, std::int64_t w, std::int64_t n_cols,
                   std::int64_t n_steps) const {
    return {data + n_bytes * c / n_cols, data + n_bytes * (c + w) / n_cols, n_steps};
  }
};

// The rows [begin, +n) of a job, as far as there are any; behind the last, as much of what comes
// after the job.
inline NextPanel panel_from(const MatmulJob& job, std::int64_t begin, std::int64_t n) {
  const auto row_bytes = static_cast<std::int64_t>(job.weight_row_bytes);
  if (begin >= job.n_rows) return {job.next, job.next == nullptr ? 0 : n * row_bytes};
  const std::int64_t end = begin + n < job.n_rows ? begin + n : job.n_rows;
  return {job.weight + begin * row_bytes, (end - begin) * row_bytes};
}

}  // namespace moesaic::kernels
