// Exact scalar decoder; see the header for the layout.
#include "quant/nvfp4.h"

#include "quant/grids.h"
#include "quant/half.h"

namespace moesaic::quant {

void decode_nvfp4(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockNVFP4*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 64) {
    for (int s = 0; s < 4; ++s) {
      const float d = ue4m3_half_to_f32(block->d[s]);
      const std::uint8_t* qs = block->qs + 8 * s;  // (8,)
      for (int j = 0; j < 8; ++j) {
        out[16 * s + j] = d * static_cast<float>(kFp4Levels[qs[j] & 15U]);
        out[16 * s + j + 8] = d * static_cast<float>(kFp4Levels[qs[j] >> 4]);
      }
    }
  }
}

}  // namespace moesaic::quant
