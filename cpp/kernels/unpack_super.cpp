// Scalar unpacking of the types with super-blocks of 256; bit layouts are tabled in quant/<type>.h.
#include <cstring>

#include "kernels/unpack.h"
#include "quant/grids.h"
#include "quant/half.h"
#include "quant/iq1_m.h"
#include "quant/iq1_s.h"
#include "quant/iq2_s.h"
#include "quant/iq2_xs.h"
#include "quant/iq2_xxs.h"
#include "quant/iq3_s.h"
#include "quant/iq3_xxs.h"
#include "quant/iq4_xs.h"
#include "quant/k_scales.h"
#include "quant/q2_k.h"
#include "quant/q3_k.h"
#include "quant/q4_k.h"
#include "quant/q5_k.h"
#include "quant/q6_k.h"
#include "quant/tq1_0.h"
#include "quant/tq2_0.h"

namespace moesaic::kernels {
namespace {

using quant::f16_to_f32;

template <typename Block>
const Block& as(const std::uint8_t* block) {
  return *reinterpret_cast<const Block*>(block);
}

std::int8_t i8(int value) { return static_cast<std::int8_t>(value); }
std::int16_t i16(int value) { return static_cast<std::int16_t>(value); }

void no_min(SuperBlock& out) {
  std::memset(out.min, 0, sizeof(out.min));
  out.dmin = 0.0F;
}

void unpack_q2_k(const std::uint8_t* block, SuperBlock& out) {
  const auto& b = as<quant::BlockQ2_K>(block);
  for (int i = 0; i < 256; ++i) {
    out.value[i] = i8((b.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3);
  }
  for (int g = 0; g < 16; ++g) {
    out.scale[g] = i16(b.scales[g] & 15);
    out.min[g] = i16(b.scales[g] >> 4);
  }
  out.d = f16_to_f32(b.d);
  out.dmin = f16_to_f32(b.dmin);
}

void unpack_q3_k(const std::uint8_t* block, SuperBlock& out) {
  const auto& b = as<quant::BlockQ3_K>(block);
  for (int i = 0; i < 256; ++i) {
    const int low = (b.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3;
    const int high = (b.hmask[i % 32] >> (i / 32)) & 1;
    out.value[i] = i8(low + 4 * high - 4);
  }
  std::int8_t scales[16];
  quant::unpack_scales_q3_k(b.scales, scales);
  for (int g = 0; g < 16; ++g) out.scale[g] = scales[g];
  out.d = f16_to_f32(b.d);
  no_min(out);
}

void unpack_k_scale_pairs(const std::uint8_t* packed, SuperBlock& out) {
  const quant::KScales k = quant::unpack_k_scales(packed);
  for (int g = 0; g < 16; ++g) {
    out.scale[g] = k.scale[g / 2];
    out.min[g] = k.min[g / 2];
  }
}

void unpack_q4_k(const std::uint8_t* block, SuperBlock& out) {
  const auto& b = as<quant::BlockQ4_K>(block);
  for (int i = 0; i < 256; ++i) {
    out.value[i] = i8((b.qs[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4)) & 15);
  }
  unpack_k_scale_pairs(b.scales, out);
  out.d = f16_to_f32(b.d);
  out.dmin = f16_to_f32(b.dmin);
}

void unpack_q5_k(const std::uint8_t* block, SuperBlock& out) {
  const auto& b = as<quant::BlockQ5_K>(block);
  for (int i = 0; i < 256; ++i) {
    const int low = (b.qs[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4)) & 15;
    out.value[i] = i8(low + (((b.qh[i % 32] >> (i / 32)) & 1) << 4));
  }
  unpack_k_scale_pairs(b.scales, out);
  out.d = f16_to_f32(b.d);
  out.dmin = f16_to_f32(b.dmin);
}

void unpack_q6_k(const std::uint8_t* block, SuperBlock& out) {
  const auto& b = as<quant::BlockQ6_K>(block);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128;
    const int quarter = i % 128 / 32;
    const int low = (b.ql[64 * half + 32 * (quarter % 2) + i % 32] >> (quarter / 2 * 4)) & 15;
    const int high = (b.qh[32 * half + i % 32] >> (2 * quarter)) & 3;
    out.value[i] = i8(low + (high << 4) - 32);
  }
  for (int g = 0; g < 16; ++g) out.scale[g] = b.scales[g];
  out.d = f16_to_f32(b.d);
  no_min(out);
}

// Bytes of a lattice point to sizeof(Word) values, negated where signs has a bit.
template <typename Word>
void put_point(Word point, unsigned signs, std::int8_t* value) {
  for (unsigned j = 0; j < sizeof(Word); ++j) {
    const int magnitude = static_cast<int>((point >> (8 * j)) & 255U);
    value[j] = i8(((signs >> j) & 1U) != 0 ? -magnitude : magnitude);
  }
}

void unpack_iq2_xxs(const std::uint8_t* block, SuperBlock& out) {
  const auto& b = as<quant::BlockIQ2_XXS>(block);
  for (int g = 0; g < 8; ++g) {
    std::uint8_t index[4];
    std::uint32_t word;
    std::memcpy(index, b.qs + 4 * g, 4);
    std::memcpy(&word, b.qs + 4 * g + 2, 4);
    for (int l = 0; l < 4; ++l) {
      put_point(quant::kIq2xxsGrid[index[l]], quant::kIq2xsSigns[(word >> (7 * l)) & 127U],
                out.value + 32 * g + 8 * l);
    }
    out.scale[2 * g] = out.scale[2 * g + 1] = i16(static_cast<int>(2 * (word >> 28) + 1));
  }
  out.d = 0.125F * f16_to_f32(b.d);
  no_min(out);
}

// Sixteen nibbles n -> 2 n + 1, the sub-scales of most IQ types.
void odd_nibble_scales(const std::uint8_t* nibbles, SuperBlock& out) {
  for (int g = 0; g < 16; ++g) {
    out.scale[g] = i16(2 * ((nibbles[g / 2] >> (g % 2 * 4)) & 15) + 1);
  }
}

void unpack_iq2_xs(const std::uint8_t* block, SuperBlock& out) {
  const auto& b = as<quant::BlockIQ2_XS>(block);
  for (int g = 0; g < 32; ++g) {
    const unsigned q = b.qs[g];
    put_point(quant::kIq2xsGrid[q & 511U], quant::kIq2xsSigns[q >> 9], out.value + 8 * g);
  }
  odd_nibble_scales(b.scales, out);
  out.d = 0.125F * f16_to_f32(b.d);
  no_min(out);
}

void unpack_iq2_s(const std::uint8_t* block, SuperBlock& out) {
  const auto& b = as<quant::BlockIQ2_S>(block);
  for (int g = 0; g < 32; ++g) {
    const unsigned high = (static_cast<unsigned>(b.qh[g / 4]) >> (g % 4 * 2)) & 3U;
    put_point(quant::kIq2sGrid[b.qs[g] | (high << 8)], b.signs[g], out.value + 8 * g);
  }
  odd_nibble_scales(b.scales, out);
  out.d = 0.125F * f16_to_f32(b.d);
  no_min(out);
}

void unpack_iq3_xxs(const std::uint8_t* block, SuperBlock& out) {
  const auto& b = as<quant::BlockIQ3_XXS>(block);
  for (int g = 0; g < 8; ++g) {
    std::uint32_t word;
    std::memcpy(&word, reinterpret_cast<const std::uint8_t*>(b.signs) + 4 * g, 4);
    for (int l = 0; l < 8; ++l) {
      const unsigned signs = quant::kIq2xsSigns[(word >> (7 * (l / 2))) & 127U];
      put_point(quant::kIq3xxsGrid[b.qs[8 * g + l]], signs >> (4 * (l % 2)),
                out.value + 32 * g + 4 * l);
    }
    out.scale[2 * g] = out.scale[2 * g + 1] = i16(static_cast<int>(2 * (word >> 28) + 1));
  }
  out.d = 0.25F * f16_to_f32(b.d);
  no_min(out);
}

void unpack_iq3_s(const std::uint8_t* block, SuperBlock& out) {
  const auto& b = as<quant::BlockIQ3_S>(block);
  for (int g = 0; g < 64; ++g) {
    const unsigned high = (static_cast<unsigned>(b.qh[g / 8]) >> (g % 8)) & 1U;
    put_point(quant::kIq3sGrid[b.qs[g] | (high << 8)],
              static_cast<unsigned>(b.signs[g / 2]) >> (g % 2 * 4), out.value + 4 * g);
  }
  for (int g = 0; g < 16; ++g) {
    out.scale[g] = i16(2 * ((b.scales[g / 4] >> (g / 2 % 2 * 4)) & 15) + 1);
  }
  out.d = f16_to_f32(b.d);
  no_min(out);
}

// IQ1: x = d s (point + delta) with delta = +-1/8, so eight times the sum is a whole number.
void put_moved_point(std::uint64_t point, bool negative_delta, std::int8_t* value) {
  for (unsigned j = 0; j < 8; ++j) {
    const auto level = static_cast<std::int8_t>((point >> (8 * j)) & 255U);
    value[j] = i8(8 * level + (negative_delta ? -1 : 1));
  }
}

void unpack_iq1_s(const std::uint8_t* block, SuperBlock& out) {
  const auto& b = as<quant::BlockIQ1_S>(block);
  for (int g = 0; g < 8; ++g) {
    const unsigned qh = b.qh[g];
    for (int l = 0; l < 4; ++l) {
      const unsigned index = b.qs[4 * g + l] | (((qh >> (3 * l)) & 7U) << 8);
      put_moved_point(quant::kIq1sGrid[index], (qh & 0x8000U) != 0, out.value + 32 * g + 8 * l);
    }
    out.scale[2 * g] = out.scale[2 * g + 1] = i16(static_cast<int>(2 * ((qh >> 12) & 7U) + 1));
  }
  out.d = 0.125F * f16_to_f32(b.d);
  no_min(out);
}

void unpack_iq1_m(const std::uint8_t* block, SuperBlock& out) {
  const auto& b = as<quant::BlockIQ1_M>(block);
  unsigned d_bits = 0;
  for (int w = 0; w < 4; ++w) d_bits |= (static_cast<unsigned>(b.scales[w]) >> 12) << (4 * w);
  for (int g = 0; g < 32; ++g) {
    const unsigned qh = (static_cast<unsigned>(b.qh[g / 2]) >> (4 * (g % 2))) & 15U;
    put_moved_point(quant::kIq1sGrid[b.qs[g] | ((qh & 7U) << 8)], (qh & 8U) != 0,
                    out.value + 8 * g);
  }
  for (int g = 0; g < 16; ++g) {
    out.scale[g] = i16(2 * ((b.scales[g / 4] >> (3 * (g % 4))) & 7) + 1);
  }
  out.d = 0.125F * f16_to_f32(static_cast<std::uint16_t>(d_bits));
  no_min(out);
}

void unpack_iq4_xs(const std::uint8_t* block, SuperBlock& out) {
  const auto& b = as<quant::BlockIQ4_XS>(block);
  for (int i = 0; i < 256; ++i) {
    out.value[i] = quant::kIq4nlLevels[(b.qs[i / 32 * 16 + i % 16] >> (i % 32 / 16 * 4)) & 15U];
  }
  for (int g = 0; g < 16; ++g) {
    const int low = (b.scales_l[g / 4] >> (g / 2 % 2 * 4)) & 15;
    const int high = (b.scales_h >> (g / 2 * 2)) & 3;
    out.scale[g] = i16((low | (high << 4)) - 32);
  }
  out.d = f16_to_f32(b.d);
  no_min(out);
}

void all_ones(SuperBlock& out) {
  for (std::int16_t& scale : out.scale) scale = 1;
  no_min(out);
}

void unpack_tq1_0(const std::uint8_t* block, SuperBlock& out) {
  const auto& b = as<quant::BlockTQ1_0>(block);
  constexpr unsigned kPow3[5] = {1, 3, 9, 27, 81};
  const auto digit = [&](unsigned byte, int n) {
    return i8(static_cast<int>((((byte * kPow3[n]) & 255U) * 3U) >> 8) - 1);
  };
  for (int i = 0; i < 160; ++i) out.value[i] = digit(b.qs[i % 32], i / 32);
  for (int i = 0; i < 80; ++i) out.value[160 + i] = digit(b.qs[32 + i % 16], i / 16);
  for (int i = 0; i < 16; ++i) out.value[240 + i] = digit(b.qh[i % 4], i / 4);
  all_ones(out);
  out.d = f16_to_f32(b.d);
}

void unpack_tq2_0(const std::uint8_t* block, SuperBlock& out) {
  const auto& b = as<quant::BlockTQ2_0>(block);
  for (int i = 0; i < 256; ++i) {
    out.value[i] = i8(((b.qs[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2)) & 3) - 1);
  }
  all_ones(out);
  out.d = f16_to_f32(b.d);
}

using quant::Qtype;

constexpr SuperType kTypes[] = {
    {Qtype::kQ2_K, sizeof(quant::BlockQ2_K), true, unpack_q2_k},
    {Qtype::kQ3_K, sizeof(quant::BlockQ3_K), false, unpack_q3_k},
    {Qtype::kQ4_K, sizeof(quant::BlockQ4_K), true, unpack_q4_k},
    {Qtype::kQ5_K, sizeof(quant::BlockQ5_K), true, unpack_q5_k},
    {Qtype::kQ6_K, sizeof(quant::BlockQ6_K), false, unpack_q6_k},
    {Qtype::kIQ2_XXS, sizeof(quant::BlockIQ2_XXS), false, unpack_iq2_xxs},
    {Qtype::kIQ2_XS, sizeof(quant::BlockIQ2_XS), false, unpack_iq2_xs},
    {Qtype::kIQ2_S, sizeof(quant::BlockIQ2_S), false, unpack_iq2_s},
    {Qtype::kIQ3_XXS, sizeof(quant::BlockIQ3_XXS), false, unpack_iq3_xxs},
    {Qtype::kIQ3_S, sizeof(quant::BlockIQ3_S), false, unpack_iq3_s},
    {Qtype::kIQ1_S, sizeof(quant::BlockIQ1_S), false, unpack_iq1_s},
    {Qtype::kIQ1_M, sizeof(quant::BlockIQ1_M), false, unpack_iq1_m},
    {Qtype::kIQ4_XS, sizeof(quant::BlockIQ4_XS), false, unpack_iq4_xs},
    {Qtype::kTQ1_0, sizeof(quant::BlockTQ1_0), false, unpack_tq1_0},
    {Qtype::kTQ2_0, sizeof(quant::BlockTQ2_0), false, unpack_tq2_0},
};

}  // namespace

const SuperType* super_type(Qtype type) {
  for (const SuperType& row : kTypes) {
    if (row.type == type) return &row;
  }
  return nullptr;
}

}  // namespace moesaic::kernels
