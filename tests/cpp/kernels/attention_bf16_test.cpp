// Attention with bf16 products, where this machine has them: against scalar double code on rounded
// numbers, and the same bits however the queries are grouped.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/attention_rig.h"

namespace moesaic::kernels::testing {
namespace {

// To the nearest bf16, ties to even.
double rounded(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t up = 0x7FFFU + (bits >> 16 & 1U);
  return static_cast<double>(std::bit_cast<float>((bits + up) & 0xFFFF0000U));
}

// What one query must give: float sums of products of rounded numbers, weights rounded once more.
void expect_near_doubles(const Problem& problem, const Result& result, std::int64_t i,
                         const std::string& where) {
  const Case& c = problem.c;
  const auto at = static_cast<std::size_t>(i);
  const std::int64_t begin = std::max(c.begin, problem.first[at]);
  const std::int64_t end = std::min(c.end, problem.last[at]);
  const float* out = result.out.data() + i * c.d_v;
  if (begin >= end) {
    EXPECT_EQ(result.maximum[at], -std::numeric_limits<float>::infinity()) << where;
    EXPECT_EQ(result.sum[at], 0.0F) << where;
    for (std::int64_t d = 0; d < c.d_v; ++d) EXPECT_EQ(out[d], 0.0F) << where;
    return;
  }
  const float* q = problem.q.data() + i * (c.d_k + 5);
  const double scale = static_cast<double>(problem.scale());
  std::vector<double> scores;
  double norm = 0.0;  // of the scores: what their rounding error scales with
  for (std::int64_t t = begin; t < end; ++t) {
    double score = 0.0;
    double magnitude = 0.0;
    for (std::int64_t d = 0; d < c.d_k; ++d) {
      const double term =
          rounded(q[d]) * rounded(problem.cache.keys[static_cast<std::size_t>(t * c.d_k + d)]);
      score += term;
      magnitude += std::abs(term);
    }
    scores.push_back(score * scale);
    norm = std::max(norm, magnitude * scale);
  }
  const double eps = 0x1p-24;
  const double score_error = (static_cast<double>(c.d_k) / 4 + 4) * eps * norm;
  const double maximum = *std::max_element(scores.begin(), scores.end());
  EXPECT_NEAR(result.maximum[at], maximum, score_error) << where;
  double sum = 0.0;
  std::vector<double> expected(static_cast<std::size_t>(c.d_v), 0.0);
  std::vector<double> magnitude(static_cast<std::size_t>(c.d_v), 0.0);
  for (std::int64_t t = begin; t < end; ++t) {
    const double p = std::exp(scores[static_cast<std::size_t>(t - begin)] - maximum);
    sum += p;
    for (std::int64_t d = 0; d < c.d_v; ++d) {
      const auto column = static_cast<std::size_t>(d);
      const double term =
          p * rounded(problem.cache.values[static_cast<std::size_t>(t * c.d_v + d)]);
      expected[column] += term;
      magnitude[column] += std::abs(term);
    }
  }
  // A weight's rounding to eight bits outweighs the rest.
  const double relative = 0x1p-8 + 2 * score_error + (8 + static_cast<double>(end - begin)) * eps;
  EXPECT_NEAR(result.sum[at], sum, relative * sum) << where;
  for (std::int64_t d = 0; d < c.d_v; ++d) {
    const auto column = static_cast<std::size_t>(d);
    EXPECT_NEAR(out[d], expected[column], relative * magnitude[column]) << where << " column " << d;
  }
}

TEST(AttentionBf16, EqualsScalarDoublesOfRoundedNumbers) {
  for (const Attention& attention : bf16_attentions()) {
    for (const Case& c : kCases) {
      const Problem problem(c);
      const Result result = problem.run(attention.run, c.n_q);
      for (std::int64_t i = 0; i < c.n_q; ++i) {
        expect_near_doubles(problem, result, i,
                            attention.name + " d_k " + std::to_string(c.d_k) + " query " +
                                std::to_string(i) + " of " + std::to_string(c.n_q));
      }
    }
  }
}

TEST(AttentionBf16, AQuerysBitsDoNotDependOnTheOthers) {
  for (const Attention& attention : bf16_attentions()) {
    for (const Case& c : kCases) {
      const Problem problem(c);
      const Result whole = problem.run(attention.run, c.n_q);
      for (const std::int64_t group : {1, 3, 17}) {
        const Result cut = problem.run(attention.run, group);
        const std::string where = attention.name + " d_k " + std::to_string(c.d_k) + " queries " +
                                  std::to_string(c.n_q) + " by " + std::to_string(group);
        EXPECT_TRUE(same_bits(whole.maximum, cut.maximum)) << where;
        EXPECT_TRUE(same_bits(whole.sum, cut.sum)) << where;
        EXPECT_TRUE(same_bits(whole.out, cut.out)) << where;
      }
    }
  }
}

// The weights of a chunk are joined over looks at the maximum: one that grows again and again.
TEST(AttentionBf16, GrowingScoresKeepEarlierWeights) {
  const Case c{2, 32, 32, 0, 512, 64, KvType::kF32, false};
  for (const Attention& attention : bf16_attentions()) {
    Problem problem(c);
    problem.first.assign(2, 0);
    problem.last.assign(2, 512);
    std::fill(problem.q.begin(), problem.q.end(), 0.0F);
    problem.q[0] = 1.0F;
    for (std::int64_t t = 0; t < 512; ++t) {
      float* key =
          reinterpret_cast<float*>(problem.cache.k_data[static_cast<std::size_t>(t / 64)].data() +
                                   static_cast<std::size_t>(t % 64) * problem.cache.k_row_bytes);
      key[0] = problem.cache.keys[static_cast<std::size_t>(t * 32)] =
          static_cast<float>(t / 128) * 2.0F;
    }
    const Result result = problem.run(attention.run, 2);
    for (std::int64_t i = 0; i < 2; ++i) expect_near_doubles(problem, result, i, attention.name);
  }
}

}  // namespace
}  // namespace moesaic::kernels::testing
