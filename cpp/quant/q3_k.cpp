// Exact scalar decoder; see the header for the layout.
#include "quant/q3_k.h"

#include "quant/half.h"

namespace moesaic::quant {

void unpack_scales_q3_k(const std::uint8_t* packed, std::int8_t* scales) {
  for (int s = 0; s < 16; ++s) {
    const int low = s < 8 ? packed[s] & 15 : packed[s - 8] >> 4;
    const int high = (packed[8 + s % 4] >> (2 * (s / 4))) & 3;
    scales[s] = static_cast<std::int8_t>((low | (high << 4)) - 32);
  }
}

void decode_q3_k(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockQ3_K*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 256) {
    const float d = f16_to_f32(block->d);
    std::int8_t scales[16];
    unpack_scales_q3_k(block->scales, scales);
    for (int s = 0; s < 16; ++s) {
      const float scale = d * static_cast<float>(scales[s]);
      const std::uint8_t* qs = block->qs + 32 * (s / 8) + 16 * (s % 2);  // (16,)
      const std::uint8_t* hmask = block->hmask + 16 * (s % 2);           // (16,)
      const int shift = 2 * ((s % 8) / 2);
      const int high_bit = s / 2;
      for (int j = 0; j < 16; ++j) {
        const int q = ((qs[j] >> shift) & 3) | (((hmask[j] >> high_bit) & 1) << 2);
        out[16 * s + j] = scale * static_cast<float>(q - 4);
      }
    }
  }
}

}  // namespace moesaic::quant
