// Exact scalar decoder; see the header for the layout.
#include "quant/q1_0.h"

#include "quant/half.h"

namespace moesaic::quant {

void decode_q1_0(const std::uint8_t* blocks, std::int64_t n_blocks, float* out) {
  const auto* block = reinterpret_cast<const BlockQ1_0*>(blocks);
  for (std::int64_t n = 0; n < n_blocks; ++n, ++block, out += 128) {
    const float d = f16_to_f32(block->d);
    for (int i = 0; i < 128; ++i) out[i] = ((block->qs[i / 8] >> (i % 8)) & 1) != 0 ? d : -d;
  }
}

}  // namespace moesaic::quant
