// Exact scalar decoder and an encoder; see the header for the layout.
#include "quant/q8_0.h"

#include <algorithm>
#include <cmath>

#include "quant/fit.h"
#include "quant/half.h"

namespace moesaic::quant {

void decode_q8_0(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockQ8_0*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 32) {
    const float d = f16_to_f32(block->d);
    for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(block->qs[i]) * d;
  }
}

void encode_q8_0(const float* in, std::int64_t n_blocks, std::uint8_t* blocks) {
  auto* block = reinterpret_cast<BlockQ8_0*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, in += 32) {
    // 255 levels: the largest magnitude at the end of the range is as good as any search.
    float peak = 0;
    for (int i = 0; i < 32; ++i) peak = std::max(peak, std::abs(in[i]));
    block->d = f16_scale(peak / 127.0F);
    const float d = f16_to_f32(block->d);
    const float inverse = d != 0 ? 1.0F / d : 0.0F;
    for (int i = 0; i < 32; ++i) {
      block->qs[i] = static_cast<std::int8_t>(round_within(in[i] * inverse, -127, 127));
    }
  }
}

}  // namespace moesaic::quant
