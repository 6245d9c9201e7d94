// IQ4_XS: 256 elements in 136 bytes, 4.25 bits each. With s = i / 32: x[i] = (d * (scale[s] - 32))
// * kIq4nlLevels[q[i]]. Source: ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes 0..1    d            f16
// bytes 2..3    scales_h     bits [2s, 2s + 2): bits 4..5 of scale[s]
// bytes 4..7    scales_l[b]  low nibble: bits 0..3 of scale[2 b], high nibble: of scale[2 b + 1]
// bytes 8..135  qs[b]        low nibble: q[32 * (b / 16) + b % 16], high nibble: the element 16
// after it
#pragma pack(push, 1)
struct BlockIQ4_XS {
  std::uint16_t d;
  std::uint16_t scales_h;
  std::uint8_t scales_l[4];
  std::uint8_t qs[128];
};
#pragma pack(pop)
static_assert(sizeof(BlockIQ4_XS) == 136);

// blocks: n_blocks * 136 bytes; out: n_blocks * 256 floats.
void decode_iq4_xs(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);
void encode_iq4_xs(const float* in, std::int64_t n_blocks, std::uint8_t* blocks);

}  // namespace moesaic::quant
