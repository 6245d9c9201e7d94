// Attention of every table against scalar double code, over head sizes, windows, page sizes and
// cache types; bit equality between tables and between ways to group the queries.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "kernels/attention_rig.h"

namespace moesaic::kernels::testing {
namespace {

TEST(Attention, GenericEqualsScalarDoubles) {
  for (const Case& c : kCases) {
    const Problem problem(c);
    const Result result = problem.run(table_by_name("generic"), c.n_q);
    for (std::int64_t i = 0; i < c.n_q; ++i) {
      const auto at = static_cast<std::size_t>(i);
      const std::int64_t begin = std::max(c.begin, problem.first[at]);
      const std::int64_t end = std::min(c.end, problem.last[at]);
      if (begin >= end) {
        EXPECT_EQ(result.maximum[at], -std::numeric_limits<float>::infinity());
        EXPECT_EQ(result.sum[at], 0.0F);
        for (std::int64_t d = 0; d < c.d_v; ++d) EXPECT_EQ(result.out[at * c.d_v + d], 0.0F);
        continue;
      }
      double norm = 0.0;  // of the scores: what their rounding error scales with
      std::vector<double> scores;
      for (std::int64_t t = begin; t < end; ++t) {
        double score = 0.0;
        double magnitude = 0.0;
        for (std::int64_t d = 0; d < c.d_k; ++d) {
          const double term =
              static_cast<double>(problem.q[static_cast<std::size_t>(i * (c.d_k + 5) + d)]) *
              static_cast<double>(problem.cache.keys[static_cast<std::size_t>(t * c.d_k + d)]);
          score += term;
          magnitude += std::abs(term);
        }
        scores.push_back(score * static_cast<double>(problem.scale()));
        norm = std::max(norm, magnitude * static_cast<double>(problem.scale()));
      }
      const double maximum = *std::max_element(scores.begin(), scores.end());
      const double eps = 0x1p-24;
      const double score_error = (static_cast<double>(c.d_k) / 16 + 6) * eps * norm;
      EXPECT_NEAR(result.maximum[at], maximum, score_error);
      double sum = 0.0;
      std::vector<double> out(static_cast<std::size_t>(c.d_v), 0.0);
      std::vector<double> out_norm(static_cast<std::size_t>(c.d_v), 0.0);
      for (std::int64_t t = begin; t < end; ++t) {
        const double p = std::exp(scores[static_cast<std::size_t>(t - begin)] - maximum);
        sum += p;
        for (std::int64_t d = 0; d < c.d_v; ++d) {
          const double term =
              p *
              static_cast<double>(problem.cache.values[static_cast<std::size_t>(t * c.d_v + d)]);
          out[static_cast<std::size_t>(d)] += term;
          out_norm[static_cast<std::size_t>(d)] += std::abs(term);
        }
      }
      // exp turns an absolute error of its argument into a relative one of its value; the
      // polynomial has 4 eps of its own; then one rounding per key.
      const double relative = 2 * score_error + (4 + static_cast<double>(end - begin)) * eps;
      EXPECT_NEAR(result.sum[at], sum, relative * sum);
      for (std::int64_t d = 0; d < c.d_v; ++d) {
        EXPECT_NEAR(result.out[at * c.d_v + d], out[static_cast<std::size_t>(d)],
                    relative * out_norm[static_cast<std::size_t>(d)]);
      }
    }
  }
}

TEST(Attention, EveryTableAndGroupingGivesTheBitsOfTheGenericOne) {
  for (const Case& c : kCases) {
    const Problem problem(c);
    const Result expected = problem.run(table_by_name("generic"), c.n_q);
    for (const Table* table : available_tables()) {
      for (const std::int64_t group : {c.n_q, std::int64_t{1}, std::int64_t{3}}) {
        const Result result = problem.run(*table, group);
        const std::string where = std::string(table->isa) + " d_k " + std::to_string(c.d_k) +
                                  " queries " + std::to_string(c.n_q) + " by " +
                                  std::to_string(group);
        EXPECT_TRUE(same_bits(result.maximum, expected.maximum)) << where;
        EXPECT_TRUE(same_bits(result.sum, expected.sum)) << where;
        EXPECT_TRUE(same_bits(result.out, expected.out)) << where;
      }
    }
  }
}

TEST(Attention, RangeCutAtAQuerysEndChangesNothing) {
  // What a query sees decides its result, not how far the call's range goes.
  const Case whole{4, 64, 64, 0, 400, 64, KvType::kF16, false};
  Problem problem(whole);
  for (auto& end : problem.last) end = 250;
  for (auto& begin : problem.first) begin = 3;
  for (const Attention& attention : all_attentions()) {
    const Result far = problem.run(attention.run, 4);
    problem.c.end = 250;
    const Result near = problem.run(attention.run, 4);
    problem.c.end = 400;
    EXPECT_TRUE(same_bits(far.out, near.out)) << attention.name;
    EXPECT_TRUE(same_bits(far.sum, near.sum)) << attention.name;
  }
}

TEST(Attention, MergedChunksAndSinkEqualOneSoftmax) {
  const Case low{2, 64, 48, 0, 512, 64, KvType::kF32, false};
  Case high = low;
  high.begin = 512;
  high.end = 800;
  Problem problem(high);  // its cache holds all 800 rows
  problem.first = {0, 600};
  problem.last = {800, 780};
  for (const Table* table : available_tables()) {
    for (const float sink : {-std::numeric_limits<float>::infinity(), -1.0F, 9.0F}) {
      problem.c = high;
      Result b = problem.run(*table, 2);
      problem.c.begin = low.begin;
      problem.c.end = low.end;
      Result a = problem.run(*table, 2);
      for (std::size_t i = 0; i < 2; ++i) {
        table->attention_merge(&a.maximum[i], &a.sum[i], &a.out[i * 48], &b.maximum[i], &b.sum[i],
                               &b.out[i * 48], 48);
        table->attention_finish(&a.maximum[i], &a.sum[i], &a.out[i * 48], 48, sink);
        double sum = std::exp(static_cast<double>(sink));
        std::vector<double> out(48, 0.0);
        for (auto t = static_cast<std::size_t>(problem.first[i]);
             t < static_cast<std::size_t>(problem.last[i]); ++t) {
          double score = 0.0;
          for (std::size_t d = 0; d < 64; ++d) {
            score += static_cast<double>(problem.q[i * 69 + d]) *
                     static_cast<double>(problem.cache.keys[t * 64 + d]);
          }
          const double p = std::exp(score / 8.0);
          sum += p;
          for (std::size_t d = 0; d < 48; ++d) {
            out[d] += p * static_cast<double>(problem.cache.values[t * 48 + d]);
          }
        }
        for (std::size_t d = 0; d < 48; ++d) {
          EXPECT_NEAR(a.out[i * 48 + d], out[d] / sum, 2e-6) << table->isa << " sink " << sink;
        }
      }
    }
  }
}

// A NaN in a query must come out as NaN, not pass for "nothing visible": wrong numbers that look
// right are the worst.
TEST(Attention, NanOfAQueryStaysNanAndStaysThere) {
  for (const Case& c : kCases) {
    Problem problem(c);
    const std::size_t broken = static_cast<std::size_t>(c.n_q - 1);
    problem.q[broken * static_cast<std::size_t>(c.d_k + 5)] = std::nanf("");
    const Table& table = table_by_name("generic");
    for (const Attention& attention : all_attentions()) {
      Result chunk = problem.run(attention.run, c.n_q);
      for (std::size_t i = 0; i < static_cast<std::size_t>(c.n_q); ++i) {
        if (problem.first[i] >= problem.last[i]) continue;
        const auto d_v = static_cast<std::size_t>(c.d_v);
        float maximum = -std::numeric_limits<float>::infinity();
        float sum = 0.0F;
        std::vector<float> out(d_v, 0.0F);
        table.attention_merge(&maximum, &sum, out.data(), &chunk.maximum[i], &chunk.sum[i],
                              chunk.out.data() + i * d_v, c.d_v);
        table.attention_finish(&maximum, &sum, out.data(), c.d_v, 0.5F);
        EXPECT_EQ(std::isnan(out[0]), i == broken) << attention.name << " query " << i;
      }
    }
  }
}

TEST(Attention, NothingVisibleGivesZeros) {
  for (const Table* table : available_tables()) {
    float maximum = -std::numeric_limits<float>::infinity();
    float sum = 0.0F;
    std::vector<float> out(20, 0.0F);
    table->attention_finish(&maximum, &sum, out.data(), 20, 0.5F);
    for (const float x : out) EXPECT_EQ(x, 0.0F);
  }
}

}  // namespace
}  // namespace moesaic::kernels::testing
