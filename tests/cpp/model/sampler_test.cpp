// The sampler against plain scalar code that sorts everything, against the chi-square of its own
// target distribution, and at its borders (NaN, bans, ties, ranges).
#include "model/run/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <vector>

#include "model/run/philox.h"

namespace moesaic::model {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> random_logits(std::size_t n, unsigned seed, float scale = 2.0F) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0F, scale);
  std::vector<float> logits(n);
  for (float& x : logits) x = normal(rng);
  return logits;
}

SamplerSpec plain() {
  SamplerSpec spec;
  spec.temperature = 1.0F;
  spec.top_k = 0;
  spec.top_p = 1.0F;
  spec.min_p = 0.0F;
  return spec;
}

// The distribution the chain describes, by full sorts and nothing clever: token -> probability.
std::map<int, double> reference(std::vector<float> logits, const SamplerSpec& spec,
                                const std::vector<std::int32_t>& history) {
  for (auto [token, bias] : spec.logit_bias) logits[token] += bias;
  std::map<int, int> counts;
  std::size_t n = history.size();
  std::size_t look = spec.penalty_last_n < 0 ? n : std::min<std::size_t>(n, spec.penalty_last_n);
  for (std::size_t i = n - look; i < n; ++i) ++counts[history[i]];
  for (auto [token, count] : counts) {
    float& l = logits[token];
    l = l <= 0 ? l * spec.repeat_penalty : l / spec.repeat_penalty;
    l -= static_cast<float>(count) * spec.frequency_penalty + spec.presence_penalty;
  }
  std::vector<std::pair<double, int>> items;  // (-logit, id): sorts to best first, lower id first
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] != -kInf) items.push_back({-double{logits[i]}, static_cast<int>(i)});
  }
  std::sort(items.begin(), items.end());
  auto probabilities = [&](double temperature) {
    std::vector<double> p;
    double sum = 0;
    for (auto& item : items) {
      p.push_back(std::exp((items[0].first - item.first) / temperature));
      sum += p.back();
    }
    for (double& x : p) x /= sum;
    return p;
  };
  if (spec.top_k > 0 && items.size() > static_cast<std::size_t>(spec.top_k)) {
    items.resize(spec.top_k);
  }
  if (spec.typical_p < 1) {
    auto p = probabilities(1);
    double entropy = 0;
    for (double x : p) entropy -= x > 0 ? x * std::log(x) : 0;
    std::vector<std::pair<double, std::size_t>> order;
    for (std::size_t i = 0; i < p.size(); ++i) {
      order.push_back({std::abs(-std::log(p[i]) - entropy), i});
    }
    std::sort(order.begin(), order.end());
    std::vector<std::pair<double, int>> kept;
    double mass = 0;
    for (auto& [score, i] : order) {
      kept.push_back(items[i]);
      mass += p[i];
      if (mass > spec.typical_p) break;
    }
    std::sort(kept.begin(), kept.end());
    items = kept;
  }
  if (spec.top_p < 1) {
    auto p = probabilities(1);
    double mass = 0;
    for (std::size_t i = 0; i < items.size(); ++i) {
      mass += p[i];
      if (mass >= spec.top_p) {
        items.resize(i + 1);
        break;
      }
    }
  }
  if (spec.min_p > 0) {
    auto p = probabilities(1);
    std::size_t n_kept = 1;
    while (n_kept < items.size() && p[n_kept] >= spec.min_p * p[0] * (1 - 1e-12)) ++n_kept;
    items.resize(n_kept);
  }
  auto p = probabilities(spec.temperature);
  std::map<int, double> result;
  for (std::size_t i = 0; i < items.size(); ++i) result[items[i].second] = p[i];
  return result;
}

