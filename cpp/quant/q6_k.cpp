// Exact scalar decoder; see the header for the layout.
#include "quant/q6_k.h"

#include "quant/half.h"

namespace moesaic::quant {

void decode_q6_k(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockQ6_K*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 256) {
    const float d = f16_to_f32(block->d);
    for (int s = 0; s < 16; ++s) {
      const float scale = d * static_cast<float>(block->scales[s]);
      const std::uint8_t* ql = block->ql + 64 * (s / 8) + 16 * (s % 4);  // (16,)
      const std::uint8_t* qh = block->qh + 32 * (s / 8) + 16 * (s % 2);  // (16,)
      const int low_shift = 4 * ((s % 8) / 4);
      const int high_shift = 2 * ((s % 8) / 2);
      for (int j = 0; j < 16; ++j) {
        const int q = ((ql[j] >> low_shift) & 15) | (((qh[j] >> high_shift) & 3) << 4);
        out[16 * s + j] = scale * static_cast<float>(q - 32);
      }
    }
  }
}

}  // namespace moesaic::quant
