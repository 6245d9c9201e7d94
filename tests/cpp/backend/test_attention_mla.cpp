// The decompressed form of MLA against double loops over the same cache and weights, against the
// absorbed form (float weights, float cache: the same sums in another order), and its bits.
#include <algorithm>

#include "backend/rig.h"

namespace moesaic::backend::test {
namespace {

using quant::Qtype;

class Decompressed : public Conformance {};

constexpr std::int64_t kHeads = 3;
constexpr std::int64_t kLora = 64;
constexpr std::int64_t kNope = 24;
constexpr std::int64_t kRope = 32;
constexpr std::int64_t kValue = 20;
constexpr std::int64_t kWidth = kHeads * kValue;

struct Setting {
  Qtype k_type = Qtype::kF32;
  Qtype v_type = Qtype::kF32;
  KvType kv_type = KvType::kF32;
  std::int64_t window = 0;
  bool exact = true;      // else products of bf16 where the table has them
  std::int64_t kept = 0;  // positions whose keys and values are kept
};

class Scene {
 public:
  Scene(Rig& rig, const Setting& setting, std::int64_t n) : rig_(rig), setting_(setting), n_(n) {
    KvSpec spec;
    spec.n_layers = 1;
    spec.k_width = kLora + kRope;
    spec.type = setting.kv_type;
    spec.page_tokens = 64;
    spec.n_pages = 2 * (n / 64 + 1);
    spec.kept = {setting.kept, kHeads, kNope + kRope, kValue, setting.exact};
    kv_ = rig->make_kv(spec);
    for (std::int64_t p = spec.n_pages - 1; p >= 0; --p) {
      pages[static_cast<std::size_t>(p % 2)].push_back(static_cast<std::int32_t>(p));
    }
    rows_ = random_values(n * spec.k_width, 81);
    other_rows_ = random_values(n * spec.k_width, 91);
    q_ = random_values(n * kHeads * (kNope + kRope), 82);
    const std::vector<float> w_k = random_values(kHeads * kNope * kLora, 83, 0.2F);
    const std::vector<float> w_v = random_values(kHeads * kValue * kLora, 84, 0.2F);
    w_k_ = rig.weight(setting.k_type, kHeads, kNope, kLora, w_k);
    w_v_ = rig.weight(setting.v_type, kHeads, kValue, kLora, w_v);
    k_values_ = through_type(setting.k_type, kLora, w_k);
    v_values_ = through_type(setting.v_type, kLora, w_v);
    spec_.n_heads = kHeads;
    spec_.n_kv_heads = kHeads;
    spec_.d_k = kNope + kRope;
    spec_.d_v = kValue;
    spec_.scale = 0.17F;
    spec_.window = setting.window;
    spec_.exact = setting.exact;
  }
  // Positions of sequence 0, or of the other one, with rows of one or another content.
  std::vector<float> step(std::int64_t begin, std::int64_t end, std::size_t sequence = 0,
                          bool others = false) {
    const std::int64_t n = end - begin;
    const SequenceRows rows{0, n, begin, pages[sequence]};
    const std::vector<float>& content = others ? other_rows_ : rows_;
    rig_->kv_write(*kv_, 0, {&rows, 1}, rig_.mat(n, kLora + kRope, part(content, begin, end)),
                   nullptr);
    return attend({&rows, 1}, part(q_, begin, end));
  }
  // One more row of each sequence, at two positions, in one step.
  std::vector<float> step_of_both(std::int64_t at, std::int64_t other_at) {
    const SequenceRows rows[] = {{0, 1, at, pages[0]}, {1, 1, other_at, pages[1]}};
    std::vector<float> content = part(rows_, at, at + 1);
    std::vector<float> q = part(q_, at, at + 1);
    const std::vector<float> other = part(other_rows_, other_at, other_at + 1);
    const std::vector<float> other_q = part(q_, other_at, other_at + 1);
    content.insert(content.end(), other.begin(), other.end());
    q.insert(q.end(), other_q.begin(), other_q.end());
    rig_->kv_write(*kv_, 0, rows, rig_.mat(2, kLora + kRope, content), nullptr);
    return attend(rows, q);
  }
  std::vector<float> attend(std::span<const SequenceRows> sequences, const std::vector<float>& q) {
    const std::int64_t n = static_cast<std::int64_t>(q.size()) / (kHeads * (kNope + kRope));
    const Mat out = rig_.mat(n, kWidth, 4);
    rig_->attention_decompressed(*kv_, 0, spec_, sequences, *w_k_, *w_v_,
                                 rig_.mat(n, kHeads * (kNope + kRope), q, 1), out);
    return rig_.get(out);
  }
  // The first n rows of sequence 1 over those of sequence 0.
  void restore(std::int64_t n) {
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(n) * rig_->kv_row_bytes(kv_->spec()));
    rig_->kv_read(*kv_, 0, pages[1], 0, n, bytes.data());
    rig_->kv_restore(*kv_, 0, pages[0], 0, n, bytes.data());
  }
  void copy_page(std::int32_t from, std::int32_t to) { rig_->kv_copy_page(*kv_, from, to); }
  void release_page(std::int32_t page) { rig_->kv_release(*kv_, {&page, 1}); }

