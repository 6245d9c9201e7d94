// Exact scalar decoder; see the header for the layout.
#include "quant/iq4_xs.h"

#include "quant/grids.h"
#include "quant/half.h"

namespace moesaic::quant {

void decode_iq4_xs(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockIQ4_XS*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 256) {
    const float d = f16_to_f32(block->d);
    for (int s = 0; s < 8; ++s) {
      const int low = (block->scales_l[s / 2] >> (4 * (s % 2))) & 15;
      const int high = (block->scales_h >> (2 * s)) & 3;
      const float scale = d * static_cast<float>((low | (high << 4)) - 32);
      const std::uint8_t* qs = block->qs + 16 * s;  // (16,)
      for (int j = 0; j < 16; ++j) {
        out[32 * s + j] = scale * static_cast<float>(kIq4nlLevels[qs[j] & 15U]);
        out[32 * s + j + 16] = scale * static_cast<float>(kIq4nlLevels[qs[j] >> 4]);
      }
    }
  }
}

}  // namespace moesaic::quant
