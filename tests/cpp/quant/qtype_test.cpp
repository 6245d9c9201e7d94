// The table of types, the half-precision conversions, integer types, and row sizes.
#include "quant/qtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/errors.h"
#include "quant/half.h"
#include "quant/k_scales.h"

namespace moesaic::quant {
namespace {

TEST(Qtype, NamesAndIdsLeadToTheSameRow) {
  for (const QtypeTraits& row : all_qtypes()) {
    EXPECT_EQ(&traits(row.type), &row);
    EXPECT_EQ(qtype_from_id(static_cast<std::uint32_t>(row.type)), row.type);
    EXPECT_EQ(qtype_from_name(row.name), row.type);
    EXPECT_LT(static_cast<std::uint32_t>(row.type), kQtypeIdEnd);
  }
  EXPECT_EQ(qtype_from_name("q4_k"), Qtype::kQ4_K);
  EXPECT_FALSE(qtype_from_name("Q4"));
  for (const std::uint32_t id : {4U, 5U, 9U, 15U, 31U, 32U, 33U, 36U, 37U, 38U, 43U, 0xFFFFFFFFU}) {
    EXPECT_FALSE(qtype_from_id(id)) << id;
  }
}

TEST(Qtype, RowBytes) {
  EXPECT_EQ(row_bytes(Qtype::kQ4_K, 512), 288U);
  EXPECT_EQ(row_bytes(Qtype::kF32, 3), 12U);
  EXPECT_THROW(row_bytes(Qtype::kQ4_K, 128), FormatError);
  EXPECT_THROW(row_bytes(Qtype::kF32, std::uint64_t{1} << 63), FormatError);
}

TEST(Half, EveryF16ComesBack) {
  for (std::uint32_t h = 0; h < 65536; ++h) {
    const float value = f16_to_f32(static_cast<std::uint16_t>(h));
    const std::uint16_t back = f32_to_f16(value);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(f16_to_f32(back)));
    } else {
      ASSERT_EQ(back, h);
    }
  }
}

// The exact midpoint between two neighbours goes to the even one, a hair above or below to the
// nearer.
TEST(Half, F16RoundsToNearestEven) {
  for (std::uint32_t h = 0; h < 0x7BFF; ++h) {
    const float low = f16_to_f32(static_cast<std::uint16_t>(h));
    const float high = f16_to_f32(static_cast<std::uint16_t>(h + 1));
    const float middle = low + (high - low) / 2;
    ASSERT_EQ(f32_to_f16(middle), h + (h & 1U));
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, high)), h + 1);
    ASSERT_EQ(f32_to_f16(std::nextafter(middle, low)), h);
    ASSERT_EQ(f32_to_f16(-middle), 0x8000U | (h + (h & 1U)));
  }
  EXPECT_EQ(f32_to_f16(65519.0F), 0x7BFFU);
  EXPECT_EQ(f32_to_f16(65520.0F), 0x7C00U);
  EXPECT_EQ(f32_to_f16(std::numeric_limits<float>::infinity()), 0x7C00U);
  EXPECT_EQ(f32_to_f16(std::numeric_limits<float>::denorm_min()), 0U);
}

TEST(Half, Bf16) {
  EXPECT_EQ(bf16_to_f32(0x3F80), 1.0F);
  EXPECT_EQ(f32_to_bf16(1.0F), 0x3F80);
  EXPECT_EQ(f32_to_bf16(1.00390625F), 0x3F80);  // midpoint, to even
  EXPECT_EQ(f32_to_bf16(1.01171875F), 0x3F82);  // midpoint, to even
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::nanf("")))));
}

TEST(KScales, PackAndUnpack) {
  KScales k;
  for (int s = 0; s < 8; ++s) {
    k.scale[s] = static_cast<std::uint8_t>(63 - 7 * s);
    k.min[s] = static_cast<std::uint8_t>(9 * s);
  }
  std::uint8_t packed[12];
  pack_k_scales(k, packed);
  const KScales back = unpack_k_scales(packed);
  EXPECT_EQ(std::memcmp(&k, &back, sizeof k), 0);
}

template <typename T>
std::vector<float> decode(Qtype type, const std::vector<T>& elems) {
  std::vector<float> out(elems.size());
  traits(type).decode(reinterpret_cast<const std::uint8_t*>(elems.data()),
                      static_cast<std::int64_t>(elems.size()), out.data());
  return out;
}

TEST(Plain, IntegersAndF64) {
  EXPECT_EQ(decode<std::int8_t>(Qtype::kI8, {-128, 127}), (std::vector<float>{-128, 127}));
  EXPECT_EQ(decode<std::int16_t>(Qtype::kI16, {-32768, 7}), (std::vector<float>{-32768, 7}));
  EXPECT_EQ(decode<std::int32_t>(Qtype::kI32, {-5, 16777217}), (std::vector<float>{-5, 16777216}));
  EXPECT_EQ(decode<std::int64_t>(Qtype::kI64, {INT64_MIN, 3}), (std::vector<float>{-0x1p63F, 3}));
  EXPECT_EQ(decode<double>(Qtype::kF64, {0.1, 1e300}), (std::vector<float>{0.1F, INFINITY}));
}

}  // namespace
}  // namespace moesaic::quant
