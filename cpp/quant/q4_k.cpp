// Exact scalar decoder and an encoder; see the header for the layout.
#include "quant/q4_k.h"

#include <algorithm>

#include "quant/fit.h"
#include "quant/half.h"
#include "quant/k_scales.h"

namespace moesaic::quant {

void decode_q4_k(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockQ4_K*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 256) {
    const float d = f16_to_f32(block->d);
    const float dmin = f16_to_f32(block->dmin);
    const KScales k = unpack_k_scales(block->scales);
    for (int s = 0; s < 8; ++s) {
      const float scale = d * static_cast<float>(k.scale[s]);
      const float min = dmin * static_cast<float>(k.min[s]);
      const std::uint8_t* qs = block->qs + 32 * (s / 2);  // (32,)
      const int shift = 4 * (s % 2);
      for (int j = 0; j < 32; ++j) {
        out[32 * s + j] = scale * static_cast<float>((qs[j] >> shift) & 15) - min;
      }
    }
  }
}

void encode_q4_k(const float* in, std::int64_t n_blocks, std::uint8_t* blocks) {
  auto* block = reinterpret_cast<BlockQ4_K*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, in += 256) {
    AffineFit fit{};
    fit_affine(in, 32, 63, 15, fit);
    block->d = fit.d;
    block->dmin = fit.dmin;
    KScales k;
    std::copy_n(fit.scale, 8, k.scale);
    std::copy_n(fit.min, 8, k.min);
    pack_k_scales(k, block->scales);
    for (int b = 0; b < 128; ++b) {
      const std::uint8_t* q = fit.q + 64 * (b / 32) + b % 32;
      block->qs[b] = static_cast<std::uint8_t>(q[0] | (q[32] << 4));
    }
  }
}

}  // namespace moesaic::quant
