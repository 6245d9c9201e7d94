// Exact scalar decoder and an encoder; see the header for the layout.
#include "quant/q3_k.h"

#include <algorithm>
#include <iterator>

#include "quant/fit.h"
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

void encode_q3_k(const float* in, std::int64_t n_blocks, std::uint8_t* blocks) {
  auto* block = reinterpret_cast<BlockQ3_K*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, in += 256) {
    SymmetricFit fit{};
    fit_symmetric(in, 16, -32, 31, IntegerLevels{-4, 3}, fit);
    block->d = fit.d;
    std::fill(std::begin(block->scales), std::end(block->scales), std::uint8_t{0});
    for (int s = 0; s < 16; ++s) {
      const int scale = fit.scale[s] + 32;
      const int low = s < 8 ? scale & 15 : (scale & 15) << 4;
      block->scales[s % 8] = static_cast<std::uint8_t>(block->scales[s % 8] | low);
      block->scales[8 + s % 4] =
          static_cast<std::uint8_t>(block->scales[8 + s % 4] | ((scale >> 4) << (2 * (s / 4))));
    }
    std::fill(std::begin(block->hmask), std::end(block->hmask), std::uint8_t{0});
    std::fill(std::begin(block->qs), std::end(block->qs), std::uint8_t{0});
    for (int i = 0; i < 256; ++i) {
      const int q = fit.code[i] + 4;
      std::uint8_t& low = block->qs[32 * (i / 128) + i % 32];
      std::uint8_t& high = block->hmask[i % 32];
      low = static_cast<std::uint8_t>(low | ((q & 3) << (2 * ((i % 128) / 32))));
      high = static_cast<std::uint8_t>(high | ((q >> 2) << (i / 32)));
    }
  }
}

}  // namespace moesaic::quant
