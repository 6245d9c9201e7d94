// Exact scalar decoder and an encoder; see the header for the layout.
#include "quant/iq4_xs.h"

#include "quant/fit.h"
#include "quant/grids.h"
#include "quant/half.h"

namespace moesaic::quant {

void decode_iq4_xs(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockIQ4_XS*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 256) {
    const float d = f16_to_f32(block->d);
    for (int s = 0; s < 8; ++s) {
      const int low = (block->scales_l[s / 2] >> (4 * (s % 2))) & 15;
      const int high = (block->scales_h >> (2 * s)) & 3;
      const float scale = d * static_cast<float>((low | (high << 4)) - 32);
      const std::uint8_t* qs = block->qs + 16 * s;  // (16,)
      for (int j = 0; j < 16; ++j) {
        out[32 * s + j] = scale * static_cast<float>(kIq4nlLevels[qs[j] & 15U]);
        out[32 * s + j + 16] = scale * static_cast<float>(kIq4nlLevels[qs[j] >> 4]);
      }
    }
  }
}

void encode_iq4_xs(const float* in, std::int64_t n_blocks, std::uint8_t* blocks) {
  auto* block = reinterpret_cast<BlockIQ4_XS*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, in += 256) {
    SymmetricFit fit{};
    fit_symmetric(in, 32, -32, 31, Iq4Levels{}, fit);
    block->d = fit.d;
    int scales_h = 0;
    for (int s = 0; s < 8; ++s) {
      const int scale = fit.scale[s] + 32;
      scales_h |= (scale >> 4) << (2 * s);
      const int other = s % 2 == 0 ? 0 : block->scales_l[s / 2];
      block->scales_l[s / 2] = static_cast<std::uint8_t>(other | ((scale & 15) << (4 * (s % 2))));
    }
    block->scales_h = static_cast<std::uint16_t>(scales_h);
    for (int b = 0; b < 128; ++b) {
      const std::int8_t* code = fit.code + 32 * (b / 16) + b % 16;
      block->qs[b] = static_cast<std::uint8_t>(code[0] | (code[16] << 4));
    }
  }
}

}  // namespace moesaic::quant
