// Q3_K: 256 elements in 110 bytes, 3.4375 bits each. With s = i / 16: x[i] = (d * (scale[s] - 32))
// * (q[i] - 4). Source: ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes   0..31   hmask[b]   bit k: bit 2 of q[32 * k + b]
// bytes  32..95   qs[b]      bits [2k, 2k + 2): bits 0..1 of q[128 * (b / 32) + 32 * k + b % 32]
// bytes  96..107  scales[b]  16 six-bit scales. b < 8: low nibble: bits 0..3 of scale[b], high
// nibble: of scale[b + 8];
//                            b >= 8: bits [2k, 2k + 2): bits 4..5 of scale[4 * k + b - 8]
// bytes 108..109  d          f16
#pragma pack(push, 1)
struct BlockQ3_K {
  std::uint8_t hmask[32];
  std::uint8_t qs[64];
  std::uint8_t scales[12];
  std::uint16_t d;
};
#pragma pack(pop)
static_assert(sizeof(BlockQ3_K) == 110);

// The 16 scales, each minus 32.
void unpack_scales_q3_k(const std::uint8_t* packed, std::int8_t* scales);

// blocks: n_blocks * 110 bytes; out: n_blocks * 256 floats.
void decode_q3_k(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);
void encode_q3_k(const float* in, std::int64_t n_blocks, std::uint8_t* blocks);

}  // namespace moesaic::quant
