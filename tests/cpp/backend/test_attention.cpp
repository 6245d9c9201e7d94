// Attention over the paged cache against double loops: grouped heads, latent rows, windows, sinks,
// both cache types, several sequences on shuffled pages; and the bits: any team, any split of a
// prompt into steps, any company in the batch.
#include <algorithm>
#include <limits>
#include <numeric>

#include "backend/rig.h"

namespace moesaic::backend::test {
namespace {

class Attention : public Conformance {};

// One cache layout and one attention over it.
struct Kind {
  std::string name;
  AttentionSpec spec;
  KvType type = KvType::kF16;
  bool latent = false;  // values are the first columns of the key row
  bool sinks = false;
  std::int64_t page_tokens = 64;

  // Values are of size 1; scores reach some 10, whose rounding exp passes on. bf16 rounds each of
  // their terms by up to 2^-8.
  double tolerance() const { return spec.exact ? 2e-5 : 0.04; }
};

std::vector<Kind> kinds() {
  std::vector<Kind> all;
  const auto add = [&](const char* name, std::int64_t n_heads, std::int64_t n_kv, std::int64_t d_k,
                       std::int64_t d_v, KvType type, bool latent, std::int64_t window, bool sinks,
                       std::int64_t page_tokens) {
    Kind kind;
    kind.name = name;
    kind.spec.n_heads = n_heads;
    kind.spec.n_kv_heads = n_kv;
    kind.spec.d_k = d_k;
    kind.spec.d_v = d_v;
    kind.spec.scale = 1.0F / std::sqrt(static_cast<float>(d_k));
    kind.spec.window = window;
    kind.type = type;
    kind.latent = latent;
    kind.sinks = sinks;
    kind.page_tokens = page_tokens;
    all.push_back(kind);
  };
  add("grouped", 6, 2, 24, 24, KvType::kF16, false, 0, false, 64);
  add("odd", 5, 5, 17, 9, KvType::kF32, false, 0, false, 16);
  add("one_kv_head", 9, 1, 32, 32, KvType::kF32, false, 0, true, 512);
  add("latent", 16, 1, 72, 64, KvType::kF16, true, 0, false, 32);
  add("window", 8, 2, 16, 16, KvType::kF16, false, 13, true, 1);
  add("wide_window", 4, 4, 16, 16, KvType::kF32, false, 530, true, 128);
  add("grouped_q8", 6, 2, 64, 32, KvType::kQ8_0, false, 0, true, 64);
  add("latent_q8", 16, 1, 96, 64, KvType::kQ8_0, true, 0, false, 32);
  // Products of bf16 where the table has them.
  for (const std::size_t i : {std::size_t{0}, std::size_t{3}, std::size_t{7}}) {
    all.push_back(all[i]);
    all.back().name += "_inexact";
    all.back().spec.exact = false;
  }
  add("wide_inexact", 20, 1, 40, 36, KvType::kF16, false, 300, true, 64);
  all.back().spec.exact = false;
  return all;
}

// Positions, keys, values and queries of one sequence, made from its seed: whatever the step, row t
// of sequence s has the same content.
struct Sequence {
  std::vector<float> k;
  std::vector<float> v;
  std::vector<float> cached_k;  // as the cache gives them back
  std::vector<float> cached_v;
  std::vector<float> q;
  std::vector<std::int32_t> pages;
  std::int64_t length;
};

class Scene {
 public:
  Scene(Rig& rig, const Kind& kind, const std::vector<std::int64_t>& lengths, unsigned seed)
      : rig_(rig), kind_(kind) {
    KvSpec spec;
    spec.n_layers = 2;
    spec.k_width = kind.latent ? kind.spec.d_k : kind.spec.n_kv_heads * kind.spec.d_k;
    spec.v_width = kind.latent ? 0 : kind.spec.n_kv_heads * kind.spec.d_v;
    spec.type = kind.type;
    spec.page_tokens = kind.page_tokens;
    std::int64_t n_pages = 3;
    for (const std::int64_t length : lengths) n_pages += length / spec.page_tokens + 1;
    spec.n_pages = n_pages;
    kv_ = rig->make_kv(spec);
    std::vector<std::int32_t> order(static_cast<std::size_t>(n_pages));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    std::size_t next = 0;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      Sequence sequence;
      const std::int64_t n = lengths[s];
      const unsigned its_seed = static_cast<unsigned>(n) * 16;
      sequence.length = n;
      sequence.k = random_values(n * spec.k_width, its_seed + 1);
      sequence.v = random_values(n * std::max<std::int64_t>(spec.v_width, 1), its_seed + 2);
      sequence.cached_k = as_cached(kind.type, sequence.k);
      sequence.cached_v = as_cached(kind.type, sequence.v);
      sequence.q = random_values(n * kind.spec.n_heads * kind.spec.d_k, its_seed + 3, 2.0F);
      for (std::int64_t p = 0; p < n / spec.page_tokens + 1; ++p) {
        sequence.pages.push_back(order[next++]);
      }
      sequences_.push_back(std::move(sequence));
    }
    if (kind.sinks) {
      sink_values_ = random_values(kind.spec.n_heads, 99);
      kind_.spec.sinks = rig.vector(sink_values_);
    }
  }

