// The float operations of every table: the generic one against doubles, the others against it bit
// by bit, at lengths around the vector width; and the choice of a table.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>

#include "base/errors.h"
#include "kernels/random_weights.h"

namespace moesaic::kernels::testing {
namespace {

constexpr std::int64_t kLengths[] = {1, 2, 15, 16, 17, 50, 64, 333};

// Runs an operation of every table and expects the generic one's bits; then hands the generic
// result to `check`.
void compare(const std::function<std::vector<float>(const Table&, std::int64_t)>& run,
             const std::function<void(const std::vector<float>&, std::int64_t)>& check) {
  for (const std::int64_t n : kLengths) {
    const std::vector<float> expected = run(table_by_name("generic"), n);
    check(expected, n);
    for (const Table* table : available_tables()) {
      const std::vector<float> got = run(*table, n);
      ASSERT_EQ(got.size(), expected.size());
      EXPECT_EQ(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)), 0)
          << table->isa << " n " << n;
    }
  }
}

std::vector<float> input(std::int64_t n, unsigned seed, float scale = 3.0F) {
  std::mt19937 rng(seed);
  return random_floats(static_cast<std::size_t>(n), rng, scale);
}

constexpr double kEps = 0x1p-24;

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

TEST(Ops, RmsNorm) {
  for (const bool weighted : {true, false}) {
    compare(
        [&](const Table& table, std::int64_t n) {
          std::vector<float> x = input(n, 1);
          const std::vector<float> w = input(n, 2);
          table.rms_norm(x.data(), weighted ? w.data() : nullptr, 1e-5F, n, x.data());
          return x;
        },
        [&](const std::vector<float>& out, std::int64_t n) {
          const std::vector<float> x = input(n, 1);
          const std::vector<float> w = input(n, 2);
          double sum = 0.0;
          for (const float v : x) sum += static_cast<double>(v) * static_cast<double>(v);
          const double r = 1.0 / std::sqrt(sum / static_cast<double>(n) + 1e-5);
          for (std::size_t i = 0; i < x.size(); ++i) {
            const double expected =
                static_cast<double>(x[i]) * r * (weighted ? static_cast<double>(w[i]) : 1.0);
            EXPECT_NEAR(out[i], expected, std::abs(expected) * kEps * (8 + n / 16.0));
          }
        });
  }
}

TEST(Ops, Rope) {
  for (const bool interleaved : {true, false}) {
    for (const std::int64_t n_rot : {2, 6, 32, 34, 64, 128}) {
      const std::vector<float> x = input(n_rot, 3);
      std::vector<float> cos_sin;
      for (std::int64_t i = 0; i < n_rot / 2; ++i) {
        cos_sin.push_back(std::cos(0.3F * static_cast<float>(i)));
        cos_sin.push_back(std::sin(0.3F * static_cast<float>(i)));
      }
      std::vector<float> expected = x;
      table_by_name("generic").rope(expected.data(), cos_sin.data(), n_rot, interleaved);
      for (std::size_t i = 0; i < static_cast<std::size_t>(n_rot / 2); ++i) {
        const std::size_t a = interleaved ? 2 * i : i;
        const std::size_t b = interleaved ? a + 1 : i + static_cast<std::size_t>(n_rot / 2);
        const double c = static_cast<double>(cos_sin[2 * i]);
        const double s = static_cast<double>(cos_sin[2 * i + 1]);
        const double xa = static_cast<double>(x[a]);
        const double xb = static_cast<double>(x[b]);
        const double tolerance = 2 * kEps * (std::abs(xa) + std::abs(xb));
        EXPECT_NEAR(expected[a], xa * c - xb * s, tolerance);
        EXPECT_NEAR(expected[b], xa * s + xb * c, tolerance);
      }
      for (const Table* table : available_tables()) {
        std::vector<float> got = x;
        table->rope(got.data(), cos_sin.data(), n_rot, interleaved);
        EXPECT_EQ(got, expected) << table->isa << " n_rot " << n_rot;
      }
    }
  }
}

TEST(Ops, AddScaleAndAddScaled) {
  compare(
      [](const Table& table, std::int64_t n) {
        const std::vector<float> x = input(n, 4);
        std::vector<float> out = input(n, 5);
        table.add(x.data(), out.data(), n, out.data());
        table.add_scaled(x.data(), 0.7F, n, out.data());
        table.scale(1.3F, n, out.data());
        return out;
      },
      [](const std::vector<float>& out, std::int64_t n) {
        const std::vector<float> x = input(n, 4);
        const std::vector<float> y = input(n, 5);
        for (std::size_t i = 0; i < out.size(); ++i) {
          const float sum = x[i] + y[i];
          EXPECT_EQ(out[i], 1.3F * std::fma(0.7F, x[i], sum));
        }
      });
}