struct Case {
  const char* name;
  SamplerSpec spec;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  auto add = [&](const char* name, auto change) {
    Case one{name, plain()};
    change(one.spec);
    all.push_back(one);
  };
  add("plain", [](SamplerSpec&) {});
  add("temperature", [](SamplerSpec& s) { s.temperature = 0.37F; });
  add("hot", [](SamplerSpec& s) { s.temperature = 3.0F; });
  add("top_k", [](SamplerSpec& s) { s.top_k = 7; });
  add("top_k_1", [](SamplerSpec& s) { s.top_k = 1; });
  add("top_p", [](SamplerSpec& s) { s.top_p = 0.8F; });
  add("top_p_0", [](SamplerSpec& s) { s.top_p = 0.0F; });
  add("min_p", [](SamplerSpec& s) { s.min_p = 0.1F; });
  add("typical", [](SamplerSpec& s) { s.typical_p = 0.6F; });
  add("typical_then_top_p", [](SamplerSpec& s) {
    s.typical_p = 0.9F;
    s.top_p = 0.7F;
  });
  add("repeat", [](SamplerSpec& s) { s.repeat_penalty = 1.7F; });
  add("presence_frequency", [](SamplerSpec& s) {
    s.presence_penalty = 0.9F;
    s.frequency_penalty = 0.4F;
    s.penalty_last_n = -1;
  });
  add("short_memory", [](SamplerSpec& s) {
    s.frequency_penalty = 1.0F;
    s.penalty_last_n = 2;
  });
  add("bias", [](SamplerSpec& s) { s.logit_bias = {{3, 2.5F}, {0, -kInf}, {9, -1.0F}}; });
  add("defaults", [](SamplerSpec& s) { s = SamplerSpec{}; });
  add("everything", [](SamplerSpec& s) {
    s.temperature = 0.7F;
    s.top_k = 30;
    s.typical_p = 0.95F;
    s.top_p = 0.9F;
    s.min_p = 0.02F;
    s.repeat_penalty = 1.2F;
    s.logit_bias = {{5, 1.0F}};
  });
  return all;
}

TEST(Sampler, DrawsWhatThePlainChainDescribes) {
  const std::vector<std::int32_t> history = {4, 4, 11, 2, 4, 7, 3, 3};
  for (const Case& one : cases()) {
    for (unsigned model_seed : {1U, 2U}) {
      const std::vector<float> logits = random_logits(40, model_seed);
      const std::map<int, double> expected = reference(logits, one.spec, history);
      const int n = 20000;
      std::map<int, int> counts;
      for (int i = 0; i < n; ++i) {
        SamplerSpec spec = one.spec;
        spec.seed = 99;
        std::vector<float> row = logits;
        ++counts[sample(row, spec, i, history).token];
      }
      double chi_square = 0.0;
      int bins = 0;
      double rest_expected = 0.0;
      double rest_seen = 0.0;
      for (auto [token, count] : counts) {
        ASSERT_TRUE(expected.count(token)) << one.name << ": drew excluded token " << token;
      }
      for (auto [token, p] : expected) {
        const double want = p * n;
        const double seen = counts.count(token) ? counts[token] : 0;
        if (want < 5) {
          rest_expected += want;
          rest_seen += seen;
        } else {
          chi_square += (seen - want) * (seen - want) / want;
          ++bins;
        }
      }
      if (rest_expected >= 5) {
        chi_square += (rest_seen - rest_expected) * (rest_seen - rest_expected) / rest_expected;
        ++bins;
      }
      const double freedom = std::max(1, bins - 1);
      // Mean + 5 standard deviations of the chi-square distribution; the seed is fixed.
      EXPECT_LT(chi_square, freedom + 5 * std::sqrt(2 * freedom)) << one.name << " " << model_seed;
    }
  }
}

TEST(Sampler, EveryKeptTokenOfTheReferenceCanBeDrawn) {
  const std::vector<float> logits = random_logits(2000, 5, 0.3F);  // flat: many candidates
  SamplerSpec spec = plain();
  spec.top_p = 0.5F;
  const auto expected = reference(logits, spec, {});
  std::map<int, int> counts;
  for (int i = 0; i < 30000; ++i) {
    std::vector<float> row = logits;
    ++counts[sample(row, spec, i, {}).token];
  }
  for (auto [token, count] : counts) EXPECT_TRUE(expected.count(token));
  EXPECT_GT(counts.size(), expected.size() * 9 / 10);
}