  struct Rows {
    std::size_t sequence;
    std::int64_t begin;
    std::int64_t end;
  };
  // One step: writes the rows, attends, returns (rows, n_heads * d_v) in the order asked.
  std::vector<float> step(const std::vector<Rows>& parts) { return step(parts, true); }
  void write_only(const std::vector<Rows>& parts) { step(parts, false); }

  // Row `position` of a sequence in double, on the values as the cache rounds them; `size` is what
  // errors scale with.
  std::vector<double> want(std::size_t s, std::int64_t position) const {
    const Sequence& sequence = sequences_[s];
    const AttentionSpec& spec = kind_.spec;
    const std::int64_t k_width = kv_->spec().k_width;
    const std::int64_t v_width = kind_.latent ? k_width : kv_->spec().v_width;
    const std::vector<float>& v_rows = kind_.latent ? sequence.cached_k : sequence.cached_v;
    std::vector<double> out;
    for (std::int64_t h = 0; h < spec.n_heads; ++h) {
      const std::int64_t g = h / (spec.n_heads / spec.n_kv_heads);
      const std::int64_t first =
          spec.window > 0 ? std::max<std::int64_t>(0, position - spec.window + 1) : 0;
      std::vector<double> scores;
      double top = kind_.sinks ? sink_values_[static_cast<std::size_t>(h)]
                               : -std::numeric_limits<double>::infinity();
      for (std::int64_t t = first; t <= position; ++t) {
        double score = 0.0;
        for (std::int64_t i = 0; i < spec.d_k; ++i) {
          score += static_cast<double>(sequence.q[static_cast<std::size_t>(
                       (position * spec.n_heads + h) * spec.d_k + i)]) *
                   static_cast<double>(
                       sequence.cached_k[static_cast<std::size_t>(t * k_width + g * spec.d_k + i)]);
        }
        scores.push_back(score * spec.scale);
        top = std::max(top, scores.back());
      }
      double sum = kind_.sinks ? std::exp(sink_values_[static_cast<std::size_t>(h)] - top) : 0.0;
      for (double& score : scores) sum += score = std::exp(score - top);
      for (std::int64_t i = 0; i < spec.d_v; ++i) {
        double value = 0.0;
        for (std::int64_t t = first; t <= position; ++t) {
          value +=
              scores[static_cast<std::size_t>(t - first)] / sum *
              static_cast<double>(v_rows[static_cast<std::size_t>(t * v_width + g * spec.d_v + i)]);
        }
        out.push_back(value);
      }
    }
    return out;
  }
  std::int64_t width() const { return kind_.spec.n_heads * kind_.spec.d_v; }

 private:
  std::vector<float> step(const std::vector<Rows>& parts, bool attends) {
    std::vector<SequenceRows> rows;
    std::vector<float> k;
    std::vector<float> v;
    std::vector<float> q;
    std::int64_t n = 0;
    const KvSpec& spec = kv_->spec();
    const auto append = [](std::vector<float>& to, const std::vector<float>& from, const Rows& part,
                           std::int64_t width) {
      to.insert(to.end(), from.begin() + part.begin * width, from.begin() + part.end * width);
    };
    for (const Rows& part : parts) {
      const Sequence& sequence = sequences_[part.sequence];
      rows.push_back({n, part.end - part.begin, part.begin, sequence.pages});
      append(k, sequence.k, part, spec.k_width);
      append(v, sequence.v, part, spec.v_width);
      append(q, sequence.q, part, kind_.spec.n_heads * kind_.spec.d_k);
      n += part.end - part.begin;
    }
    const Mat values = spec.v_width > 0 ? rig_.mat(n, spec.v_width, v) : Mat{};
    rig_->kv_write(*kv_, 1, rows, rig_.mat(n, spec.k_width, k, 3),
                   spec.v_width > 0 ? &values : nullptr);
    if (!attends) return {};
    const Mat out = rig_.mat(n, kind_.spec.n_heads * kind_.spec.d_v, 2);
    rig_->attention(*kv_, 1, kind_.spec, rows, rig_.mat(n, kind_.spec.n_heads * kind_.spec.d_k, q),
                    out);
    return rig_.get(out);
  }

