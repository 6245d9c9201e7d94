// Exact scalar decoder and an encoder; see the header for the layout.
#include "quant/q6_k.h"

#include <algorithm>
#include <iterator>

#include "quant/fit.h"
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

void encode_q6_k(const float* in, std::int64_t n_blocks, std::uint8_t* blocks) {
  auto* block = reinterpret_cast<BlockQ6_K*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, in += 256) {
    SymmetricFit fit{};
    fit_symmetric(in, 16, -128, 127, IntegerLevels{-32, 31}, fit);
    block->d = fit.d;
    std::copy_n(fit.scale, 16, block->scales);
    std::fill(std::begin(block->ql), std::end(block->ql), std::uint8_t{0});
    std::fill(std::begin(block->qh), std::end(block->qh), std::uint8_t{0});
    for (int i = 0; i < 256; ++i) {
      const int q = fit.code[i] + 32;
      std::uint8_t& low = block->ql[64 * (i / 128) + i % 64];
      std::uint8_t& high = block->qh[32 * (i / 128) + i % 32];
      low = static_cast<std::uint8_t>(low | ((q & 15) << (4 * ((i % 128) / 64))));
      high = static_cast<std::uint8_t>(high | ((q >> 4) << (2 * ((i % 128) / 32))));
    }
  }
}

}  // namespace moesaic::quant
