// Exact scalar decoder; see the header for the layout.
#include "quant/q2_0.h"

#include "quant/half.h"

namespace moesaic::quant {

void decode_q2_0(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockQ2_0*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 64) {
    const float d = f16_to_f32(block->d);
    for (int i = 0; i < 64; ++i) {
      out[i] = d * static_cast<float>(((block->qs[i / 4] >> (i % 4 * 2)) & 3) - 1);
    }
  }
}

}  // namespace moesaic::quant
