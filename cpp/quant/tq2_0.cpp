// Exact scalar decoder; see the header for the layout.
#include "quant/tq2_0.h"

#include "quant/half.h"

namespace moesaic::quant {

void decode_tq2_0(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockTQ2_0*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 256) {
    const float d = f16_to_f32(block->d);
    for (int s = 0; s < 8; ++s) {
      const std::uint8_t* qs = block->qs + 32 * (s / 4);  // (32,)
      const int shift = 2 * (s % 4);
      for (int j = 0; j < 32; ++j) {
        out[32 * s + j] = d * static_cast<float>(((qs[j] >> shift) & 3) - 1);
      }
    }
  }
}

}  // namespace moesaic::quant
