// Exact scalar decoder; see the header for the layout.
#include "quant/iq3_xxs.h"

#include "quant/grid_point.h"
#include "quant/grids.h"
#include "quant/half.h"

namespace moesaic::quant {

void decode_iq3_xxs(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockIQ3_XXS*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 256) {
    const float d = f16_to_f32(block->d);
    for (int s = 0; s < 8; ++s) {
      const std::uint32_t tail = block->signs[s];
      const float scale = d * (0.5F + static_cast<float>(tail >> 28)) * 0.5F;
      for (int k = 0; k < 4; ++k) {
        const std::uint8_t* qs = block->qs + 8 * s + 2 * k;  // (2,)
        const unsigned signs = kIq2xsSigns[(tail >> (7 * k)) & 127U];
        write_point(kIq3xxsGrid[qs[0]], signs, scale, out + 32 * s + 8 * k);
        write_point(kIq3xxsGrid[qs[1]], signs >> 4, scale, out + 32 * s + 8 * k + 4);
      }
    }
  }
}

}  // namespace moesaic::quant
