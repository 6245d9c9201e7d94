// Exact scalar decoder; see the header for the layout.
#include "quant/q5_1.h"

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

}  // namespace moesaic::quant
