// Exact scalar decoder and an encoder; see the header for the layout.
#include "quant/mxfp4.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "quant/fit.h"
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

namespace {

// Codes 0..7 for magnitudes in half units: the nearest level, ties to the smaller.
int magnitude_code(float half_units) {
  int code = 0;
  for (unsigned i = 1; i < 8; ++i) {
    const float middle = 0.5F * static_cast<float>(kFp4Levels[i - 1] + kFp4Levels[i]);
    code += half_units > middle ? 1 : 0;
  }
  return code;
}

// Fills the block for one exponent and returns the squared error.
double encode_with(const float* in, std::uint8_t e, BlockMXFP4& block) {
  block = {};
  block.e = e;
  const float d = e8m0_half_to_f32(e);
  double error = 0;
  for (int i = 0; i < 32; ++i) {
    const int magnitude = magnitude_code(std::abs(in[i]) / d);
    // No minus zero: its code is left to the plus side.
    const int code = in[i] < 0 && magnitude > 0 ? magnitude | 8 : magnitude;
    const double miss = static_cast<double>(
        d * static_cast<float>(kFp4Levels[static_cast<unsigned>(code)]) - in[i]);
    error += miss * miss;
    block.qs[i % 16] = static_cast<std::uint8_t>(block.qs[i % 16] | (code << (4 * (i / 16))));
  }
  return error;
}

}  // namespace

void encode_mxfp4(const float* in, std::int64_t n_blocks, std::uint8_t* blocks) {
  auto* block = reinterpret_cast<BlockMXFP4*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, in += 32) {
    float peak = 0;
    for (int i = 0; i < 32; ++i) peak = std::max(peak, std::abs(in[i]));
    if (!(peak > 0)) {
      *block = {};
      continue;
    }
    // peak in [4, 8) * 2^(e - 127): its 6 is the largest level. One exponent up or down may miss
    // less.
    const int centre = std::ilogb(std::min(peak, std::numeric_limits<float>::max())) - 2 + 127;
    double best = std::numeric_limits<double>::infinity();
    for (int e = std::clamp(centre - 1, 0, 254); e <= std::clamp(centre + 1, 0, 254); ++e) {
      BlockMXFP4 trial;
      const double error = encode_with(in, static_cast<std::uint8_t>(e), trial);
      if (error >= best) continue;
      best = error;
      *block = trial;
    }
  }
}

}  // namespace moesaic::quant
