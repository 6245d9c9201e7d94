// Exact scalar decoder; see the header for the layout.
#include "quant/tq1_0.h"

#include "quant/half.h"

namespace moesaic::quant {
namespace {

constexpr unsigned kPowersOf3[5] = {1, 3, 9, 27, 81};

// Digit n (0 = most significant) of a byte's five, as -1, 0 or 1.
float trit(std::uint8_t byte, int digit) {
  const unsigned fraction = (byte * kPowersOf3[digit]) & 255U;
  return static_cast<float>(static_cast<int>((fraction * 3U) >> 8) - 1);
}

}  // namespace

void decode_tq1_0(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockTQ1_0*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 256) {
    const float d = f16_to_f32(block->d);
    float* at = out;
    for (int digit = 0; digit < 5; ++digit, at += 32) {
      for (int b = 0; b < 32; ++b) at[b] = d * trit(block->qs[b], digit);
    }
    for (int digit = 0; digit < 5; ++digit, at += 16) {
      for (int b = 0; b < 16; ++b) at[b] = d * trit(block->qs[32 + b], digit);
    }
    for (int digit = 0; digit < 4; ++digit, at += 4) {
      for (int b = 0; b < 4; ++b) at[b] = d * trit(block->qh[b], digit);
    }
  }
}

}  // namespace moesaic::quant
