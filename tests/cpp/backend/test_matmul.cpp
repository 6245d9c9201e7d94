// matmul, matmul_heads and grouped_matmul against double loops over the decoded weights. Tolerance:
// where activations are quantised to int8, each may be off by half a step of its block, so an
// output by at most sum |w| * step / 2; float sums add their own rounding.
#include <algorithm>

#include "backend/rig.h"

namespace moesaic::backend::test {
namespace {

using quant::Qtype;

// A weight with its exact values.
struct Known {
  const Weight* weight;
  std::vector<float> values;  // (n_experts, rows, cols)
  std::int64_t rows;
  std::int64_t cols;
};

Known known_weight(Rig& rig, Qtype type, std::int64_t n_experts, std::int64_t rows,
                   std::int64_t cols, unsigned seed) {
  const std::vector<float> values = random_values(n_experts * rows * cols, seed);
  return {rig.weight(type, n_experts, rows, cols, values), through_type(type, cols, values), rows,
          cols};
}

// Elements that share a scale when activations are quantised for a type: its blocks, at most 256.
std::int64_t activation_block(Qtype type) {
  return quant::traits(type).block_elems == 256 ? 256 : 32;
}

void expect_dot(float got, const float* w, const float* x, std::int64_t k, double bias, Qtype type,
                const std::string& what) {
  double sum = bias;
  double size = std::abs(bias);
  double off = 0.0;
  for (std::int64_t i = 0; i < k; ++i) {
    sum += static_cast<double>(w[i]) * static_cast<double>(x[i]);
    size += std::abs(static_cast<double>(w[i]) * static_cast<double>(x[i]));
  }
  if (!is_float(type)) {
    const std::int64_t block = activation_block(type);
    for (std::int64_t begin = 0; begin < k; begin += block) {
      double largest = 0.0;
      double weights = 0.0;
      for (std::int64_t i = begin; i < std::min(k, begin + block); ++i) {
        largest = std::max(largest, std::abs(static_cast<double>(x[i])));
        weights += std::abs(static_cast<double>(w[i]));
      }
      off += weights * largest / 127.0 * 0.51;
    }
  }
  // Float rounding: at most one unit per addition, in lanes far fewer.
  const double tolerance = off + size * 1.2e-7 * (8.0 + static_cast<double>(k) / 16.0);
  ASSERT_NEAR(got, sum, tolerance) << what;
}

struct Shape {
  std::int64_t n;
  std::int64_t rows;
  std::int64_t cols;
};

class Matmul : public Conformance {};

TEST_P(Matmul, AgreesWithDoubleLoops) {
  Rig rig(GetParam());
  const Shape shapes[] = {{1, 1, 256},   {1, 37, 512},   {3, 129, 256}, {17, 16, 768},
                          {70, 33, 512}, {131, 65, 256}, {300, 48, 256}};
  for (const Qtype type : {Qtype::kF32, Qtype::kF16, Qtype::kBF16, Qtype::kQ8_0, Qtype::kQ4_0,
                           Qtype::kQ4_K, Qtype::kQ6_K}) {
    for (const Shape& shape : shapes) {
      const Known w = known_weight(rig, type, 1, shape.rows, shape.cols, 1);
      const std::vector<float> x = random_values(shape.n * shape.cols, 2);
      const std::vector<float> bias = random_values(shape.rows, 3);
      const Mat in = rig.mat(shape.n, shape.cols, x, 5);
      const Mat out = rig.mat(shape.n, shape.rows, 3);
      const MatmulTarget target{w.weight, rig.vector(bias), out};
      rig->matmul(in, {&target, 1});
      const std::vector<float> got = rig.get(out);
      for (std::int64_t c = 0; c < shape.n; ++c) {
        for (std::int64_t r = 0; r < shape.rows; ++r) {
          expect_dot(got[static_cast<std::size_t>(c * shape.rows + r)],
                     w.values.data() + r * shape.cols, x.data() + c * shape.cols, shape.cols,
                     bias[static_cast<std::size_t>(r)], type,
                     std::string(quant::traits(type).name) + " row " + std::to_string(c) + " out " +
                         std::to_string(r));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// Any columns that K allows for float weights: no block to be a multiple of.
TEST_P(Matmul, TakesOddColumnsOfFloatWeights) {
  Rig rig(GetParam());
  for (const Qtype type : {Qtype::kF32, Qtype::kF16, Qtype::kBF16}) {
    for (const std::int64_t cols : {1, 7, 33, 129}) {
      const Known w = known_weight(rig, type, 1, 19, cols, 4);
      const std::vector<float> x = random_values(5 * cols, 5);
      const Mat out = rig.mat(5, 19);
      const MatmulTarget target{w.weight, nullptr, out};
      rig->matmul(rig.mat(5, cols, x), {&target, 1});
      const std::vector<float> got = rig.get(out);
      for (std::int64_t i = 0; i < 5 * 19; ++i) {
        expect_dot(got[static_cast<std::size_t>(i)], w.values.data() + i % 19 * cols,
                   x.data() + i / 19 * cols, cols, 0.0, type, "odd columns");
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Several targets of different types at once, one thread and this team, rows alone and together:
// the same bits.
TEST_P(Matmul, BitsDependOnNothingElse) {
  Rig rig(GetParam());
  Rig alone(GetParam().backend, 1);
  const std::int64_t cols = 512;
  const std::int64_t n = 300;
  const Qtype types[] = {Qtype::kQ4_K, Qtype::kQ8_0, Qtype::kF32};
  const std::int64_t rows[] = {200, 77, 40};
  const std::vector<float> x = random_values(n * cols, 6);
  const auto run = [&](Rig& on, std::int64_t begin, std::int64_t count, bool together) {
    std::vector<MatmulTarget> targets;
    for (int t = 0; t < 3; ++t) {
      targets.push_back(
          {known_weight(on, types[t], 1, rows[t], cols, 10U + static_cast<unsigned>(t)).weight,
           nullptr, on.mat(count, rows[t])});
    }
    const Mat in =
        on.mat(count, cols,
               std::vector<float>(x.begin() + begin * cols, x.begin() + (begin + count) * cols));
    if (together) {
      on->matmul(in, targets);
    } else {
      for (const MatmulTarget& target : targets) on->matmul(in, {&target, 1});
    }
    std::vector<std::vector<float>> outs;
    for (const MatmulTarget& target : targets) outs.push_back(on.get(target.out));
    return outs;
  };
  const auto whole = run(rig, 0, n, true);
  const auto single = run(alone, 0, n, false);
  for (int t = 0; t < 3; ++t) {
    expect_same_bits(whole[static_cast<std::size_t>(t)], single[static_cast<std::size_t>(t)],
                     "threads and targets");
  }
  for (const std::int64_t begin : {0, 5, 299}) {
    for (const std::int64_t count : {1, 2, 9, 40}) {
      if (begin + count > n) continue;
      const auto part = run(rig, begin, count, true);
      for (std::size_t t = 0; t < 3; ++t) {
        const std::int64_t r = rows[t];
        expect_same_bits(part[t],
                         std::vector<float>(whole[t].begin() + begin * r,
                                            whole[t].begin() + (begin + count) * r),
                         "batch");
      }
    }
  }
}

TEST_P(Matmul, HeadsReadPartsOfRows) {
  Rig rig(GetParam());
  for (const Qtype type : {Qtype::kQ8_0, Qtype::kF16}) {
    for (const std::int64_t n : {1, 3, 40}) {
      const std::int64_t n_heads = 5;
      const std::int64_t d_in = 64;
      const std::int64_t d_out = 33;
      const std::int64_t in_stride = 96;   // each head's row holds more than is read
      const std::int64_t out_stride = 48;  // and more than is written
      const Known w = known_weight(rig, type, n_heads, d_out, d_in, 21);
      const std::vector<float> x = random_values(n * n_heads * in_stride, 22);
      const Mat in = rig.mat(n, n_heads * in_stride, x);
      const std::vector<float> before(static_cast<std::size_t>(n * n_heads * out_stride), -77.0F);
      const Mat out = rig.mat(n, n_heads * out_stride, before);
      rig->matmul_heads(in, in_stride, *w.weight, out, out_stride);
      const std::vector<float> got = rig.get(out);
      for (std::int64_t i = 0; i < n * n_heads; ++i) {
        const std::int64_t h = i % n_heads;
        for (std::int64_t r = 0; r < out_stride; ++r) {
          const float value = got[static_cast<std::size_t>(i * out_stride + r)];
          if (r >= d_out) {
            ASSERT_EQ(value, -77.0F) << "written past the head";
            continue;
          }
          expect_dot(value, w.values.data() + (h * d_out + r) * d_in, x.data() + i * in_stride,
                     d_in, 0.0, type, "head " + std::to_string(h));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

struct GroupedCase {
  std::int64_t n;
  std::int64_t n_active;
  std::int64_t n_experts;
};

Routing random_routing(Rig& rig, const GroupedCase& shape, unsigned seed) {
  const Routing routing = rig.routing(shape.n, shape.n_active, shape.n_experts);
  std::mt19937 engine(seed);
  std::vector<std::int32_t> experts;
  std::vector<std::int32_t> all(static_cast<std::size_t>(shape.n_experts));
  for (std::size_t e = 0; e < all.size(); ++e) all[e] = static_cast<std::int32_t>(e);
  for (std::int64_t r = 0; r < shape.n; ++r) {
    std::shuffle(all.begin(), all.end(), engine);
    experts.insert(experts.end(), all.begin(), all.begin() + shape.n_active);
  }
  const std::vector<float> weights = random_values(shape.n * shape.n_active, seed + 1);
  rig->upload(*routing.experts, 0, experts.data(), experts.size() * 4);
  rig->upload(*routing.weights, 0, weights.data(), weights.size() * 4);
  return routing;
}

TEST_P(Matmul, GroupedAgreesWithDoubleLoops) {
  Rig rig(GetParam());
  Rig alone(GetParam().backend, 1);
  const GroupedCase cases[] = {{1, 3, 7}, {9, 2, 5}, {60, 4, 9}, {300, 3, 4}};
  for (const GroupedCase& shape : cases) {
    for (const GroupedInput input : {GroupedInput::kRow, GroupedInput::kSlot}) {
      const std::int64_t cols = 256;
      const std::int64_t n_slots = shape.n * shape.n_active;
      const std::int64_t n_in = input == GroupedInput::kRow ? shape.n : n_slots;
      const std::vector<float> x = random_values(n_in * cols, 31);
      std::vector<std::vector<float>> first;
      for (Rig* on : {&rig, &alone}) {
        const Known gate = known_weight(*on, Qtype::kQ4_K, shape.n_experts, 50, cols, 32);
        const Known up = known_weight(*on, Qtype::kQ8_0, shape.n_experts, 31, cols, 33);
        const std::vector<float> bias = random_values(shape.n_experts * 50, 34);
        const Routing routing = random_routing(*on, shape, 35);
        const MatmulTarget targets[] = {
            {gate.weight, on->weight(Qtype::kF32, 1, shape.n_experts, 50, bias),
             on->mat(n_slots, 50, 2)},
            {up.weight, nullptr, on->mat(n_slots, 31)}};
        (*on)->grouped_matmul(on->mat(n_in, cols, x), input, routing, targets);
        const std::vector<float> got_gate = on->get(targets[0].out);
        const std::vector<float> got_up = on->get(targets[1].out);
        if (on == &alone) {
          expect_same_bits(got_gate, first[0], "threads, first target");
          expect_same_bits(got_up, first[1], "threads, second target");
          continue;
        }
        first = {got_gate, got_up};
        const std::vector<std::int32_t> experts = on->experts_of(routing);
        for (std::int64_t s = 0; s < n_slots; ++s) {
          const std::int64_t e = experts[static_cast<std::size_t>(s)];
          const float* row =
              x.data() + (input == GroupedInput::kRow ? s / shape.n_active : s) * cols;
          for (std::int64_t r = 0; r < 50; ++r) {
            expect_dot(got_gate[static_cast<std::size_t>(s * 50 + r)],
                       gate.values.data() + (e * 50 + r) * cols, row, cols,
                       bias[static_cast<std::size_t>(e * 50 + r)], Qtype::kQ4_K, "gate");
            if (HasFatalFailure()) return;
          }
          for (std::int64_t r = 0; r < 31; ++r) {
            expect_dot(got_up[static_cast<std::size_t>(s * 31 + r)],
                       up.values.data() + (e * 31 + r) * cols, row, cols, 0.0, Qtype::kQ8_0, "up");
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// A row's slots give the bits they give alone, and those of a plain matmul with the expert.
TEST_P(Matmul, GroupedBitsAreThoseOfTheExpertAlone) {
  Rig rig(GetParam());
  const GroupedCase shape{90, 2, 3};
  const std::int64_t cols = 512;
  const std::int64_t rows = 70;
  const std::vector<float> values = random_values(shape.n_experts * rows * cols, 41);
  const Weight* experts = rig.weight(Qtype::kQ6_K, shape.n_experts, rows, cols, values);
  const std::vector<float> x = random_values(shape.n * cols, 42);
  const Mat in = rig.mat(shape.n, cols, x);
  const Routing routing = random_routing(rig, shape, 43);
  const MatmulTarget target{experts, nullptr, rig.mat(shape.n * shape.n_active, rows)};
  rig->grouped_matmul(in, GroupedInput::kRow, routing, {&target, 1});
  const std::vector<float> got = rig.get(target.out);
  const std::vector<std::int32_t> ids = rig.experts_of(routing);
  for (std::int64_t e = 0; e < shape.n_experts; ++e) {
    const Weight* one = rig.weight(Qtype::kQ6_K, 1, rows, cols,
                                   std::vector<float>(values.begin() + e * rows * cols,
                                                      values.begin() + (e + 1) * rows * cols));
    const MatmulTarget plain{one, nullptr, rig.mat(shape.n, rows)};
    rig->matmul(in, {&plain, 1});
    const std::vector<float> want = rig.get(plain.out);
    for (std::size_t s = 0; s < ids.size(); ++s) {
      if (ids[s] != e) continue;
      const auto r = static_cast<std::ptrdiff_t>(s) / shape.n_active * rows;
      const auto at = static_cast<std::ptrdiff_t>(s) * rows;
      expect_same_bits(std::vector<float>(got.begin() + at, got.begin() + at + rows),
                       std::vector<float>(want.begin() + r, want.begin() + r + rows),
                       "slot " + std::to_string(s));
    }
  }
}

// More rows than the plan has room for at once go in several passes (prepared rows) and waves
// (packed columns), with the same bits.
TEST_P(Matmul, PassesAndWavesKeepTheBits) {
  const std::int64_t cols = 8192;
  const std::int64_t rows = 20;
  const std::int64_t n = 4100;  // 37 MB packed, above the 32 MB of a wave
  const std::vector<float> x = random_values(n * cols, 61);
  const std::vector<float> w = random_values(rows * cols, 62);
  Backend::ScratchSpec large;
  large.max_rows = n;
  large.max_cols = cols;
  Backend::ScratchSpec small = large;
  small.max_rows = 1;
  std::vector<float> first;
  for (const Backend::ScratchSpec& spec : {large, small}) {
    Rig rig(GetParam());
    rig->reserve(spec);
    const MatmulTarget target{rig.weight(Qtype::kQ8_0, 1, rows, cols, w), nullptr,
                              rig.mat(n, rows)};
    rig->matmul(rig.mat(n, cols, x), {&target, 1});
    const std::vector<float> got = rig.get(target.out);
    if (first.empty()) {
      first = got;
      for (const std::int64_t r : {0, 127, 128, 4099}) {
        expect_same_bits(
            [&] {
              const MatmulTarget one{target.weight, nullptr, rig.mat(1, rows)};
              rig->matmul(
                  rig.mat(1, cols,
                          std::vector<float>(x.begin() + r * cols, x.begin() + (r + 1) * cols)),
                  {&one, 1});
              return rig.get(one.out);
            }(),
            std::vector<float>(got.begin() + r * rows, got.begin() + (r + 1) * rows),
            "row " + std::to_string(r));
      }
    } else {
      expect_same_bits(got, first, "passes");
    }
  }
}

// The same for experts and heads: a plan for one row, steps of many.
TEST_P(Matmul, SmallPlansServeLargeSteps) {
  const std::int64_t cols = 256;
  const GroupedCase shape{200, 3, 5};
  Backend::ScratchSpec small;
  small.max_rows = 1;
  small.max_cols = cols;
  small.max_slots = 3;
  small.n_heads = 5;
  small.d_k = cols;
  std::vector<std::vector<float>> first;
  for (const Backend::ScratchSpec& spec : {test_scratch(), small}) {
    Rig rig(GetParam());
    rig->reserve(spec);
    const Weight* experts = rig.weight(Qtype::kQ8_0, 5, 40, cols, random_values(5 * 40 * cols, 63));
    const Routing routing = random_routing(rig, shape, 64);
    const Mat x = rig.mat(200, cols, random_values(200 * cols, 65));
    const Mat slots = rig.mat(600, cols, random_values(600 * cols, 66));
    const MatmulTarget by_row{experts, nullptr, rig.mat(600, 40)};
    const MatmulTarget by_slot{experts, nullptr, rig.mat(600, 40)};
    const Mat heads = rig.mat(120, 5 * 40);
    rig->grouped_matmul(x, GroupedInput::kRow, routing, {&by_row, 1});
    rig->grouped_matmul(slots, GroupedInput::kSlot, routing, {&by_slot, 1});
    Mat wide = slots;
    wide.rows = 120;
    wide.cols = wide.stride = 5 * cols;
    rig->matmul_heads(wide, cols, *experts, heads, 40);
    const std::vector<std::vector<float>> got = {rig.get(by_row.out), rig.get(by_slot.out),
                                                 rig.get(heads)};
    if (first.empty()) {
      first = got;
      continue;
    }
    for (std::size_t i = 0; i < 3; ++i) expect_same_bits(got[i], first[i], std::to_string(i));
  }
}

TEST_P(Matmul, NothingToDo) {
  Rig rig(GetParam());
  const Known w = known_weight(rig, Qtype::kF32, 1, 4, 8, 51);
  const MatmulTarget target{w.weight, nullptr, rig.mat(0, 4)};
  rig->matmul(rig.mat(0, 8), {&target, 1});
  rig->matmul(rig.mat(3, 8), {});
}

INSTANTIATE_TEST_SUITE_P(Backends, Matmul, testing::ValuesIn(all_params()), param_name);

}  // namespace
}  // namespace moesaic::backend::test
