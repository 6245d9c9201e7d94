// Exact scalar decoder; see the header for the layout.
#include "quant/iq2_xs.h"

#include "quant/grid_point.h"
#include "quant/grids.h"
#include "quant/half.h"

namespace moesaic::quant {

void decode_iq2_xs(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockIQ2_XS*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 256) {
    const float d = f16_to_f32(block->d);
    for (int g = 0; g < 32; ++g) {
      const unsigned nibble =
          (static_cast<unsigned>(block->scales[g / 4]) >> (4 * (g / 2 % 2))) & 15U;
      const float scale = d * (0.5F + static_cast<float>(nibble)) * 0.25F;
      const unsigned q = block->qs[g];
      write_point(kIq2xsGrid[q & 511U], kIq2xsSigns[q >> 9], scale, out + 8 * g);
    }
  }
}

}  // namespace moesaic::quant