  std::vector<std::int32_t> pages[2];  // of the two sequences
  // The absorbed form of the same rows: q' = W_k^T q_nope, then values through w_v.
  std::vector<float> absorbed(std::int64_t begin, std::int64_t end) {
    const std::int64_t n = end - begin;
    const SequenceRows rows{0, n, begin, pages[0]};
    std::vector<float> q;
    for (std::int64_t i = begin * kHeads; i < end * kHeads; ++i) {
      const float* head = q_.data() + i * (kNope + kRope);
      for (std::int64_t c = 0; c < kLora; ++c) {
        double sum = 0.0;
        for (std::int64_t r = 0; r < kNope; ++r) {
          sum += static_cast<double>(head[r]) *
                 k_values_[static_cast<std::size_t>((i % kHeads * kNope + r) * kLora + c)];
        }
        q.push_back(static_cast<float>(sum));
      }
      q.insert(q.end(), head + kNope, head + kNope + kRope);
    }
    AttentionSpec spec = spec_;
    spec.n_kv_heads = 1;
    spec.d_k = kLora + kRope;
    spec.d_v = kLora;
    const Mat latent = rig_.mat(n, kHeads * kLora);
    rig_->attention(*kv_, 0, spec, {&rows, 1}, rig_.mat(n, kHeads * (kLora + kRope), q), latent);
    const Mat out = rig_.mat(n, kWidth);
    rig_->matmul_heads(latent, kLora, *w_v_, out, kValue);
    return rig_.get(out);
  }
  std::vector<double> want(std::int64_t position) const {
    const std::vector<float> rows = as_cached(setting_.kv_type, rows_);
    std::vector<double> out;
    const std::int64_t first =
        setting_.window > 0 ? std::max<std::int64_t>(0, position - setting_.window + 1) : 0;
    for (std::int64_t h = 0; h < kHeads; ++h) {
      const float* q = q_.data() + (position * kHeads + h) * (kNope + kRope);
      std::vector<double> p;
      double sum = 0.0;
      for (std::int64_t t = first; t <= position; ++t) {
        const float* row = rows.data() + t * (kLora + kRope);
        double score = 0.0;
        for (std::int64_t r = 0; r < kNope; ++r) {
          double k = 0.0;
          for (std::int64_t c = 0; c < kLora; ++c) {
            k += static_cast<double>(row[c]) *
                 k_values_[static_cast<std::size_t>((h * kNope + r) * kLora + c)];
          }
          score += k * q[r];
        }
        for (std::int64_t r = 0; r < kRope; ++r)
          score += static_cast<double>(row[kLora + r]) * q[kNope + r];
        p.push_back(std::exp(score * spec_.scale));
        sum += p.back();
      }
      for (std::int64_t i = 0; i < kValue; ++i) {
        double value = 0.0;
        for (std::int64_t t = first; t <= position; ++t) {
          double v = 0.0;
          for (std::int64_t c = 0; c < kLora; ++c) {
            v += static_cast<double>(rows[static_cast<std::size_t>(t * (kLora + kRope) + c)]) *
                 v_values_[static_cast<std::size_t>((h * kValue + i) * kLora + c)];
          }
          value += p[static_cast<std::size_t>(t - first)] / sum * v;
        }
        out.push_back(value);
      }
    }
    return out;
  }

 private:
  std::vector<float> part(const std::vector<float>& all, std::int64_t begin,
                          std::int64_t end) const {
    const std::int64_t width = static_cast<std::int64_t>(all.size()) / n_;
    return {all.begin() + begin * width, all.begin() + end * width};
  }
  Rig& rig_;
  Setting setting_;
  std::int64_t n_;
  AttentionSpec spec_;
  std::unique_ptr<KvStore> kv_;
  std::vector<float> rows_;
  std::vector<float> other_rows_;
  std::vector<float> q_;
  const Weight* w_k_;
  const Weight* w_v_;
  std::vector<float> k_values_;
  std::vector<float> v_values_;
};

TEST_P(Decompressed, AgreesWithDoubleLoops) {
  const Setting settings[] = {{},
                              {Qtype::kF32, Qtype::kF16, KvType::kF16, 0},
                              {Qtype::kQ8_0, Qtype::kQ8_0, KvType::kF16, 0},
                              {Qtype::kF32, Qtype::kF16, KvType::kQ8_0, 0},
                              {Qtype::kF32, Qtype::kF32, KvType::kF32, 40},
                              {Qtype::kF32, Qtype::kF16, KvType::kF16, 0, false},
                              {Qtype::kF32, Qtype::kF32, KvType::kF32, 40, false}};
  for (const Setting& setting : settings) {
    Rig rig(GetParam());
    const std::int64_t n = 577;
    Scene scene(rig, setting, n);
    const std::vector<float> got = scene.step(0, n);
    // int8 activations: 64 terms, each off by at most half of 1/127 of the block's largest value
    // (about 3) times a weight of 0.2: some 0.02 in a key or value element.
    // bf16 rounds keys, values and queries by up to 2^-8 of about 3.
    const double tolerance = setting.k_type == Qtype::kQ8_0 ? 0.05 : setting.exact ? 1e-5 : 0.03;
    for (const std::int64_t t : {0, 1, 63, 64, 200, 511, 512, 576}) {
      const std::vector<double> want = scene.want(t);
      for (std::size_t i = 0; i < want.size(); ++i) {
        ASSERT_NEAR(got[static_cast<std::size_t>(t * kWidth) + i], want[i], tolerance)
            << "position " << t << " column " << i;
      }
    }
  }
}

TEST_P(Decompressed, AgreesWithTheAbsorbedForm) {
  Rig rig(GetParam());
  const std::int64_t n = 577;
  Scene scene(rig, {}, n);
  const std::vector<float> a = scene.step(0, n);
  const std::vector<float> b = scene.absorbed(0, n);
  for (std::size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], b[i], 1e-5) << i;
}

