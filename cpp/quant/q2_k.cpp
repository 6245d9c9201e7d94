// Exact scalar decoder and an encoder; see the header for the layout.
#include "quant/q2_k.h"

#include "quant/fit.h"
#include "quant/half.h"

namespace moesaic::quant {

void decode_q2_k(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockQ2_K*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 256) {
    const float d = f16_to_f32(block->d);
    const float dmin = f16_to_f32(block->dmin);
    for (int s = 0; s < 16; ++s) {
      const float scale = d * static_cast<float>(block->scales[s] & 15);
      const float min = dmin * static_cast<float>(block->scales[s] >> 4);
      const std::uint8_t* qs = block->qs + 32 * (s / 8) + 16 * (s % 2);  // (16,)
      const int shift = 2 * ((s % 8) / 2);
      for (int j = 0; j < 16; ++j) {
        out[16 * s + j] = scale * static_cast<float>((qs[j] >> shift) & 3) - min;
      }
    }
  }
}

void encode_q2_k(const float* in, std::int64_t n_blocks, std::uint8_t* blocks) {
  auto* block = reinterpret_cast<BlockQ2_K*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, in += 256) {
    AffineFit fit{};
    fit_affine(in, 16, 15, 3, fit);
    block->d = fit.d;
    block->dmin = fit.dmin;
    for (int s = 0; s < 16; ++s) {
      block->scales[s] = static_cast<std::uint8_t>(fit.scale[s] | (fit.min[s] << 4));
    }
    for (int b = 0; b < 64; ++b) {
      const std::uint8_t* q = fit.q + 128 * (b / 32) + b % 32;
      block->qs[b] = static_cast<std::uint8_t>(q[0] | (q[32] << 2) | (q[64] << 4) | (q[96] << 6));
    }
  }
}

}  // namespace moesaic::quant
