// Attention of every table against scalar double code, over head sizes, windows, page sizes and
// cache types; bit equality between tables and between ways to group the queries.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "kernels/random_weights.h"
#include "quant/q8_0.h"

namespace moesaic::kernels::testing {
namespace {

struct Case {
  std::int64_t n_q;
  std::int64_t d_k;
  std::int64_t d_v;
  std::int64_t begin;
  std::int64_t end;
  std::int64_t page_tokens;
  KvType type;
  bool shared;  // values are the first d_v columns of the keys (MLA)
};

struct Cache {
  Cache(const Case& c, std::mt19937& rng) {
    const std::int64_t n_rows = c.end;
    const auto bytes_of = [&](std::int64_t n) {
      const auto count = static_cast<std::size_t>(n);
      return c.type == KvType::kQ8_0 ? count / 32 * 34 : count * (c.type == KvType::kF16 ? 2 : 4);
    };
    // Rows need not be dense, but are as aligned as their type.
    k_row_bytes = bytes_of(c.d_k) + (c.type == KvType::kF32 ? 8 : 6);
    v_row_bytes = c.shared ? k_row_bytes : bytes_of(c.d_v);
    keys = random_floats(static_cast<std::size_t>(n_rows * c.d_k), rng);
    values = random_floats(static_cast<std::size_t>(n_rows * c.d_v), rng);
    const auto n_pages = static_cast<std::size_t>((n_rows + c.page_tokens - 1) / c.page_tokens);
    const auto tokens = static_cast<std::size_t>(c.page_tokens);
    for (std::size_t p = 0; p < n_pages; ++p) {
      k_data.emplace_back(tokens * k_row_bytes);
      v_data.emplace_back(tokens * v_row_bytes);
    }
    // Stores n floats and gives them the values that the cache's type holds.
    const auto put = [&](std::uint8_t* at, float* x, std::int64_t n) {
      if (c.type == KvType::kQ8_0) {
        quant::encode_q8_0(x, n / 32, at);
        quant::decode_q8_0(at, n / 32, x);
        return;
      }
      for (std::int64_t i = 0; i < n; ++i) {
        if (c.type == KvType::kF16) {
          const std::uint16_t half = quant::f32_to_f16(x[i]);
          x[i] = quant::f16_to_f32(half);
          std::memcpy(at + 2 * i, &half, 2);
        } else {
          std::memcpy(at + 4 * i, x + i, 4);
        }
      }
    };
    for (std::int64_t t = 0; t < n_rows; ++t) {
      const auto page = static_cast<std::size_t>(t / c.page_tokens);
      const auto row = static_cast<std::size_t>(t % c.page_tokens);
      float* key = keys.data() + t * c.d_k;
      float* value = values.data() + t * c.d_v;
      put(k_data[page].data() + row * k_row_bytes, key, c.d_k);
      if (c.shared) {
        std::copy_n(key, c.d_v, value);
      } else {
        put(v_data[page].data() + row * v_row_bytes, value, c.d_v);
      }
    }
    for (std::size_t p = 0; p < n_pages; ++p) {
      k_pages.push_back(k_data[p].data());
      v_pages.push_back(c.shared ? k_data[p].data() : v_data[p].data());
    }
  }
  std::size_t k_row_bytes;
  std::size_t v_row_bytes;
  std::vector<float> keys;    // (end, d_k), as the cache's type holds them
  std::vector<float> values;  // (end, d_v)
  std::vector<std::vector<std::uint8_t>> k_data;
  std::vector<std::vector<std::uint8_t>> v_data;
  std::vector<const std::uint8_t*> k_pages;
  std::vector<const std::uint8_t*> v_pages;
};

struct Result {
  std::vector<float> maximum;
  std::vector<float> sum;
  std::vector<float> out;  // (n_q, d_v)
};

struct Problem {
  explicit Problem(const Case& given) : c(given), rng(11), cache(given, rng) {
    q = random_floats(static_cast<std::size_t>(c.n_q * (c.d_k + 5)), rng);
    for (std::int64_t i = 0; i < c.n_q; ++i) {
      // A causal staircase; the windows of some queries begin late or hold nothing at all.
      last.push_back(std::min(c.end, c.begin + 1 + (c.end - c.begin) * (i + 1) / c.n_q));
      first.push_back(i % 3 == 1 ? std::max(c.begin, last.back() - 20) : 0);
      if (i == 4) first.back() = last.back();
    }
  }

