// Scalar unpacking of the types with blocks of 32, or of some times 32; bit layouts are tabled in
// quant/<type>.h.
#include <cstring>

#include "kernels/unpack.h"
#include "quant/grids.h"
#include "quant/half.h"
#include "quant/iq4_nl.h"
#include "quant/mxfp4.h"
#include "quant/nvfp4.h"
#include "quant/q1_0.h"
#include "quant/q2_0.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q5_0.h"
#include "quant/q5_1.h"
#include "quant/q8_0.h"

namespace moesaic::kernels {
namespace {

using quant::f16_to_f32;

template <typename Block>
const Block& as(const std::uint8_t* block) {
  return *reinterpret_cast<const Block*>(block);
}

std::int8_t i8(int value) { return static_cast<std::int8_t>(value); }

void set_scales(float d, float min, SmallBlock& out) {
  out.d = out.d16 = d;
  out.min = min;
}

// Code i of 16 bytes that hold codes 0..15 in their low nibbles and 16..31 in their high ones.
int nibble(const std::uint8_t* qs, int i) { return (qs[i % 16] >> (i / 16 * 4)) & 15; }

int fifth_bit(std::uint32_t qh, int i) { return static_cast<int>((qh >> i) & 1U) << 4; }

void unpack_q4_0(const std::uint8_t* block, int, SmallBlock& out) {
  const auto& b = as<quant::BlockQ4_0>(block);
  for (int i = 0; i < 32; ++i) out.value[i] = i8(nibble(b.qs, i) - 8);
  set_scales(f16_to_f32(b.d), 0.0F, out);
}

void unpack_q4_1(const std::uint8_t* block, int, SmallBlock& out) {
  const auto& b = as<quant::BlockQ4_1>(block);
  for (int i = 0; i < 32; ++i) out.value[i] = i8(nibble(b.qs, i));
  set_scales(f16_to_f32(b.d), f16_to_f32(b.m), out);
}

void unpack_q5_0(const std::uint8_t* block, int, SmallBlock& out) {
  const auto& b = as<quant::BlockQ5_0>(block);
  for (int i = 0; i < 32; ++i) out.value[i] = i8(nibble(b.qs, i) + fifth_bit(b.qh, i) - 16);
  set_scales(f16_to_f32(b.d), 0.0F, out);
}

void unpack_q5_1(const std::uint8_t* block, int, SmallBlock& out) {
  const auto& b = as<quant::BlockQ5_1>(block);
  for (int i = 0; i < 32; ++i) out.value[i] = i8(nibble(b.qs, i) + fifth_bit(b.qh, i));
  set_scales(f16_to_f32(b.d), f16_to_f32(b.m), out);
}

void unpack_q8_0(const std::uint8_t* block, int, SmallBlock& out) {
  const auto& b = as<quant::BlockQ8_0>(block);
  std::memcpy(out.value, b.qs, 32);
  set_scales(f16_to_f32(b.d), 0.0F, out);
}

void unpack_iq4_nl(const std::uint8_t* block, int, SmallBlock& out) {
  const auto& b = as<quant::BlockIQ4_NL>(block);
  for (int i = 0; i < 32; ++i) {
    out.value[i] = quant::kIq4nlLevels[static_cast<unsigned>(nibble(b.qs, i))];
  }
  set_scales(f16_to_f32(b.d), 0.0F, out);
}

void unpack_mxfp4(const std::uint8_t* block, int, SmallBlock& out) {
  const auto& b = as<quant::BlockMXFP4>(block);
  for (int i = 0; i < 32; ++i) {
    out.value[i] = quant::kFp4Levels[static_cast<unsigned>(nibble(b.qs, i))];
  }
  set_scales(quant::e8m0_half_to_f32(b.e), 0.0F, out);
}

void unpack_nvfp4(const std::uint8_t* block, int part, SmallBlock& out) {
  const auto& b = as<quant::BlockNVFP4>(block);
  for (int i = 0; i < 32; ++i) {
    const unsigned byte = b.qs[16 * part + i / 16 * 8 + i % 8];
    out.value[i] = quant::kFp4Levels[(byte >> (i % 16 / 8 * 4)) & 15U];
  }
  out.d = quant::ue4m3_half_to_f32(b.d[2 * part]);
  out.d16 = quant::ue4m3_half_to_f32(b.d[2 * part + 1]);
  out.min = 0.0F;
}

void unpack_q1_0(const std::uint8_t* block, int part, SmallBlock& out) {
  const auto& b = as<quant::BlockQ1_0>(block);
  for (int i = 0; i < 32; ++i) {
    out.value[i] = i8(2 * ((b.qs[4 * part + i / 8] >> (i % 8)) & 1) - 1);
  }
  set_scales(f16_to_f32(b.d), 0.0F, out);
}

void unpack_q2_0(const std::uint8_t* block, int part, SmallBlock& out) {
  const auto& b = as<quant::BlockQ2_0>(block);
  for (int i = 0; i < 32; ++i) {
    out.value[i] = i8(((b.qs[8 * part + i / 4] >> (i % 4 * 2)) & 3) - 1);
  }
  set_scales(f16_to_f32(b.d), 0.0F, out);
}

using quant::Qtype;

constexpr SmallType kTypes[] = {
    {Qtype::kQ4_0, sizeof(quant::BlockQ4_0), 32, false, false, unpack_q4_0},
    {Qtype::kQ4_1, sizeof(quant::BlockQ4_1), 32, true, false, unpack_q4_1},
    {Qtype::kQ5_0, sizeof(quant::BlockQ5_0), 32, false, false, unpack_q5_0},
    {Qtype::kQ5_1, sizeof(quant::BlockQ5_1), 32, true, false, unpack_q5_1},
    {Qtype::kQ8_0, sizeof(quant::BlockQ8_0), 32, false, false, unpack_q8_0},
    {Qtype::kIQ4_NL, sizeof(quant::BlockIQ4_NL), 32, false, false, unpack_iq4_nl},
    {Qtype::kMXFP4, sizeof(quant::BlockMXFP4), 32, false, false, unpack_mxfp4},
    {Qtype::kNVFP4, sizeof(quant::BlockNVFP4), 64, false, true, unpack_nvfp4},
    {Qtype::kQ1_0, sizeof(quant::BlockQ1_0), 128, false, false, unpack_q1_0},
    {Qtype::kQ2_0, sizeof(quant::BlockQ2_0), 64, false, false, unpack_q2_0},
};

}  // namespace

const SmallType* small_type(Qtype type) {
  for (const SmallType& row : kTypes) {
    if (row.type == type) return &row;
  }
  return nullptr;
}

}  // namespace moesaic::kernels
