// Row operations against double loops, in place where that is allowed, and their bits for any team.
#include <algorithm>

#include "backend/rig.h"

namespace moesaic::backend::test {
namespace {

using quant::Qtype;

class Rows : public Conformance {};

struct Shape {
  std::int64_t n;
  std::int64_t cols;
};
// The last ones are large enough for the team to be woken.
constexpr Shape kShapes[] = {{1, 1}, {3, 7}, {5, 129}, {1, 7168}, {150, 1027}};

TEST_P(Rows, Add) {
  Rig rig(GetParam());
  for (const Shape& shape : kShapes) {
    const std::vector<float> x = random_values(shape.n * shape.cols, 1);
    const std::vector<float> y = random_values(shape.n * shape.cols, 2);
    const Mat a = rig.mat(shape.n, shape.cols, x, 3);
    rig->add(a, rig.mat(shape.n, shape.cols, y), a);
    const std::vector<float> got = rig.get(a);
    for (std::size_t i = 0; i < x.size(); ++i) ASSERT_EQ(got[i], x[i] + y[i]);
  }
}

TEST_P(Rows, CopyAndGather) {
  Rig rig(GetParam());
  for (const Shape& shape : kShapes) {
    const std::vector<float> x = random_values(shape.n * shape.cols, 3);
    const Mat from = rig.mat(shape.n, shape.cols, x, 2);
    const Mat to = rig.mat(shape.n, shape.cols, 1);
    rig->copy(from, to);
    expect_same_bits(rig.get(to), x, "copy");
    std::vector<std::int32_t> rows;
    for (std::int64_t r = shape.n; r-- > 0;) rows.push_back(static_cast<std::int32_t>(r));
    rows.push_back(0);
    const Mat picked = rig.mat(shape.n + 1, shape.cols);
    rig->gather_rows(from, rows, picked);
    const std::vector<float> got = rig.get(picked);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      for (std::int64_t c = 0; c < shape.cols; ++c) {
        ASSERT_EQ(got[i * static_cast<std::size_t>(shape.cols) + static_cast<std::size_t>(c)],
                  x[static_cast<std::size_t>(rows[i] * shape.cols + c)]);
      }
    }
  }
}

TEST_P(Rows, RmsNorm) {
  Rig rig(GetParam());
  Rig alone(GetParam().backend, 1);
  for (const Shape& shape : kShapes) {
    for (const bool weighted : {false, true}) {
      const std::vector<float> x = random_values(shape.n * shape.cols, 4);
      // Norm weights of any float type are taken.
      const std::vector<float> raw = random_values(shape.cols, 5);
      const std::vector<float> w = through_type(Qtype::kBF16, shape.cols, raw);
      std::vector<float> first;
      for (Rig* on : {&rig, &alone}) {
        const Weight* weight = weighted ? on->weight(Qtype::kBF16, 1, 1, shape.cols, raw) : nullptr;
        const Mat m = on->mat(shape.n, shape.cols, x, 5);
        (*on)->rms_norm(m, weight, 1e-5F, m);
        const std::vector<float> got = on->get(m);
        if (on == &alone) {
          expect_same_bits(got, first, "threads");
          continue;
        }
        first = got;
        for (std::int64_t r = 0; r < shape.n; ++r) {
          double squares = 0.0;
          for (std::int64_t c = 0; c < shape.cols; ++c) {
            const double value = x[static_cast<std::size_t>(r * shape.cols + c)];
            squares += value * value;
          }
          const double scale = 1.0 / std::sqrt(squares / static_cast<double>(shape.cols) +
                                               static_cast<double>(1e-5F));
          for (std::int64_t c = 0; c < shape.cols; ++c) {
            const auto at = static_cast<std::size_t>(r * shape.cols + c);
            const double want = x[at] * scale * (weighted ? w[static_cast<std::size_t>(c)] : 1.0F);
            ASSERT_NEAR(got[at], want, 1e-6 * std::abs(want) + 1e-12);
          }
        }
      }
    }
  }
}

TEST_P(Rows, Rope) {
  Rig rig(GetParam());
  struct Case {
    std::int64_t n;
    std::int64_t n_heads;
    std::int64_t d_head;
    std::int64_t begin;
    std::int64_t n_rot;
    bool interleaved;
    double magnitude;
  };
  const Case cases[] = {{1, 1, 2, 0, 2, true, 1.0},
                        {9, 5, 24, 16, 8, true, 1.0},
                        {9, 3, 64, 0, 64, false, 1.25},
                        {120, 16, 80, 0, 40, false, 1.0},
                        {200, 16, 96, 32, 64, true, 0.7}};
  for (const Case& c : cases) {
    RopeSpec spec;
    spec.n_rot = c.n_rot;
    spec.interleaved = c.interleaved;
    spec.magnitude = c.magnitude;
    for (std::int64_t i = 0; i < c.n_rot / 2; ++i) {
      spec.inverse_freqs.push_back(
          std::pow(50000.0, -2.0 * static_cast<double>(i) / static_cast<double>(c.n_rot)));
    }
    const std::int64_t cols = c.n_heads * c.d_head;
    const std::vector<float> x = random_values(c.n * cols, 6);
    std::vector<std::int32_t> positions;
    for (std::int64_t r = 0; r < c.n; ++r) {
      positions.push_back(static_cast<std::int32_t>(r * r * 131 % 262144));
    }
    // Twice, other positions between: the kept tables must not be mixed up.
    for (int round = 0; round < 2; ++round) {
      const Mat m = rig.mat(c.n, cols, x);
      rig->rope(m, c.d_head, c.begin, spec, positions);
      const std::vector<float> got = rig.get(m);
      for (std::int64_t i = 0; i < c.n * c.n_heads; ++i) {
        const float* before = x.data() + i * c.d_head;
        const float* after = got.data() + i * c.d_head;
        const double position = positions[static_cast<std::size_t>(i / c.n_heads)];
        for (std::int64_t d = 0; d < c.d_head; ++d) {
          if (d < c.begin || d >= c.begin + c.n_rot) {
            ASSERT_EQ(after[d], before[d]);
          }
        }
        for (std::int64_t p = 0; p < c.n_rot / 2; ++p) {
          const std::int64_t a = c.begin + (c.interleaved ? 2 * p : p);
          const std::int64_t b = c.begin + (c.interleaved ? 2 * p + 1 : p + c.n_rot / 2);
          const double angle = position * spec.inverse_freqs[static_cast<std::size_t>(p)];
          const double cos = std::cos(angle) * c.magnitude;
          const double sin = std::sin(angle) * c.magnitude;
          const double size = 3e-7 * (std::abs(before[a]) + std::abs(before[b]));
          ASSERT_NEAR(after[a], before[a] * cos - before[b] * sin, size);
          ASSERT_NEAR(after[b], before[a] * sin + before[b] * cos, size);
        }
      }
      std::vector<std::int32_t> others = positions;
      for (std::int32_t& position : others) position += 1;
      rig->rope(rig.mat(c.n, cols, x), c.d_head, c.begin, spec, others);
      others[0] += 1;
      rig->rope(rig.mat(c.n, cols, x), c.d_head, c.begin, spec, others);
    }
  }
}

TEST_P(Rows, GatedActivation) {
  Rig rig(GetParam());
  Rig alone(GetParam().backend, 1);
  for (const Shape& shape : kShapes) {
    for (const Activation kind : {Activation::kSilu, Activation::kSwigluOai}) {
      ActivationSpec spec;
      spec.kind = kind;
      const std::vector<float> g = random_values(shape.n * shape.cols, 7, 5.0F);
      const std::vector<float> u = random_values(shape.n * shape.cols, 8, 5.0F);
      std::vector<float> first;
      for (Rig* on : {&rig, &alone}) {
        const Mat gate = on->mat(shape.n, shape.cols, g, 1);
        (*on)->gated_activation(gate, on->mat(shape.n, shape.cols, u), spec, gate);
        const std::vector<float> got = on->get(gate);
        if (on == &alone) {
          expect_same_bits(got, first, "threads");
          continue;
        }
        first = got;
        for (std::size_t i = 0; i < g.size(); ++i) {
          double want = 0.0;
          if (kind == Activation::kSilu) {
            want = static_cast<double>(g[i]) / (1.0 + std::exp(-static_cast<double>(g[i]))) * u[i];
          } else {
            const double a = std::min(g[i], spec.limit);
            const double b = std::clamp(u[i], -spec.limit, spec.limit);
            want = a / (1.0 + std::exp(-static_cast<double>(spec.alpha) * a)) * (b + 1.0);
          }
          ASSERT_NEAR(got[i], want, 2e-6 * std::abs(want) + 1e-7) << g[i] << " " << u[i];
        }
      }
    }
  }
}

TEST_P(Rows, EmbedDecodesRows) {
  Rig rig(GetParam());
  for (const Qtype type : {Qtype::kF32, Qtype::kQ8_0, Qtype::kQ6_K}) {
    const std::int64_t vocab = 50;
    const std::int64_t cols = 512;
    const std::vector<float> values = random_values(vocab * cols, 9);
    const std::vector<float> exact = through_type(type, cols, values);
    const Weight* table = rig.weight(type, 1, vocab, cols, values);
    std::vector<std::int32_t> tokens = {49, 0, 0, 7};
    for (std::int32_t i = 0; i < 90; ++i) tokens.push_back(i * 7 % 50);
    const Mat out = rig.mat(static_cast<std::int64_t>(tokens.size()), cols, 1);
    rig->embed(*table, tokens, out);
    const std::vector<float> got = rig.get(out);
    for (std::size_t r = 0; r < tokens.size(); ++r) {
      for (std::size_t c = 0; c < 512; ++c) {
        ASSERT_EQ(got[r * 512 + c], exact[static_cast<std::size_t>(tokens[r]) * 512 + c]);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Rows, testing::ValuesIn(all_params()), param_name);

}  // namespace
}  // namespace moesaic::backend::test
