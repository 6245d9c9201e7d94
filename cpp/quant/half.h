// Scalar conversions between float and the 16- and 8-bit formats found in GGUF blocks. Exact, round
// to nearest even.
#pragma once

#include <bit>
#include <cstdint>

namespace moesaic::quant {

// IEEE binary16 -> float, subnormals, infinities and NaN included.
inline float f16_to_f32(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000U) << 16;
  const std::uint32_t exp = (h >> 10) & 0x1FU;
  const std::uint32_t mant = h & 0x3FFU;
  if (exp == 0x1F) return std::bit_cast<float>(sign | 0x7F800000U | (mant << 13));
  if (exp == 0) {
    const float magnitude = static_cast<float>(mant) * 0x1p-24F;
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | ((exp + 112U) << 23) | (mant << 13));
}

// float -> IEEE binary16, round to nearest even; overflow gives infinity, NaN stays NaN.
inline std::uint16_t f32_to_f16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint16_t sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000U);
  const std::uint32_t abs = bits & 0x7FFFFFFFU;
  if (abs > 0x7F800000U) return static_cast<std::uint16_t>(sign | 0x7E00U);
  if (abs >= 0x477FF000U) return static_cast<std::uint16_t>(sign | 0x7C00U);
  if (abs < 0x38800000U) {
    // Subnormal: adding 0.5 aligns the mantissa so that the hardware rounds it to nearest even.
    const float shifted = std::bit_cast<float>(abs) + 0.5F;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(shifted) - 0x3F000000U));
  }
  const std::uint32_t rounded = abs + 0xFFFU + ((abs >> 13) & 1U);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000U) >> 13));
}

inline float bf16_to_f32(std::uint16_t h) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(h) << 16);
}

inline std::uint16_t f32_to_bf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<std::uint16_t>((bits >> 16) | 64U);
  return static_cast<std::uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

// E8M0 exponent -> 2^(e - 127) / 2, MXFP4's block scale with its code book in half units; e = 0, 1
// are subnormal.
inline float e8m0_half_to_f32(std::uint8_t e) {
  const std::uint32_t bits = e < 2 ? 0x00200000U << e : static_cast<std::uint32_t>(e - 1) << 23;
  return std::bit_cast<float>(bits);
}

// Unsigned E4M3 (bias 7) -> its value / 2, NVFP4's block scale with its code book in half units;
// 0x7F stands for 0, the sign bit is not looked at beyond that (0xFF is 480 / 2, as the gguf
// package reads it).
inline float ue4m3_half_to_f32(std::uint8_t u) {
  const std::uint32_t exp = (u >> 3) & 15U;
  const std::uint32_t mant = u & 7U;
  if (u == 0x7F) return 0.0F;
  if (exp == 0) return static_cast<float>(mant) * 0x1p-10F;
  return std::bit_cast<float>((exp + 119U) << 23 | mant << 20);
}

}  // namespace moesaic::quant
