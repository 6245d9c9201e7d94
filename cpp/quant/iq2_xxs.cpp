// Exact scalar decoder; see the header for the layout.
#include "quant/iq2_xxs.h"

#include "quant/grid_point.h"
#include "quant/grids.h"
#include "quant/half.h"

namespace moesaic::quant {

void decode_iq2_xxs(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockIQ2_XXS*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 256) {
    const float d = f16_to_f32(block->d);
    for (int s = 0; s < 8; ++s) {
      // Members are indexed, not pointed to: a block may lie at an odd address.
      const std::uint32_t tail =
          block->qs[4 * s + 2] | static_cast<std::uint32_t>(block->qs[4 * s + 3]) << 16;
      const float scale = d * (0.5F + static_cast<float>(tail >> 28)) * 0.25F;
      for (int k = 0; k < 4; ++k) {
        const unsigned index =
            (static_cast<unsigned>(block->qs[4 * s + k / 2]) >> (8 * (k % 2))) & 255U;
        write_point(kIq2xxsGrid[index], kIq2xsSigns[(tail >> (7 * k)) & 127U], scale,
                    out + 32 * s + 8 * k);
      }
    }
  }
}

}  // namespace moesaic::quant
