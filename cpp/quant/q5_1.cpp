// Exact scalar decoder and an encoder; see the header for the layout.
#include "quant/q5_1.h"

#include "quant/fit.h"
#include "quant/half.h"

namespace moesaic::quant {

void decode_q5_1(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockQ5_1*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 32) {
    const float d = f16_to_f32(block->d);
    const float m = f16_to_f32(block->m);
    const std::uint32_t qh = block->qh;
    for (int j = 0; j < 16; ++j) {
      const int low = (block->qs[j] & 15) | static_cast<int>(((qh >> j) & 1U) << 4);
      const int high = (block->qs[j] >> 4) | static_cast<int>(((qh >> (j + 16)) & 1U) << 4);
      out[j] = d * static_cast<float>(low) + m;
      out[j + 16] = d * static_cast<float>(high) + m;
    }
  }
}

void encode_q5_1(const float* in, std::int64_t n_blocks, std::uint8_t* blocks) {
  auto* block = reinterpret_cast<BlockQ5_1*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, in += 32) {
    float weights[32];
    weigh(in, 32, weights);
    const Line line = fit_line(in, weights, 32, 31, false);
    block->d = f16_scale(line.scale);
    block->m = f16_scale(line.offset);
    const float d = f16_to_f32(block->d);
    const float m = f16_to_f32(block->m);
    const float inverse = d != 0 ? 1.0F / d : 0.0F;
    std::uint32_t qh = 0;
    for (int j = 0; j < 16; ++j) {
      const auto low = static_cast<std::uint32_t>(round_within((in[j] - m) * inverse, 0, 31));
      const auto high = static_cast<std::uint32_t>(round_within((in[j + 16] - m) * inverse, 0, 31));
      block->qs[j] = static_cast<std::uint8_t>((low & 15U) | ((high & 15U) << 4));
      qh |= (low >> 4) << j | (high >> 4) << (j + 16);
    }
    block->qh = qh;
  }
}

}  // namespace moesaic::quant
