// Exact scalar decoder and an encoder; see the header for the layout.
#include "quant/q4_0.h"

#include "quant/fit.h"
#include "quant/half.h"

namespace moesaic::quant {

void decode_q4_0(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockQ4_0*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 32) {
    const float d = f16_to_f32(block->d);
    for (int j = 0; j < 16; ++j) {
      out[j] = d * static_cast<float>((block->qs[j] & 15) - 8);
      out[j + 16] = d * static_cast<float>((block->qs[j] >> 4) - 8);
    }
  }
}

void encode_q4_0(const float* in, std::int64_t n_blocks, std::uint8_t* blocks) {
  auto* block = reinterpret_cast<BlockQ4_0*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, in += 32) {
    constexpr IntegerLevels kLevels = {-8, 7};
    float weights[32];
    weigh(in, 32, weights);
    block->d = f16_scale(fit_scale(in, weights, 32, kLevels));
    const float d = f16_to_f32(block->d);
    const float inverse = d != 0 ? 1.0F / d : 0.0F;
    for (int j = 0; j < 16; ++j) {
      const int low = kLevels.code(in[j] * inverse) + 8;
      const int high = kLevels.code(in[j + 16] * inverse) + 8;
      block->qs[j] = static_cast<std::uint8_t>(low | (high << 4));
    }
  }
}

}  // namespace moesaic::quant
