// Exact scalar decoder and an encoder; see the header for the layout.
#include "quant/q4_1.h"

#include "quant/fit.h"
#include "quant/half.h"

namespace moesaic::quant {

void decode_q4_1(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockQ4_1*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 32) {
    const float d = f16_to_f32(block->d);
    const float m = f16_to_f32(block->m);
    for (int j = 0; j < 16; ++j) {
      out[j] = d * static_cast<float>(block->qs[j] & 15) + m;
      out[j + 16] = d * static_cast<float>(block->qs[j] >> 4) + m;
    }
  }
}

void encode_q4_1(const float* in, std::int64_t n_blocks, std::uint8_t* blocks) {
  auto* block = reinterpret_cast<BlockQ4_1*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, in += 32) {
    float weights[32];
    weigh(in, 32, weights);
    const Line line = fit_line(in, weights, 32, 15, false);
    block->d = f16_scale(line.scale);
    block->m = f16_scale(line.offset);
    const float d = f16_to_f32(block->d);
    const float m = f16_to_f32(block->m);
    const float inverse = d != 0 ? 1.0F / d : 0.0F;
    for (int j = 0; j < 16; ++j) {
      const int low = round_within((in[j] - m) * inverse, 0, 15);
      const int high = round_within((in[j + 16] - m) * inverse, 0, 15);
      block->qs[j] = static_cast<std::uint8_t>(low | (high << 4));
    }
  }
}

}  // namespace moesaic::quant