  Result run(const Table& table, std::int64_t group) const {
    Result result;
    const auto n_q = static_cast<std::size_t>(c.n_q);
    result.maximum.assign(n_q, 7.0F);
    result.sum.assign(n_q, 7.0F);
    result.out.assign(n_q * static_cast<std::size_t>(c.d_v), 7.0F);
    Aligned scratch(attention_scratch_bytes(c.d_k, c.d_v));
    for (std::int64_t i = 0; i < c.n_q; i += group) {
      const AttentionJob job{q.data() + i * (c.d_k + 5),
                             c.d_k + 5,
                             std::min(group, c.n_q - i),
                             c.d_k,
                             c.d_v,
                             scale(),
                             c.type,
                             cache.k_pages.data(),
                             cache.v_pages.data(),
                             cache.k_row_bytes,
                             cache.v_row_bytes,
                             c.page_tokens,
                             c.begin,
                             c.end,
                             first.data() + i,
                             last.data() + i,
                             result.maximum.data() + i,
                             result.sum.data() + i,
                             result.out.data() + i * c.d_v,
                             c.d_v,
                             scratch.data()};
      table.attention(job);
    }
    return result;
  }
  float scale() const { return 1.0F / std::sqrt(static_cast<float>(c.d_k)); }

  Case c;
  std::mt19937 rng;
  Cache cache;
  std::vector<float> q;  // (n_q, d_k), rows d_k + 5 apart
  std::vector<std::int64_t> first;
  std::vector<std::int64_t> last;
};

constexpr Case kCases[] = {
    {1, 64, 64, 0, 1, 64, KvType::kF16, false},
    {1, 128, 128, 0, 512, 64, KvType::kF16, false},
    {3, 24, 24, 0, 33, 16, KvType::kF32, false},
    {5, 40, 80, 512, 700, 64, KvType::kF16, false},
    {9, 80, 40, 1024, 1025, 1, KvType::kF32, false},
    {16, 576, 512, 0, 100, 32, KvType::kF16, true},
    {17, 37, 19, 512, 1024, 512, KvType::kF16, false},
    {70, 64, 64, 0, 70, 64, KvType::kF16, false},
    {8, 128, 128, 600, 900, 128, KvType::kF16, false},
    {6, 192, 128, 530, 531, 64, KvType::kF32, false},
    {16, 576, 512, 0, 100, 32, KvType::kQ8_0, true},
    {5, 64, 96, 512, 700, 64, KvType::kQ8_0, false},
    {1, 128, 128, 0, 512, 128, KvType::kQ8_0, false},
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

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
  for (const Table* table : available_tables()) {
    const Result far = problem.run(*table, 4);
    problem.c.end = 250;
    const Result near = problem.run(*table, 4);
    problem.c.end = 400;
    EXPECT_TRUE(same_bits(far.out, near.out)) << table->isa;
    EXPECT_TRUE(same_bits(far.sum, near.sum)) << table->isa;
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
    for (const Table* table : available_tables()) {
      Result chunk = problem.run(*table, c.n_q);
      for (std::size_t i = 0; i < static_cast<std::size_t>(c.n_q); ++i) {
        if (problem.first[i] >= problem.last[i]) continue;
        const auto d_v = static_cast<std::size_t>(c.d_v);
        float maximum = -std::numeric_limits<float>::infinity();
        float sum = 0.0F;
        std::vector<float> out(d_v, 0.0F);
        table->attention_merge(&maximum, &sum, out.data(), &chunk.maximum[i], &chunk.sum[i],
                               chunk.out.data() + i * d_v, c.d_v);
        table->attention_finish(&maximum, &sum, out.data(), c.d_v, 0.5F);
        EXPECT_EQ(std::isnan(out[0]), i == broken) << table->isa << " query " << i;
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