TEST(Sampler, GreedyTakesTheLowestIdAmongEquals) {
  SamplerSpec spec = plain();
  spec.temperature = 0.0F;
  std::vector<float> logits = {1.0F, 3.0F, 2.0F, 3.0F};
  EXPECT_EQ(sample(logits, spec, 0, {}).token, 1);
  std::vector<float> low = {-kInf, -3.0F, -3.0F};
  EXPECT_EQ(sample(low, spec, 0, {}).token, 1);
}

TEST(Sampler, TheSameSeedAndPositionGiveTheSameToken) {
  const std::vector<float> logits = random_logits(1000, 8);
  SamplerSpec spec;
  int changed = 0;
  std::int32_t previous = -1;
  for (int i = 0; i < 100; ++i) {
    spec.seed = 7;
    std::vector<float> a = logits;
    std::vector<float> b = logits;
    const std::int32_t token = sample(a, spec, i, {}).token;
    EXPECT_EQ(token, sample(b, spec, i, {}).token);
    changed += token != previous ? 1 : 0;
    previous = token;
  }
  EXPECT_GT(changed, 30);
}

TEST(Sampler, LogprobsAreOfTheModelsDistribution) {
  const std::vector<float> logits = random_logits(50, 3);
  SamplerSpec spec = plain();
  spec.temperature = 0.0F;
  spec.n_logprobs = 4;
  spec.logit_bias = {{7, 100.0F}};  // decides the token, not its log-probability
  std::vector<float> row = logits;
  const Sampled sampled = sample(row, spec, 0, {});
  EXPECT_EQ(sampled.token, 7);
  double sum = 0.0;
  for (float l : logits) sum += std::exp(double{l});
  EXPECT_NEAR(sampled.logprob, logits[7] - std::log(sum), 1e-5);
  ASSERT_EQ(sampled.top_ids.size(), 4U);
  ASSERT_EQ(sampled.top_logprobs.size(), 4U);
  const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
  EXPECT_EQ(sampled.top_ids[0], best);
  for (int i = 1; i < 4; ++i) {
    EXPECT_GE(sampled.top_logprobs[i - 1], sampled.top_logprobs[i]);
    EXPECT_NEAR(sampled.top_logprobs[i], logits[sampled.top_ids[i]] - std::log(sum), 1e-5);
  }
}

TEST(Sampler, ScoreTargetIsLogSoftmax) {
  std::vector<float> logits = random_logits(300, 4, 20.0F);
  double sum = 0.0;
  for (float l : logits) sum += std::exp(double{l});
  const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
  for (std::int32_t token : {0, 17, 299, static_cast<std::int32_t>(best)}) {
    const TargetResult got = score_target(logits, token);
    EXPECT_NEAR(got.logprob, double{logits[token]} - std::log(sum), 1e-9);
    EXPECT_EQ(got.is_greedy, token == best);
  }
  logits = {2.0F, 2.0F};
  EXPECT_TRUE(score_target(logits, 0).is_greedy);
  EXPECT_FALSE(score_target(logits, 1).is_greedy);
  EXPECT_THROW(score_target(logits, 2), ArgumentError);
}

TEST(Sampler, RefusesNotANumber) {
  SamplerSpec spec;
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), kInf}) {
    std::vector<float> logits = {0.0F, bad, 1.0F};
    EXPECT_THROW(sample(logits, spec, 3, {}), BackendError);
    EXPECT_THROW(score_target(logits, 0), BackendError);
  }
}

