// NVFP4: 64 elements in 36 bytes, 4.5 bits each. With s = i / 16: x[i] = (ue4m3(d[s]) / 2) *
// kFp4Levels[q[i]]. Files may carry a further scale per tensor ("<name>.scale"): not this decoder's
// business. Source: ggml's file format.
#pragma once

#include <cstdint>

namespace moesaic::quant {

// bytes 0..3   d[s]   unsigned E4M3; 0x7F stands for 0
// bytes 4..35  qs[b]  low nibble: q[16 * (b / 8) + b % 8], high nibble: the element 8 after it
#pragma pack(push, 1)
struct BlockNVFP4 {
  std::uint8_t d[4];
  std::uint8_t qs[32];
};
#pragma pack(pop)
static_assert(sizeof(BlockNVFP4) == 36);

// blocks: n_blocks * 36 bytes; out: n_blocks * 64 floats.
void decode_nvfp4(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);

}  // namespace moesaic::quant
