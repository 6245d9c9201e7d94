// Exact scalar decoder; see the header for the layout.
#include "quant/mxfp4.h"

#include "quant/grids.h"
#include "quant/half.h"

namespace moesaic::quant {

void decode_mxfp4(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockMXFP4*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 32) {
    const float d = e8m0_half_to_f32(block->e);
    for (int j = 0; j < 16; ++j) {
      out[j] = d * static_cast<float>(kFp4Levels[block->qs[j] & 15U]);
      out[j + 16] = d * static_cast<float>(kFp4Levels[block->qs[j] >> 4]);
    }
  }
}

}  // namespace moesaic::quant
