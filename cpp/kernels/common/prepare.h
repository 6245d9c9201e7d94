// Float rows of activations -> prepared rows (act_layout.h), over the vector vocabulary S.
// int8 is symmetric: scale = largest magnitude / 127, to nearest, ties to even. A NaN anywhere in a
// group makes its scale NaN, so that it is seen in the output.
#pragma once

#include <cstring>

#include "kernels/act_layout.h"
#include "kernels/common/f32_ops.h"

namespace moesaic::kernels {

// group values (a multiple of 16, at most 256; values past n count as zero) -> q, sums, scale.
template <class S>
void quantize_group(const float* x, std::int64_t n, std::int64_t group, std::int8_t* q,
                    std::int16_t* sum, float* scale) {
  using F = typename S::F;
  typename S::I largest = S::set1_int(0);
  const auto load = [&](std::int64_t i) {
    return i + 16 <= n ? S::load(x + i) : S::load_n(x + i, n > i ? static_cast<int>(n - i) : 0);
  };
  // Bit patterns of magnitudes order like the magnitudes, NaN above all.
  const typename S::I magnitude = S::set1_int(0x7FFFFFFF);
  for (std::int64_t i = 0; i < group; i += 16) {
    largest = S::max_int(largest, S::and_int(S::bits(load(i)), magnitude));
  }
  const std::int32_t largest_bits = S::reduce_max_int(largest);
  const float amax = __builtin_bit_cast(float, largest_bits);
  *scale = amax / 127.0F;
  const F inverse = S::set1(*scale > 0.0F ? 127.0F / amax : 0.0F);
  for (std::int64_t i = 0; i < group; i += 16) {
    const typename S::I v = S::round_to_int(S::mul(load(i), inverse));
    S::store_int8(q + i, v);
    sum[i / 16] = static_cast<std::int16_t>(S::reduce_add_int(v));
  }
}

template <class S>
void prepare_row(ActFormat format, const float* x, std::int64_t k, std::uint8_t* out) {
  if (format == ActFormat::kF32) {
    std::memcpy(out, x, static_cast<std::size_t>(k) * sizeof(float));
    const std::size_t used = static_cast<std::size_t>(k) * sizeof(float);
    std::memset(out + used, 0, (64 - used % 64) % 64);
    return;
  }
  const std::int64_t kp = padded_k(k);
  const std::int64_t group = scale_group(format);
  auto* q = reinterpret_cast<std::int8_t*>(out);
  auto* sum = reinterpret_cast<std::int16_t*>(out + kp);
  auto* scale = reinterpret_cast<float*>(out + kp + kp / kSumGroup * 2);
  for (std::int64_t i = 0; i < kp; i += group) {
    const std::int64_t left = k > i ? k - i : 0;
    quantize_group<S>(x + (left > 0 ? i : 0), left < group ? left : group, group, q + i,
                      sum + i / kSumGroup, scale + i / group);
  }
}

template <class S>
void prepare(ActFormat format, const float* x, std::int64_t x_stride, std::int64_t n_rows,
             std::int64_t k, std::uint8_t* out) {
  const std::size_t row_bytes = act_row_bytes(format, k);
  for (std::int64_t r = 0; r < n_rows; ++r) {
    prepare_row<S>(format, x + r * x_stride, k, out + static_cast<std::size_t>(r) * row_bytes);
  }
}

}  // namespace moesaic::kernels
