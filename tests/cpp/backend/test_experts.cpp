// The router's choice against a sort in double, its ties and bad values, and the weighted sum of
// experts.
#include <algorithm>
#include <limits>
#include <numeric>

#include "backend/rig.h"

namespace moesaic::backend::test {
namespace {

class Experts : public Conformance {};

struct Chosen {
  std::vector<int> experts;
  std::vector<double> weights;
};

// One row, by sorting.
Chosen route_in_double(const std::vector<float>& logits, const RouterSpec& spec,
                       const std::vector<float>& bias) {
  const std::size_t n = logits.size();
  std::vector<double> p(n);
  if (spec.function == RouterFunction::kSoftmax) {
    double sum = 0.0;
    const double top = *std::max_element(logits.begin(), logits.end());
    for (std::size_t e = 0; e < n; ++e) sum += p[e] = std::exp(logits[e] - top);
    for (double& value : p) value /= sum;
  } else if (spec.function == RouterFunction::kSigmoid) {
    for (std::size_t e = 0; e < n; ++e)
      p[e] = 1.0 / (1.0 + std::exp(-static_cast<double>(logits[e])));
  } else {
    p.assign(logits.begin(), logits.end());
  }
  std::vector<double> score = p;
  for (std::size_t e = 0; e < bias.size(); ++e) score[e] += bias[e];
  if (spec.n_groups > 1) {
    const std::size_t size = n / static_cast<std::size_t>(spec.n_groups);
    std::vector<double> groups;
    for (std::size_t g = 0; g < n; g += size) {
      std::vector<double> part(score.begin() + static_cast<std::ptrdiff_t>(g),
                               score.begin() + static_cast<std::ptrdiff_t>(g + size));
      std::sort(part.rbegin(), part.rend());
      groups.push_back(spec.group_score_top2 ? part[0] + part[1] : part[0]);
    }
    std::vector<std::size_t> order(groups.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return groups[a] > groups[b]; });
    for (std::size_t i = static_cast<std::size_t>(spec.n_groups_used); i < order.size(); ++i) {
      for (std::size_t e = 0; e < size; ++e) {
        score[order[i] * size + e] = -std::numeric_limits<double>::infinity();
      }
    }
  }
  std::vector<int> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return score[static_cast<std::size_t>(a)] > score[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(spec.n_active));
  Chosen chosen{order, {}};
  for (const int e : order) chosen.weights.push_back(p[static_cast<std::size_t>(e)]);
  if (spec.function == RouterFunction::kSoftmaxSelected) {
    const double top = *std::max_element(chosen.weights.begin(), chosen.weights.end());
    double sum = 0.0;
    for (double& w : chosen.weights) sum += w = std::exp(w - top);
    for (double& w : chosen.weights) w /= sum;
  }
  if (spec.normalize) {
    const double sum = std::max(std::accumulate(chosen.weights.begin(), chosen.weights.end(), 0.0),
                                static_cast<double>(spec.norm_floor));
    for (double& w : chosen.weights) w /= sum;
  }
  for (double& w : chosen.weights) w *= spec.scale;
  return chosen;
}

TEST_P(Experts, RouteAgreesWithSorting) {
  Rig rig(GetParam());
  struct Case {
    RouterFunction function;
    std::int64_t n_experts;
    std::int64_t n_active;
    std::int64_t n_groups;
    std::int64_t n_groups_used;
    bool top2;
    bool normalize;
    bool biased;
  };
  const Case cases[] = {
      {RouterFunction::kSigmoid, 384, 8, 1, 1, true, true, true},
      {RouterFunction::kSigmoid, 64, 6, 8, 3, true, true, true},
      {RouterFunction::kSoftmax, 64, 6, 8, 3, false, false, false},
      {RouterFunction::kSoftmax, 5, 3, 1, 1, true, true, false},
      {RouterFunction::kSoftmaxSelected, 32, 4, 1, 1, true, false, false},
      {RouterFunction::kSoftmaxSelected, 7, 7, 1, 1, true, false, true},
      {RouterFunction::kSoftmax, 1, 1, 1, 1, true, true, false},
  };
  const std::int64_t n = 67;
  for (const Case& c : cases) {
    RouterSpec spec;
    spec.function = c.function;
    spec.n_active = c.n_active;
    spec.n_groups = c.n_groups;
    spec.n_groups_used = c.n_groups_used;
    spec.group_score_top2 = c.top2;
    spec.normalize = c.normalize;
    spec.norm_floor = 6.103515625e-5F;
    spec.scale = 2.827F;
    const std::vector<float> bias =
        c.biased ? random_values(c.n_experts, 61, 0.3F) : std::vector<float>{};
    if (c.biased) spec.selection_bias = rig.vector(bias);
    const std::vector<float> logits = random_values(n * c.n_experts, 62, 2.0F);
    const Routing routing = rig.routing(n, c.n_active, c.n_experts);
    rig->route(rig.mat(n, c.n_experts, logits, 1), spec, routing);
    const std::vector<std::int32_t> experts = rig.experts_of(routing);
    const std::vector<float> weights = rig.weights_of(routing);
    for (std::int64_t r = 0; r < n; ++r) {
      const std::vector<float> row(logits.begin() + r * c.n_experts,
                                   logits.begin() + (r + 1) * c.n_experts);
      const Chosen want = route_in_double(row, spec, bias);
      for (std::int64_t s = 0; s < c.n_active; ++s) {
        const auto at = static_cast<std::size_t>(r * c.n_active + s);
        // Seeds were chosen such that no two scores differ by float rounding only.
        ASSERT_EQ(experts[at], want.experts[static_cast<std::size_t>(s)]) << "row " << r;
        const double weight = want.weights[static_cast<std::size_t>(s)];
        ASSERT_NEAR(weights[at], weight, 2e-6 * std::abs(weight) + 1e-9) << "row " << r;
      }
    }
  }
}

TEST_P(Experts, TiesGoToTheLowerExpertAndNanToNobody) {
  Rig rig(GetParam());
  const float nan = std::numeric_limits<float>::quiet_NaN();
  RouterSpec spec;
  spec.function = RouterFunction::kSoftmaxSelected;
  spec.n_active = 3;
  const Routing routing = rig.routing(3, 3, 6);
  rig->route(rig.mat(3, 6,
                     {1, 2, 2, 1, 2, 2,          //
                      nan, 0, nan, -5, -6, nan,  //
                      nan, nan, nan, nan, nan, nan}),
             spec, routing);
  const std::vector<std::int32_t> experts = rig.experts_of(routing);
  EXPECT_EQ(experts, (std::vector<std::int32_t>{1, 2, 4, 1, 3, 4, 0, 1, 2}));
  const std::vector<float> weights = rig.weights_of(routing);
  EXPECT_FLOAT_EQ(weights[0], 1.0F / 3.0F);
}

TEST_P(Experts, NormFloorHoldsTinySums) {
  Rig rig(GetParam());
  RouterSpec spec;
  spec.function = RouterFunction::kSigmoid;
  spec.n_active = 1;
  spec.normalize = true;
  spec.norm_floor = 6.103515625e-5F;
  const Routing routing = rig.routing(1, 1, 2);
  rig->route(rig.mat(1, 2, {-20.0F, -30.0F}), spec, routing);
  const double p = 1.0 / (1.0 + std::exp(20.0));
  EXPECT_NEAR(rig.weights_of(routing)[0], p / 6.103515625e-5, 1e-9);
}

TEST_P(Experts, CombineAddsInSlotOrder) {
  Rig rig(GetParam());
  Rig alone(GetParam().backend, 1);
  for (const std::int64_t n : {1, 50}) {
    const std::int64_t n_active = 3;
    const std::int64_t d = 1300;
    const std::vector<float> x = random_values(n * n_active * d, 71);
    const std::vector<float> base = random_values(n * d, 72);
    const std::vector<float> w = random_values(n * n_active, 73);
    for (const bool with_base : {false, true}) {
      std::vector<float> first;
      for (Rig* on : {&rig, &alone}) {
        const Routing routing = on->routing(n, n_active, 9);
        (*on)->upload(*routing.weights, 0, w.data(), w.size() * 4);
        const Mat from = on->mat(n, d, base, 4);
        const Mat out = on->mat(n, d);
        (*on)->combine(on->mat(n * n_active, d, x), routing, with_base ? &from : nullptr, out);
        const std::vector<float> got = on->get(out);
        if (on == &alone) {
          expect_same_bits(got, first, "threads");
          continue;
        }
        first = got;
        for (std::int64_t i = 0; i < n * d; ++i) {
          const std::int64_t r = i / d;
          double sum = with_base ? base[static_cast<std::size_t>(i)] : 0.0;
          double size = std::abs(sum);
          for (std::int64_t s = r * n_active; s < (r + 1) * n_active; ++s) {
            const double term = static_cast<double>(w[static_cast<std::size_t>(s)]) *
                                x[static_cast<std::size_t>(s * d + i % d)];
            sum += term;
            size += std::abs(term);
          }
          ASSERT_NEAR(got[static_cast<std::size_t>(i)], sum, size * 4e-7);
        }
        if (with_base) {  // in place
          (*on)->combine(on->mat(n * n_active, d, x), routing, &from, from);
          expect_same_bits(on->get(from), got, "in place");
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Experts, testing::ValuesIn(all_params()), param_name);

}  // namespace
}  // namespace moesaic::backend::test