TEST(Ops, GatedActivations) {
  compare(
      [](const Table& table, std::int64_t n) {
        const std::vector<float> gate = input(n, 6, 20.0F);
        const std::vector<float> up = input(n, 7, 10.0F);
        std::vector<float> out(static_cast<std::size_t>(3 * n));
        table.silu_mul(gate.data(), up.data(), n, out.data());
        table.swiglu_oai(gate.data(), up.data(), 1.702F, 7.0F, n, out.data() + n);
        table.sigmoid(gate.data(), n, out.data() + 2 * n);
        return out;
      },
      [](const std::vector<float>& out, std::int64_t n) {
        const std::vector<float> gate = input(n, 6, 20.0F);
        const std::vector<float> up = input(n, 7, 10.0F);
        for (std::size_t i = 0; i < gate.size(); ++i) {
          const double g = static_cast<double>(gate[i]);
          const double u = static_cast<double>(up[i]);
          const double silu = g * sigmoid(g) * u;
          EXPECT_NEAR(out[i], silu, std::abs(silu) * 10 * kEps + 1e-30);
          const double gl = std::min(g, 7.0);
          const double ul = std::clamp(u, -7.0, 7.0);
          const double oai = gl * sigmoid(static_cast<double>(1.702F) * gl) * (ul + 1.0);
          // The argument's rounding turns into a relative error of exp.
          const double relative = (12 + std::abs(1.702 * gl)) * kEps;
          EXPECT_NEAR(out[static_cast<std::size_t>(n) + i], oai,
                      std::abs(oai) * relative + std::abs(gl * sigmoid(1.702 * gl)) * 2e-6);
          EXPECT_NEAR(out[static_cast<std::size_t>(2 * n) + i], sigmoid(g), sigmoid(g) * 8 * kEps);
        }
      });
}

TEST(Ops, SigmoidOfFarAndBrokenNumbers) {
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {
      -inf, inf, std::numeric_limits<float>::quiet_NaN(), -500.0F, 500.0F, 0.0F, -87.5F, 87.5F};
  for (const Table* table : available_tables()) {
    std::vector<float> out(x.size());
    table->sigmoid(x.data(), static_cast<std::int64_t>(x.size()), out.data());
    EXPECT_LT(out[0], 1e-37F);
    EXPECT_EQ(out[1], 1.0F);
    EXPECT_TRUE(std::isnan(out[2])) << table->isa;
    EXPECT_LT(out[3], 1e-37F);
    EXPECT_EQ(out[4], 1.0F);
    EXPECT_EQ(out[5], 0.5F);
  }
}

TEST(Ops, SoftmaxAndLogSumExp) {
  compare(
      [](const Table& table, std::int64_t n) {
        std::vector<float> x = input(n, 8, 10.0F);
        const double lse = table.log_sum_exp(x.data(), n);
        table.softmax(x.data(), n, x.data());
        x.push_back(static_cast<float>(lse));
        return x;
      },
      [](const std::vector<float>& out, std::int64_t n) {
        const std::vector<float> x = input(n, 8, 10.0F);
        const double maximum = static_cast<double>(*std::max_element(x.begin(), x.end()));
        double sum = 0.0;
        for (const float v : x) sum += std::exp(static_cast<double>(v) - maximum);
        for (std::size_t i = 0; i < x.size(); ++i) {
          const double expected = std::exp(static_cast<double>(x[i]) - maximum) / sum;
          const double argument = maximum - static_cast<double>(x[i]);
          EXPECT_NEAR(out[i], expected,
                      expected * kEps * (12 + argument + static_cast<double>(n) / 16) + 1e-37);
        }
        EXPECT_NEAR(out.back(), maximum + std::log(sum), 1e-6 * (1 + std::abs(maximum)));
      });
}