  Rig& rig_;
  Kind kind_;
  std::unique_ptr<KvStore> kv_;
  std::vector<Sequence> sequences_;
  std::vector<float> sink_values_;
};

std::vector<float> rows_of(const std::vector<float>& all, std::int64_t begin, std::int64_t end,
                           std::int64_t width) {
  return {all.begin() + begin * width, all.begin() + end * width};
}

TEST_P(Attention, AgreesWithDoubleLoops) {
  for (const Kind& kind : kinds()) {
    Rig rig(GetParam());
    const std::vector<std::int64_t> lengths = {1, 37, 600};
    Scene scene(rig, kind, lengths, 5);
    const std::vector<float> got = scene.step({{0, 0, 1}, {1, 0, 37}, {2, 0, 600}});
    std::int64_t row = 0;
    for (std::size_t s = 0; s < lengths.size(); ++s) {
      for (std::int64_t t = 0; t < lengths[s]; ++t, ++row) {
        if (t > 40 && t < 505 && t % 29 != 0) continue;  // the oracle is slow
        const std::vector<double> want = scene.want(s, t);
        for (std::int64_t i = 0; i < scene.width(); ++i) {
          ASSERT_NEAR(got[static_cast<std::size_t>(row * scene.width() + i)],
                      want[static_cast<std::size_t>(i)], kind.tolerance())
              << kind.name << " sequence " << s << " position " << t << " column " << i;
        }
      }
    }
  }
}

TEST_P(Attention, BitsDependOnNothingElse) {
  for (const Kind& kind : kinds()) {
    Rig alone(GetParam().backend, 1);
    Scene one(alone, kind, {600, 530}, 6);
    const std::vector<float> first = one.step({{0, 0, 600}});
    const std::vector<float> second = one.step({{1, 0, 530}});
    const std::int64_t w = one.width();
    {
      Rig rig(GetParam());
      Scene scene(rig, kind, {600, 530}, 7);  // other pages
      expect_same_bits(scene.step({{0, 0, 600}}), first, kind.name + ": threads");
    }
    {
      // In pieces, together with the other sequence: steps of many rows, of few, of one.
      Rig rig(GetParam());
      Scene scene(rig, kind, {600, 530}, 8);
      std::int64_t at = 0;
      for (const std::int64_t count : {100, 1, 2, 3, 7, 64, 65, 258, 12, 1, 1, 1, 15}) {
        const std::vector<float> got = scene.step({{1, at, at + count}, {0, at, at + count}});
        expect_same_bits(rows_of(got, 0, count, w), rows_of(second, at, at + count, w),
                         kind.name + ": batch, second");
        expect_same_bits(rows_of(got, count, 2 * count, w), rows_of(first, at, at + count, w),
                         kind.name + ": batch, first");
        at += count;
      }
      ASSERT_EQ(at, 530);
      // Decode of one sequence alone, across the border of chunks.
      for (; at < 560; ++at) {
        expect_same_bits(scene.step({{0, at, at + 1}}), rows_of(first, at, at + 1, w),
                         kind.name + ": decode at " + std::to_string(at));
      }
    }
  }
}

// Long enough for chunks to be split over the team in several waves.
TEST_P(Attention, SplitChunksGiveTheBitsOfOneThread) {
  for (const bool is_exact : {true, false}) {
    Kind kind = kinds()[3];
    kind.spec.n_heads = 16;
    kind.spec.exact = is_exact;
    const std::int64_t n = 512 * 17 + 77;
    std::vector<float> want;
    for (const int n_threads : {1, GetParam().n_threads}) {
      Rig rig(GetParam().backend, n_threads);
      Scene scene(rig, kind, {n}, 9);
      for (std::int64_t t = 0; t < n - 1; t += 700) {
        scene.write_only({{0, t, std::min(t + 700, n - 1)}});
      }
      const std::vector<float> got = scene.step({{0, n - 1, n}});
      if (want.empty()) {
        want = got;
        const std::vector<double> exact = scene.want(0, n - 1);
        for (std::size_t i = 0; i < exact.size(); ++i) {
          ASSERT_NEAR(got[i], exact[i], kind.tolerance());
        }
      } else {
        expect_same_bits(got, want, "threads");
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Attention, testing::ValuesIn(all_params()), param_name);

}  // namespace
}  // namespace moesaic::backend::test
