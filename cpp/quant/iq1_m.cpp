// Exact scalar decoder; see the header for the layout.
#include "quant/iq1_m.h"

#include "quant/grid_point.h"
#include "quant/grids.h"
#include "quant/half.h"

namespace moesaic::quant {

void decode_iq1_m(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockIQ1_M*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 256) {
    unsigned d_bits = 0;
    for (int w = 0; w < 4; ++w)
      d_bits |= (static_cast<unsigned>(block->scales[w]) >> 12) << (4 * w);
    const float d = f16_to_f32(static_cast<std::uint16_t>(d_bits));
    for (int g = 0; g < 32; ++g) {
      const unsigned qh = (static_cast<unsigned>(block->qh[g / 2]) >> (4 * (g % 2))) & 15U;
      const unsigned bits = (static_cast<unsigned>(block->scales[g / 8]) >> (3 * (g / 2 % 4))) & 7U;
      const float scale = d * static_cast<float>(2U * bits + 1U);
      const float delta = (qh & 8U) != 0 ? -kIq1Delta : kIq1Delta;
      write_moved_point(kIq1sGrid[block->qs[g] | ((qh & 7U) << 8)], delta, scale, out + 8 * g);
    }
  }
}

}  // namespace moesaic::quant
