// Exact scalar decoder and an encoder; see the header for the layout.
#include "quant/q5_0.h"

#include "quant/fit.h"
#include "quant/half.h"

namespace moesaic::quant {

void decode_q5_0(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockQ5_0*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 32) {
    const float d = f16_to_f32(block->d);
    const std::uint32_t qh = block->qh;
    for (int j = 0; j < 16; ++j) {
      const int low = (block->qs[j] & 15) | static_cast<int>(((qh >> j) & 1U) << 4);
      const int high = (block->qs[j] >> 4) | static_cast<int>(((qh >> (j + 16)) & 1U) << 4);
      out[j] = d * static_cast<float>(low - 16);
      out[j + 16] = d * static_cast<float>(high - 16);
    }
  }
}

void encode_q5_0(const float* in, std::int64_t n_blocks, std::uint8_t* blocks) {
  auto* block = reinterpret_cast<BlockQ5_0*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, in += 32) {
    constexpr IntegerLevels kLevels = {-16, 15};
    float weights[32];
    weigh(in, 32, weights);
    block->d = f16_scale(fit_scale(in, weights, 32, kLevels));
    const float d = f16_to_f32(block->d);
    const float inverse = d != 0 ? 1.0F / d : 0.0F;
    std::uint32_t qh = 0;
    for (int j = 0; j < 16; ++j) {
      const auto low = static_cast<std::uint32_t>(kLevels.code(in[j] * inverse) + 16);
      const auto high = static_cast<std::uint32_t>(kLevels.code(in[j + 16] * inverse) + 16);
      block->qs[j] = static_cast<std::uint8_t>((low & 15U) | ((high & 15U) << 4));
      qh |= (low >> 4) << j | (high >> 4) << (j + 16);
    }
    block->qh = qh;
  }
}

}  // namespace moesaic::quant
