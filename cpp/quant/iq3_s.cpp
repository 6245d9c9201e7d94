// Exact scalar decoder; see the header for the layout.
#include "quant/iq3_s.h"

#include "quant/grid_point.h"
#include "quant/grids.h"
#include "quant/half.h"

namespace moesaic::quant {

void decode_iq3_s(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockIQ3_S*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 256) {
    const float d = f16_to_f32(block->d);
    for (int g = 0; g < 64; ++g) {
      const unsigned nibble =
          (static_cast<unsigned>(block->scales[g / 16]) >> (4 * (g / 8 % 2))) & 15U;
      const float scale = d * static_cast<float>(1U + 2U * nibble);
      const unsigned high = (static_cast<unsigned>(block->qh[g / 8]) >> (g % 8)) & 1U;
      const unsigned signs = static_cast<unsigned>(block->signs[g / 2]) >> (4 * (g % 2));
      write_point(kIq3sGrid[block->qs[g] | (high << 8)], signs, scale, out + 4 * g);
    }
  }
}

}  // namespace moesaic::quant
