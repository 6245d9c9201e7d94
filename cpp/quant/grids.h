// Code books that several types share: the lattice points of the IQ types, their sign patterns, and
// the 16-level books. Constants only; kernels read them too. Source: the file format, by way of
// make_grids.py.
#pragma once

#include <array>
#include <cstdint>

namespace moesaic::quant {

// One entry = 8 elements (uint64) or 4 (uint32), one byte each, element j in byte j (little
// endian).
extern const std::array<std::uint64_t, 256> kIq2xxsGrid;  // magnitudes 8, 25, 43
extern const std::array<std::uint64_t, 512> kIq2xsGrid;   // magnitudes 8, 25, 43
extern const std::array<std::uint64_t, 1024> kIq2sGrid;   // magnitudes 8, 25, 43
extern const std::array<std::uint32_t, 256>
    kIq3xxsGrid;                                         // magnitudes 4, 12, 20, 28, 36, 44, 52, 62
extern const std::array<std::uint32_t, 512> kIq3sGrid;   // magnitudes 1, 3, 5, ..., 15
extern const std::array<std::uint64_t, 2048> kIq1sGrid;  // signed bytes -1, 0, 1

// Seven stored sign bits and an eighth that makes their number even: bit j set = element j is
// negative.
extern const std::array<std::uint8_t, 128> kIq2xsSigns;

// 4-bit code -> level.
inline constexpr std::array<std::int8_t, 16> kIq4nlLevels = {
    -127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
// E2M1 in half units (the block scale carries the other half): sign in bit 3.
inline constexpr std::array<std::int8_t, 16> kFp4Levels = {0, 1,  2,  3,  4,  6,  8,  12,
                                                           0, -1, -2, -3, -4, -6, -8, -12};

// The offset that IQ1_S and IQ1_M add to every element before scaling.
inline constexpr float kIq1Delta = 0.125F;

}  // namespace moesaic::quant
