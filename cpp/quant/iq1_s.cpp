// Exact scalar decoder; see the header for the layout.
#include "quant/iq1_s.h"

#include "quant/grid_point.h"
#include "quant/grids.h"
#include "quant/half.h"

namespace moesaic::quant {

void decode_iq1_s(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockIQ1_S*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 256) {
    const float d = f16_to_f32(block->d);
    for (int g = 0; g < 32; ++g) {
      const unsigned qh = block->qh[g / 4];
      const float scale = d * static_cast<float>(2U * ((qh >> 12) & 7U) + 1U);
      const unsigned high = (qh >> (3 * (g % 4))) & 7U;
      const float delta = (qh & 0x8000U) != 0 ? -kIq1Delta : kIq1Delta;
      write_moved_point(kIq1sGrid[block->qs[g] | (high << 8)], delta, scale, out + 8 * g);
    }
  }
}

}  // namespace moesaic::quant
