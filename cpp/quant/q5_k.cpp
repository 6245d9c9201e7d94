// Exact scalar decoder and an encoder; see the header for the layout.
#include "quant/q5_k.h"

#include <algorithm>

#include "quant/fit.h"
#include "quant/half.h"
#include "quant/k_scales.h"

namespace moesaic::quant {

void decode_q5_k(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockQ5_K*>(blocks);
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
        const int q = ((qs[j] >> shift) & 15) | (((block->qh[j] >> s) & 1) << 4);
        out[32 * s + j] = scale * static_cast<float>(q) - min;
      }
    }
  }
}

void encode_q5_k(const float* in, std::int64_t n_blocks, std::uint8_t* blocks) {
  auto* block = reinterpret_cast<BlockQ5_K*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, in += 256) {
    AffineFit fit{};
    fit_affine(in, 32, 63, 31, fit);
    block->d = fit.d;
    block->dmin = fit.dmin;
    KScales k;
    std::copy_n(fit.scale, 8, k.scale);
    std::copy_n(fit.min, 8, k.min);
    pack_k_scales(k, block->scales);
    for (int b = 0; b < 128; ++b) {
      const std::uint8_t* q = fit.q + 64 * (b / 32) + b % 32;
      block->qs[b] = static_cast<std::uint8_t>((q[0] & 15) | ((q[32] & 15) << 4));
    }
    for (int b = 0; b < 32; ++b) {
      int bits = 0;
      for (int s = 0; s < 8; ++s) bits |= (fit.q[32 * s + b] >> 4) << s;
      block->qh[b] = static_cast<std::uint8_t>(bits);
    }
  }
}

}  // namespace moesaic::quant