TEST_P(Decompressed, BitsDependOnNothingElse) {
  for (const bool is_exact : {true, false}) {
    const Setting setting{Qtype::kQ8_0, Qtype::kF16, KvType::kF16, 0, is_exact};
    const std::int64_t n = 577;
    Rig alone(GetParam().backend, 1);
    Scene one(alone, setting, n);
    const std::vector<float> want = one.step(0, n);
    Rig rig(GetParam());
    Scene scene(rig, setting, n);
    std::int64_t at = 0;
    for (const std::int64_t count : {200, 1, 70, 241, 60, 5}) {
      const std::vector<float> got = scene.step(at, at + count);
      expect_same_bits(
          got, std::vector<float>(want.begin() + at * kWidth, want.begin() + (at + count) * kWidth),
          "step at " + std::to_string(at));
      at += count;
    }
    ASSERT_EQ(at, n);
  }
}

// Whatever is done to the cache between the steps of a prompt.
TEST_P(Decompressed, KeptKeysChangeNothing) {
  for (const bool is_exact : {true, false}) {
    const std::int64_t n = 1700;
    Setting setting{Qtype::kQ8_0, Qtype::kF16, KvType::kF16, 0, is_exact};
    Rig plain_rig(GetParam());
    Scene plain(plain_rig, setting, n);
    setting.kept = 1100;  // two whole chunks
    Rig rig(GetParam());
    Scene kept(rig, setting, n);
    const auto same = [&](const char* what, const auto& step) {
      expect_same_bits(step(kept), step(plain), what);
    };
    const auto both = [&](const auto& change) {
      change(kept);
      change(plain);
    };
    same("a prompt begins", [](Scene& s) { return s.step(0, 600); });
    same("and goes on", [](Scene& s) { return s.step(600, 640); });
    same("over a chunk's end", [](Scene& s) { return s.step(640, 1100); });
    same("beyond the room", [](Scene& s) { return s.step(1100, 1300); });
    same("deep", [](Scene& s) { return s.step(1300, 1301); });
    same("cut off and other rows", [](Scene& s) { return s.step(550, 700, 0, true); });
    same("another sequence", [](Scene& s) { return s.step(0, 520, 1, true); });
    same("and the first again", [](Scene& s) { return s.step(700, 760); });
    both([](Scene& s) { std::copy_n(s.pages[0].begin(), 4, s.pages[1].begin()); });
    same("a shared prefix", [](Scene& s) { return s.step(256, 800, 1, true); });
    same("from the other side", [](Scene& s) { return s.step(760, 800); });
    both([](Scene& s) { s.copy_page(s.pages[1][5], s.pages[0][5]); });
    same("a page copied over", [](Scene& s) { return s.step(800, 850); });
    both([](Scene& s) { s.restore(700); });
    same("rows read back", [](Scene& s) { return s.step(850, 900); });
    same("two at once", [](Scene& s) { return s.step_of_both(900, 800); });
    same("two at once, again", [](Scene& s) { return s.step_of_both(901, 801); });
    same("from the start", [](Scene& s) { return s.step(0, 70, 0, true); });
  }
}

// Pages given back are zeros: who still gives the old results did not look at them.
TEST_P(Decompressed, KeptKeysAreUsed) {
  for (const bool is_exact : {true, false}) {
    Setting setting{Qtype::kQ8_0, Qtype::kF16, KvType::kF32, 0, is_exact, 512};
    Rig plain_rig(GetParam());
    Scene plain(plain_rig, setting, 600);
    Rig rig(GetParam());
    Scene scene(rig, setting, 600);
    plain.step(0, 400);
    scene.step(0, 400);
    for (std::size_t page = 0; page < 4; ++page) scene.release_page(scene.pages[0][page]);
    const std::vector<float> want = plain.step(400, 580);
    expect_same_bits(scene.step(400, 580), want, "kept");
    setting.kept = 0;
    Rig other_rig(GetParam());
    Scene without(other_rig, setting, 600);
    without.step(0, 400);
    for (std::size_t page = 0; page < 4; ++page) without.release_page(without.pages[0][page]);
    EXPECT_NE(without.step(400, 580), want);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Decompressed, testing::ValuesIn(all_params()), param_name);

}  // namespace
}  // namespace moesaic::backend::test
