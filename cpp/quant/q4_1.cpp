// Exact scalar decoder; see the header for the layout.
#include "quant/q4_1.h"

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

}  // namespace moesaic::quant