TEST(Ops, HalfConversions) {
  std::vector<std::uint16_t> all;
  for (unsigned h = 0; h < 65536; ++h) {
    if ((h & 0x7C00U) == 0x7C00U && (h & 0x3FFU) != 0) continue;  // NaN: payloads may differ
    all.push_back(static_cast<std::uint16_t>(h));
  }
  const auto n = static_cast<std::int64_t>(all.size());
  for (const Table* table : available_tables()) {
    std::vector<float> floats(all.size());
    std::vector<std::uint16_t> back(all.size());
    table->from_f16(all.data(), n, floats.data());
    table->to_f16(floats.data(), n, back.data());
    EXPECT_EQ(back, all) << table->isa;
    for (std::size_t i = 0; i < all.size(); ++i) {
      ASSERT_EQ(floats[i], quant::f16_to_f32(all[i])) << table->isa;
    }
  }
  compare(
      [](const Table& table, std::int64_t length) {
        const std::vector<float> x = input(length, 9, 1000.0F);
        std::vector<std::uint16_t> halves(x.size());
        table.to_f16(x.data(), length, halves.data());
        std::vector<float> out(x.size());
        table.from_f16(halves.data(), length, out.data());
        return out;
      },
      [](const std::vector<float>& out, std::int64_t length) {
        const std::vector<float> x = input(length, 9, 1000.0F);
        for (std::size_t i = 0; i < x.size(); ++i) {
          EXPECT_EQ(out[i], quant::f16_to_f32(quant::f32_to_f16(x[i])));
        }
      });
}

TEST(Prepare, EveryTableGivesTheGenericBytesAndTheValuesAreNear) {
  std::mt19937 rng(21);
  for (const ActFormat format : {ActFormat::kF32, ActFormat::kQ8x32, ActFormat::kQ8x256}) {
    for (const std::int64_t k : {256, 512, 1280}) {
      std::vector<float> x = random_floats(static_cast<std::size_t>(3 * (k + 7)), rng, 2.0F);
      std::fill(x.begin(), x.begin() + 256, 0.0F);  // a group of zeros
      const std::size_t row_bytes = act_row_bytes(format, k);
      ASSERT_EQ(row_bytes % 64, 0U);
      std::vector<std::uint8_t> expected(3 * row_bytes, 0);
      table_by_name("generic").prepare(format, x.data(), k + 7, 3, k, expected.data());
      for (const Table* table : available_tables()) {
        std::vector<std::uint8_t> got(3 * row_bytes, 0);
        table->prepare(format, x.data(), k + 7, 3, k, got.data());
        EXPECT_EQ(got, expected) << table->isa;
      }
      for (std::size_t r = 0; r < 3; ++r) {
        const std::vector<double> values =
            read_prepared(format, expected.data() + r * row_bytes, k);
        const std::int64_t group = format == ActFormat::kF32 ? 1 : scale_group(format);
        for (std::int64_t i = 0; i < k; ++i) {
          const float* row = x.data() + r * static_cast<std::size_t>(k + 7);
          float amax = 0.0F;
          for (std::int64_t j = i / group * group; j < (i / group + 1) * group; ++j) {
            amax = std::max(amax, std::abs(row[j]));
          }
          const double step = format == ActFormat::kF32 ? 0.0 : static_cast<double>(amax) / 127.0;
          EXPECT_NEAR(values[static_cast<std::size_t>(i)], row[i], step * 0.5001);
        }
      }
    }
  }
}

TEST(Prepare, NotANumberReachesTheOutput) {
  for (const Table* table : available_tables()) {
    std::vector<float> x(256, 1.0F);
    x[77] = std::numeric_limits<float>::quiet_NaN();
    std::vector<std::uint8_t> row(act_row_bytes(ActFormat::kQ8x256, 256));
    table->prepare(ActFormat::kQ8x256, x.data(), 256, 1, 256, row.data());
    EXPECT_TRUE(std::isnan(read_prepared(ActFormat::kQ8x256, row.data(), 256)[3])) << table->isa;
  }
}

TEST(Tables, ChoiceFollowsTheMachineAndTheEnvironment) {
  ASSERT_FALSE(available_tables().empty());
  EXPECT_STREQ(available_tables().front()->isa, "generic");
  const char* before = std::getenv("MOESAIC_ISA");
  const std::string saved = before == nullptr ? "" : before;
  for (const Table* table : available_tables()) {
    ::setenv("MOESAIC_ISA", table->isa, 1);
    EXPECT_EQ(&best_table(), table);
  }
  ::setenv("MOESAIC_ISA", "mmx", 1);
  EXPECT_THROW(best_table(), ArgumentError);
  ::unsetenv("MOESAIC_ISA");
  EXPECT_EQ(&best_table(), available_tables().back());
  if (!saved.empty()) ::setenv("MOESAIC_ISA", saved.c_str(), 1);
}

}  // namespace
}  // namespace moesaic::kernels::testing
