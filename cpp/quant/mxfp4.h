// MXFP4: 32 elements in 17 bytes, 4.25 bits each. x[i] = (2^(e - 127) / 2) * kFp4Levels[q[i]].
// Source: OCP Microscaling Formats (MX) 1.0; the order of the nibbles is ggml's.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// byte  0      e      E8M0 exponent
// bytes 1..16  qs[j]  low nibble: q[j], high nibble: q[j + 16]
#pragma pack(push, 1)
struct BlockMXFP4 {
  std::uint8_t e;
  std::uint8_t qs[16];
};
#pragma pack(pop)
static_assert(sizeof(BlockMXFP4) == 17);

// blocks: n_blocks * 17 bytes; out: n_blocks * 32 floats.
void decode_mxfp4(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);
void encode_mxfp4(const float* in, std::int64_t n_blocks, std::uint8_t* blocks);

}  // namespace moesaic::quant