TEST(Sampler, RefusesARowOfBansOnly) {
  for (float temperature : {0.0F, 1.0F}) {
    SamplerSpec spec = plain();
    spec.temperature = temperature;
    std::vector<float> logits = {-kInf, -kInf};
    EXPECT_THROW(sample(logits, spec, 0, {}), ArgumentError);
    spec.logit_bias = {{0, -kInf}, {1, -kInf}};
    std::vector<float> banned = {1.0F, 2.0F};
    EXPECT_THROW(sample(banned, spec, 0, {}), ArgumentError);
  }
}

TEST(Sampler, TinyTemperatureIsGreedyAndHugeIsUniform) {
  const std::vector<float> logits = random_logits(20, 6);
  const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
  SamplerSpec spec = plain();
  std::map<int, int> counts;
  for (int i = 0; i < 5000; ++i) {
    spec.temperature = 1e-30F;
    std::vector<float> row = logits;
    EXPECT_EQ(sample(row, spec, i, {}).token, best);
    spec.temperature = 1e6F;
    row = logits;
    ++counts[sample(row, spec, i, {}).token];
  }
  EXPECT_EQ(counts.size(), 20U);
  for (auto [token, count] : counts) EXPECT_NEAR(count, 250, 5 * 16);
}

TEST(Sampler, ValidatesEveryField) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  validate(SamplerSpec{}, 10);
  auto refused = [](auto change) {
    SamplerSpec spec;
    change(spec);
    try {
      validate(spec, 10);
    } catch (const ArgumentError&) {
      return true;
    }
    return false;
  };
  for (float bad : {nan, kInf, -kInf, -0.5F}) {
    EXPECT_TRUE(refused([&](SamplerSpec& s) { s.temperature = bad; })) << bad;
    EXPECT_TRUE(refused([&](SamplerSpec& s) { s.top_p = bad; })) << bad;
    EXPECT_TRUE(refused([&](SamplerSpec& s) { s.min_p = bad; })) << bad;
    EXPECT_TRUE(refused([&](SamplerSpec& s) { s.typical_p = bad; })) << bad;
    EXPECT_TRUE(refused([&](SamplerSpec& s) { s.repeat_penalty = bad; })) << bad;
  }
  for (float bad : {nan, kInf, -kInf}) {
    EXPECT_TRUE(refused([&](SamplerSpec& s) { s.presence_penalty = bad; })) << bad;
    EXPECT_TRUE(refused([&](SamplerSpec& s) { s.frequency_penalty = bad; })) << bad;
  }
  for (float bad : {nan, kInf}) {
    EXPECT_TRUE(refused([&](SamplerSpec& s) { s.logit_bias = {{1, bad}}; })) << bad;
  }
  EXPECT_TRUE(refused([](SamplerSpec& s) { s.top_p = 1.5F; }));
  EXPECT_TRUE(refused([](SamplerSpec& s) { s.min_p = 1.5F; }));
  EXPECT_TRUE(refused([](SamplerSpec& s) { s.penalty_last_n = -2; }));
  EXPECT_TRUE(refused([](SamplerSpec& s) { s.n_logprobs = 11; }));
  EXPECT_TRUE(refused([](SamplerSpec& s) { s.logit_bias = {{10, 0.0F}}; }));
  EXPECT_TRUE(refused([](SamplerSpec& s) { s.logit_bias = {{-1, 0.0F}}; }));
}

TEST(Philox, GivesTheVectorsOfTheRandom123Library) {
  EXPECT_EQ(philox_4x32_10({0, 0, 0, 0}, {0, 0}),
            (PhiloxCounter{0x6627e8d5U, 0xe169c58dU, 0xbc57ac4cU, 0x9b00dbd8U}));
  const std::uint32_t ones = 0xffffffffU;
  EXPECT_EQ(philox_4x32_10({ones, ones, ones, ones}, {ones, ones}),
            (PhiloxCounter{0x408f276dU, 0x41c83b0eU, 0xa20bc7c6U, 0x6d5451fdU}));
  EXPECT_EQ(philox_4x32_10({0x243f6a88U, 0x85a308d3U, 0x13198a2eU, 0x03707344U},
                           {0xa4093822U, 0x299f31d0U}),
            (PhiloxCounter{0xd16cfe09U, 0x94fdccebU, 0x5001e420U, 0x24126ea1U}));
}

