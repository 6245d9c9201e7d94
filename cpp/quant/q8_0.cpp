// Exact scalar decoder; see the header for the layout.
#include "quant/q8_0.h"

#include "quant/half.h"

namespace moesaic::quant {

void decode_q8_0(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockQ8_0*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 32) {
    const float d = f16_to_f32(block->d);
    for (int i = 0; i < 32; ++i) out[i] = static_cast<float>(block->qs[i]) * d;
  }
}

}  // namespace moesaic::quant
