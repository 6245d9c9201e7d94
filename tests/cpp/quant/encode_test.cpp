// Encoders: the error they leave is near the best for their bit budget, special blocks survive, and
// encoding what was decoded changes nothing worth speaking of.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "quant/qtype.h"

namespace moesaic::quant {
namespace {

std::vector<float> round_trip(const QtypeTraits& traits, const std::vector<float>& x) {
  const auto n_blocks = static_cast<std::int64_t>(x.size()) / traits.block_elems;
  std::vector<std::uint8_t> blocks(static_cast<std::size_t>(n_blocks * traits.block_bytes), 0xAA);
  traits.encode(x.data(), n_blocks, blocks.data());
  std::vector<float> y(x.size());
  traits.decode(blocks.data(), n_blocks, y.data());
  return y;
}

double relative_rms(const std::vector<float>& x, const std::vector<float>& y) {
  double miss = 0, sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    miss += std::pow(static_cast<double>(x[i]) - y[i], 2);
    sum += std::pow(static_cast<double>(x[i]), 2);
  }
  return std::sqrt(miss / sum);
}

std::vector<float> gaussian(std::size_t n, float sigma, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0, sigma);
  std::vector<float> x(n);
  for (float& v : x) v = normal(engine);
  return x;
}

// Relative RMS error on Gaussian weights. The bounds are 3 % above what this encoder reaches; the
// floats' are their rounding: eps / sqrt(3) or less.
double bound(Qtype type) {
  switch (type) {
    case Qtype::kF32:
      return 0;
    case Qtype::kF16:
      return 0x1p-11;
    case Qtype::kBF16:
      return 0x1p-8;
    case Qtype::kQ8_0:
      return 0.0056;
    case Qtype::kQ6_K:
      return 0.0171;
    case Qtype::kQ5_K:
      return 0.0359;
    case Qtype::kQ5_1:
      return 0.0351;
    case Qtype::kQ5_0:
      return 0.0415;
    case Qtype::kQ4_K:
      return 0.0727;
    case Qtype::kQ4_1:
      return 0.0724;
    case Qtype::kQ4_0:
      return 0.0840;
    case Qtype::kIQ4_NL:
      return 0.0761;
    case Qtype::kIQ4_XS:
      return 0.0767;
    case Qtype::kMXFP4:
      return 0.1147;
    case Qtype::kQ3_K:
      return 0.1497;
    case Qtype::kQ2_K:
      return 0.2740;
    default:
      return -1;
  }
}

class Encoder : public testing::TestWithParam<QtypeTraits> {};

TEST_P(Encoder, GaussianErrorIsNearTheBest) {
  const std::vector<float> x = gaussian(std::size_t{1} << 16, 0.02F, 7);
  const double error = relative_rms(x, round_trip(GetParam(), x));
  ASSERT_GE(bound(GetParam().type), 0) << "a type that can be written needs a bound here";
  EXPECT_LE(error, bound(GetParam().type));
}

TEST_P(Encoder, ZerosStayZeros) {
  const std::vector<float> x(512, 0.0F);
  for (const float y : round_trip(GetParam(), x)) ASSERT_EQ(y, 0.0F);
}

TEST_P(Encoder, ConstantsAreKept) {
  for (const float c : {1.0F, -1.0F, 3.0F, -0.0371F}) {
    const std::vector<float> x(512, c);
    // The coarsest relative step of a constant: MXFP4 has no level for it within 1/8, BF16 rounds
    // to 2^-8.
    const float tolerance = GetParam().type == Qtype::kMXFP4 ? 0.21F : 0.02F;
    for (const float y : round_trip(GetParam(), x)) ASSERT_NEAR(y, c, std::abs(c) * tolerance);
  }
}

TEST_P(Encoder, LargeTinyAndMixedValuesStayFinite) {
  std::vector<float> x = gaussian(4096, 1, 3);
  for (std::size_t i = 0; i < 1024; ++i) x[i] *= 1e4F;
  for (std::size_t i = 1024; i < 2048; ++i) x[i] *= 1e-6F;
  for (std::size_t i = 2048; i < 3072; ++i) x[i] *= i % 37 == 0 ? 100.0F : 0.01F;
  for (std::size_t i = 3072; i < 3328; ++i) x[i] = i % 2 == 0 ? 0.0F : 1e-38F;
  const std::vector<float> y = round_trip(GetParam(), x);
  const float peak = std::abs(*std::max_element(
      x.begin(), x.end(), [](float a, float b) { return std::abs(a) < std::abs(b); }));
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_TRUE(std::isfinite(y[i])) << i;
    ASSERT_LE(std::abs(y[i]), 1.5F * peak) << i;
  }
  EXPECT_LT(relative_rms(x, y), 0.35);
}

// Decoded values lie on the grid: encoding them again may not lose more than a fraction of the
// first loss.
TEST_P(Encoder, SecondRoundLosesLittle) {
  const std::vector<float> x = gaussian(8192, 1, 11);
  const std::vector<float> once = round_trip(GetParam(), x);
  const std::vector<float> twice = round_trip(GetParam(), once);
  EXPECT_LE(relative_rms(once, twice), 0.5 * relative_rms(x, once) + 1e-9);
}

// NaN and infinity have no place in a block; the encoders must survive them all the same (Python
// refuses them before).
TEST_P(Encoder, SurvivesNonFinite) {
  std::vector<float> x = gaussian(512, 1, 5);
  x[3] = std::numeric_limits<float>::quiet_NaN();
  x[300] = std::numeric_limits<float>::infinity();
  x[400] = -std::numeric_limits<float>::infinity();
  EXPECT_EQ(round_trip(GetParam(), x).size(), x.size());
}

std::vector<QtypeTraits> written_types() {
  std::vector<QtypeTraits> types;
  for (const QtypeTraits& row : all_qtypes()) {
    if (row.encode != nullptr) types.push_back(row);
  }
  return types;
}

INSTANTIATE_TEST_SUITE_P(Types, Encoder, testing::ValuesIn(written_types()),
                         [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace moesaic::quant