TEST(Philox, IsUniformOverPositionsTokensAndSeeds) {
  const auto expect_uniform = [](const char* over, auto value) {
    std::vector<int> bins(64);
    const int n = 64000;
    for (int i = 0; i < n; ++i) {
      const double u = value(i);
      ASSERT_GT(u, 0.0);
      ASSERT_LT(u, 1.0);
      ++bins[static_cast<std::size_t>(u * 64)];
    }
    double chi_square = 0.0;
    for (int count : bins) chi_square += (count - 1000.0) * (count - 1000.0) / 1000.0;
    EXPECT_LT(chi_square, 63 + 5 * std::sqrt(2.0 * 63)) << over;
  };
  expect_uniform("positions",
                 [](int i) { return uniform_at(1234, static_cast<std::uint64_t>(i), 5); });
  expect_uniform("tokens", [](int i) { return uniform_at(1234, 9, i); });
  expect_uniform("seeds", [](int i) { return uniform_at(static_cast<std::uint64_t>(i), 9, 5); });
  EXPECT_NE(uniform_at(1, 2, 3), uniform_at(1, 3, 2));
  EXPECT_NE(uniform_at(1, 2, 3), uniform_at(2, 1, 3));
  EXPECT_NE(uniform_at(1, std::uint64_t{1} << 32U, 3), uniform_at(1, 0, 3));
}

// Rows that differ by rounding give other tokens about as rarely as the distributions differ:
// what prefix reuse, other numerics and other machines rely on.
TEST(Sampler, DrawsOfNearlyEqualRowsDifferAboutAsRarelyAsTheDistributions) {
  SamplerSpec spec;  // the defaults: top_k 40, top_p 0.95, min_p 0.05, temperature 0.8
  std::mt19937 random(11);
  std::normal_distribution<float> rounding(0.0F, 0.02F);
  int differ = 0;
  double variation = 0.0;
  const int n = 4000;
  for (int i = 0; i < n; ++i) {
    const std::vector<float> row = random_logits(300, static_cast<unsigned>(i), 1.5F);
    std::vector<float> other = row;
    for (float& logit : other) logit += rounding(random);
    const std::map<int, double> p = reference(row, spec, {});
    const std::map<int, double> q = reference(other, spec, {});
    for (auto [token, mass] : p) {
      variation += std::max(0.0, mass - (q.count(token) ? q.at(token) : 0.0));
    }
    spec.seed = static_cast<std::uint64_t>(i);
    std::vector<float> a = row;
    std::vector<float> b = other;
    differ += sample(a, spec, i, {}).token != sample(b, spec, i, {}).token ? 1 : 0;
  }
  // No coupling differs more rarely than the total variation; this one at most twice as often.
  EXPECT_GT(variation, 10.0);
  EXPECT_LT(differ, 2.0 * variation + 5.0 * std::sqrt(2.0 * variation)) << variation;
}

// A token that drops out, or comes in, moves no draw but its own.
TEST(Sampler, ABannedTokenMovesOnlyItsOwnDraws) {
  const std::vector<float> row = random_logits(50, 3, 1.0F);
  SamplerSpec spec = plain();
  int banned_drawn = 0;
  for (int i = 0; i < 2000; ++i) {
    std::vector<float> a = row;
    std::vector<float> b = row;
    b[7] = -kInf;
    const std::int32_t with = sample(a, spec, i, {}).token;
    const std::int32_t without = sample(b, spec, i, {}).token;
    banned_drawn += with == 7 ? 1 : 0;
    if (with != 7) {
      EXPECT_EQ(with, without) << i;
    }
  }
  EXPECT_GT(banned_drawn, 0);
}

}  // namespace
}  // namespace moesaic::model
