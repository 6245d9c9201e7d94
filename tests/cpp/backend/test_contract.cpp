// What holds for the backend as a whole: its name, refusals that name the operation, cancellation
// that leaves it usable, the plan of scratch, and steps that allocate nothing.
#include <atomic>
#include <chrono>
#include <thread>

#include "backend/counting_new.h"
#include "backend/rig.h"
#include "base/cancel.h"
#include "base/errors.h"

namespace moesaic::backend::test {
namespace {

using quant::Qtype;

class Contract : public Conformance {};

template <typename E, typename Call>
void expect_error(const std::string& part, Call&& call) {
  try {
    call();
    ADD_FAILURE() << "no error with \"" << part << "\"";
  } catch (const E& error) {
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(Registry, NamesWhatIsThere) {
  EXPECT_EQ(make_backend("auto", {})->info().name, available_backends().front());
  expect_error<ArgumentError>("unknown backend \"tpu\"", [] { make_backend("tpu", {}); });
  expect_error<ArgumentError>("cpu", [] { make_backend("tpu", {}); });
  expect_error<ArgumentError>("hip: not in this build", [] { make_backend("hip", {}); });
}

TEST_P(Contract, SaysWhatItIs) {
  Rig rig(GetParam());
  EXPECT_EQ(rig->info().name, GetParam().backend);
  EXPECT_EQ(rig->info().n_threads, GetParam().n_threads);
  EXPECT_NE(rig->info().detail.find("thread"), std::string::npos);
}

TEST_P(Contract, RefusalsNameTheOperation) {
  Rig rig(GetParam());
  const Mat x = rig.mat(3, 64);
  const Mat y = rig.mat(2, 64);
  const Weight* w = rig.weight(Qtype::kF32, 1, 10, 32, random_values(320, 1));
  const Weight* ones = rig.vector(std::vector<float>(32, 1.0F));
  expect_error<InternalError>("add", [&] { rig->add(x, y, x); });
  expect_error<InternalError>("copy", [&] { rig->copy(x, y); });
  expect_error<InternalError>("rms_norm", [&] { rig->rms_norm(x, ones, 1e-5F, x); });
  expect_error<InternalError>("matmul", [&] {
    const MatmulTarget target{w, nullptr, rig.mat(3, 10)};
    rig->matmul(x, {&target, 1});
  });
  expect_error<InternalError>("matmul", [&] {
    const MatmulTarget target{nullptr, nullptr, rig.mat(3, 10)};
    rig->matmul(x, {&target, 1});
  });
  expect_error<InternalError>("gather_rows", [&] {
    const std::int32_t rows[] = {0, 3};
    rig->gather_rows(x, rows, y);
  });
  expect_error<InternalError>("rope", [&] {
    const std::int32_t positions[] = {0, 1, 2};
    rig->rope(x, 64, 0, RopeSpec{}, positions);
  });
  expect_error<InternalError>("route", [&] {
    RouterSpec spec;
    spec.n_active = 2;
    rig->route(x, spec, rig.routing(3, 2, 63));
  });
  expect_error<InternalError>("grouped_matmul", [&] {
    const Routing routing = rig.routing(3, 1, 1);
    const std::int32_t bad[] = {0, 1, 0};
    rig->upload(*routing.experts, 0, bad, 12);
    const MatmulTarget target{rig.weight(Qtype::kF32, 1, 5, 64, random_values(320, 2)), nullptr,
                              rig.mat(3, 5)};
    rig->grouped_matmul(x, GroupedInput::kRow, routing, {&target, 1});
  });
  expect_error<ArgumentError>("need 0 to 9", [&] {
    const std::int32_t tokens[] = {0, 10};
    rig->embed(*w, tokens, rig.mat(2, 32));
  });
  expect_error<ArgumentError>("got id -1", [&] {
    const std::int32_t tokens[] = {-1};
    rig->embed(*w, tokens, rig.mat(1, 32));
  });
  KvSpec kv;
  kv.n_layers = 1;
  kv.k_width = 64;
  kv.page_tokens = 48;
  expect_error<InternalError>("make_kv", [&] { rig->make_kv(kv); });
  kv.page_tokens = 16;
  kv.n_pages = 2;
  const std::unique_ptr<KvStore> store = rig->make_kv(kv);
  const auto write = [&](std::int64_t start, std::vector<std::int32_t> pages, std::int64_t layer) {
    const SequenceRows rows{0, 3, start, pages};
    rig->kv_write(*store, layer, {&rows, 1}, x, nullptr);
  };
  write(14, {1, 0}, 0);
  expect_error<InternalError>("kv_write", [&] { write(14, {1}, 0); });
  expect_error<InternalError>("kv_write", [&] { write(14, {1, 2}, 0); });
  expect_error<InternalError>("kv_write", [&] { write(-1, {1, 0}, 0); });
  expect_error<InternalError>("kv_write", [&] { write(14, {1, 0}, 1); });
  expect_error<InternalError>("kv_copy_page", [&] { rig->kv_copy_page(*store, 0, 2); });
  expect_error<InternalError>("attention", [&] {
    AttentionSpec spec;
    spec.n_heads = 2;
    spec.n_kv_heads = 1;
    spec.d_k = 32;
    spec.d_v = 16;
    const std::int32_t pages[] = {1, 0};
    const SequenceRows rows{0, 3, 14, pages};
    rig->attention(*store, 0, spec, {&rows, 1}, x, rig.mat(3, 32));
  });
  // Longer rows than reserve() was told of.
  expect_error<InternalError>("reserve()", [&] {
    const std::int64_t cols = std::int64_t{1} << 22;
    const Weight* wide =
        rig.weight(Qtype::kF32, 1, 1, cols, std::vector<float>(std::size_t{1} << 22));
    const MatmulTarget target{wide, nullptr, rig.mat(1, 1)};
    rig->matmul(rig.mat(1, cols), {&target, 1});
  });
}

// NaN and infinity go through without harm to anything but their own row.
TEST_P(Contract, NanStaysInItsRow) {
  Rig rig(GetParam());
  for (const Qtype type : {Qtype::kF32, Qtype::kQ8_0, Qtype::kQ4_K}) {
    const Weight* w = rig.weight(type, 1, 20, 256, random_values(20 * 256, 3));
    for (const std::int64_t n : {3, 70}) {
      std::vector<float> x = random_values(n * 256, 4);
      const MatmulTarget clean{w, nullptr, rig.mat(n, 20)};
      rig->matmul(rig.mat(n, 256, x), {&clean, 1});
      x[256 + 5] = std::nanf("");
      const MatmulTarget target{w, nullptr, rig.mat(n, 20)};
      rig->matmul(rig.mat(n, 256, x), {&target, 1});
      const std::vector<float> want = rig.get(clean.out);
      const std::vector<float> got = rig.get(target.out);
      for (std::size_t i = 0; i < got.size(); ++i) {
        if (i / 20 == 1) continue;
        ASSERT_EQ(got[i], want[i]);
      }
    }
  }
}

// What a user is promised after Ctrl-C; instrumented code is another ten times slower.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::chrono::milliseconds kCancelDeadline{2000};
#else
constexpr std::chrono::milliseconds kCancelDeadline{100};
#endif

// Work of many pieces, run again and again until somebody cancels.
struct LongWork {
  explicit LongWork(Rig& rig) {
    const std::int64_t n = 600;
    const Weight* w = rig.weight(Qtype::kF32, 1, 1000, 1000, random_values(1000 * 1000, 5));
    x = rig.mat(n, 1000, random_values(n * 1000, 6));
    target = {w, nullptr, rig.mat(n, 1000)};
  }
  Mat x;
  MatmulTarget target;
};

TEST_P(Contract, CancelStopsSoonAndLeavesTheBackendUsable) {
  Rig rig(GetParam());
  const LongWork work(rig);
  rig->matmul(work.x, {&work.target, 1});
  const std::vector<float> want = rig.get(work.target.out);

  CancelFlag cancel;
  rig->set_cancel(&cancel);
  using Clock = std::chrono::steady_clock;
  std::atomic<Clock::rep> set_at{0};
  std::thread canceller([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    set_at = Clock::now().time_since_epoch().count();
    cancel.set();
  });
  bool was_cancelled = false;
  try {
    for (int i = 0; i < 1000; ++i) rig->matmul(work.x, {&work.target, 1});
  } catch (const CancelledError&) {
    was_cancelled = true;
    const Clock::duration after = Clock::now().time_since_epoch() - Clock::duration(set_at.load());
    EXPECT_LT(after, kCancelDeadline);
  }
  canceller.join();
  EXPECT_TRUE(was_cancelled);
  EXPECT_THROW(rig->matmul(work.x, {&work.target, 1}), CancelledError);
  rig->set_cancel(nullptr);
  rig->matmul(work.x, {&work.target, 1});
  expect_same_bits(rig.get(work.target.out), want, "after a cancel");
}

TEST_P(Contract, ScratchIsWhatThePlanSays) {
  Rig rig(GetParam());
  Backend::ScratchSpec spec = test_scratch();
  const std::size_t bytes = rig->scratch_bytes(spec);
  EXPECT_GT(bytes, 0U);
  spec.max_rows *= 2;
  spec.max_slots *= 2;
  EXPECT_GE(rig->scratch_bytes(spec), bytes);
}

// One decode step and one prompt step with every operation, again and again: after the first rounds
// nothing is allocated.
TEST_P(Contract, AllocatesNothingInSteadyState) {
  Rig rig(GetParam());
  const std::int64_t d = 256;
  const std::int64_t n_experts = 6;
  const std::int64_t n_active = 2;
  const std::int64_t heads = 4;
  const std::int64_t lora = 64;
  const std::int64_t rotated = 8;
  const Weight* table = rig.weight(Qtype::kQ8_0, 1, 30, d, random_values(30 * d, 1));
  const Weight* norm = rig.vector(random_values(d, 2));
  const Weight* w = rig.weight(Qtype::kQ4_K, 1, d, d, random_values(d * d, 3));
  const Weight* router = rig.weight(Qtype::kF32, 1, n_experts, d, random_values(n_experts * d, 4));
  const Weight* experts =
      rig.weight(Qtype::kQ8_0, n_experts, d, d, random_values(n_experts * d * d, 5));
  const Weight* bias = rig.weight(Qtype::kF32, 1, n_experts, d, random_values(n_experts * d, 6));
  const Weight* w_k =
      rig.weight(Qtype::kQ8_0, heads, 24, lora, random_values(heads * 24 * lora, 7));
  const Weight* w_v =
      rig.weight(Qtype::kQ8_0, heads, 20, lora, random_values(heads * 20 * lora, 8));
  KvSpec kv_spec;
  kv_spec.n_layers = 1;
  kv_spec.k_width = lora + rotated;
  kv_spec.page_tokens = 64;
  kv_spec.n_pages = 20;
  const std::unique_ptr<KvStore> kv = rig->make_kv(kv_spec);
  std::vector<std::int32_t> pages;
  for (std::int32_t p = 0; p < 20; ++p) pages.push_back(p);
  AttentionSpec absorbed;
  absorbed.n_heads = heads;
  absorbed.n_kv_heads = 1;
  absorbed.d_k = lora + rotated;
  absorbed.d_v = lora;
  AttentionSpec decompressed = absorbed;
  decompressed.n_kv_heads = heads;
  decompressed.d_k = 24 + rotated;
  decompressed.d_v = 20;
  RopeSpec rope;
  rope.n_rot = rotated;
  rope.inverse_freqs = {1.0, 0.3, 0.1, 0.03};
  RouterSpec route;
  route.n_active = n_active;

  struct Step {
    std::int64_t n;
    std::int64_t start;
    Mat x, y, z, logits, slots, k, q, latent, heads_out, long_q, long_out;
    Routing routing;
    std::vector<std::int32_t> tokens, positions;
  };
  const auto make_step = [&](std::int64_t n, std::int64_t start) {
    Step s{n,
           start,
           rig.mat(n, d),
           rig.mat(n, d),
           rig.mat(n, d),
           rig.mat(n, n_experts),
           rig.mat(n * n_active, d),
           rig.mat(n, lora + rotated, random_values(n * (lora + rotated), 9)),
           rig.mat(n, heads * (lora + rotated), random_values(n * heads * (lora + rotated), 10)),
           rig.mat(n, heads * lora),
           rig.mat(n, heads * 20),
           rig.mat(n, heads * (24 + rotated), random_values(n * heads * 32, 11)),
           rig.mat(n, heads * 20),
           rig.routing(n, n_active, n_experts),
           {},
           {}};
    for (std::int64_t r = 0; r < n; ++r) {
      s.tokens.push_back(static_cast<std::int32_t>(r % 30));
      s.positions.push_back(static_cast<std::int32_t>(start + r));
    }
    return s;
  };
  const auto run = [&](Step& s) {
    for (std::int32_t& position : s.positions) ++position;  // no step repeats the last one's table
    const SequenceRows rows{0, s.n, s.start, pages};
    rig->embed(*table, s.tokens, s.x);
    rig->rms_norm(s.x, norm, 1e-5F, s.y);
    const MatmulTarget targets[] = {{w, nullptr, s.z}, {router, nullptr, s.logits}};
    rig->matmul(s.y, targets);
    rig->rope(s.k, lora + rotated, lora, rope, s.positions);
    rig->kv_write(*kv, 0, {&rows, 1}, s.k, nullptr);
    rig->attention(*kv, 0, absorbed, {&rows, 1}, s.q, s.latent);
    rig->matmul_heads(s.latent, lora, *w_v, s.heads_out, 20);
    rig->attention_decompressed(*kv, 0, decompressed, {&rows, 1}, *w_k, *w_v, s.long_q, s.long_out);
    rig->route(s.logits, route, s.routing);
    const MatmulTarget up{experts, bias, s.slots};
    rig->grouped_matmul(s.y, GroupedInput::kRow, s.routing, {&up, 1});
    rig->gated_activation(s.slots, s.slots, {}, s.slots);
    rig->grouped_matmul(s.slots, GroupedInput::kSlot, s.routing, {&up, 1});
    rig->combine(s.slots, s.routing, &s.x, s.z);
    rig->add(s.x, s.z, s.x);
  };
  Step prompt = make_step(600, 0);
  Step decode = make_step(1, 1100);
  for (int i = 0; i < 2; ++i) {
    run(prompt);
    run(decode);
  }
  const std::int64_t before = n_allocations();
  ASSERT_GT(before, 0);  // the counter counts
  for (int i = 0; i < 3; ++i) {
    run(prompt);
    run(decode);
  }
  EXPECT_EQ(n_allocations() - before, 0);
}

INSTANTIATE_TEST_SUITE_P(Backends, Contract, testing::ValuesIn(all_params()), param_name);

}  // namespace
}  // namespace moesaic::backend::test
