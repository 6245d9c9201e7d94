// Numbers are a contract: the same bytes for any split of a prompt, any neighbours in the step, any
// number of threads and any cut of the layers; two layouts of MLA and its two forms agree.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "model/run/forward.h"
#include "model/tiny_model.h"

namespace moesaic::model {
namespace {

using testing::Recipe;
using testing::TinyOptions;

struct Family {
  const char* name;
  Recipe (*recipe)(const TinyOptions&);
  TinyOptions options;
};
void PrintTo(const Family& family, std::ostream* out) { *out << family.name; }

std::vector<Family> all_families() {
  using quant::Qtype;
  return {
      {"llama", testing::tiny_llama, {}},
      {"deepseek2", testing::tiny_deepseek2, {}},
      {"deepseek2 kv_b", testing::tiny_deepseek2_kv_b, {}},
      {"qwen3moe", testing::tiny_qwen3moe, {}},
      {"gpt-oss", testing::tiny_gpt_oss, {.n_layers = 3}},
      {"glm4moe", testing::tiny_glm4moe, {}},
      {"llama Q8_0", testing::tiny_llama, {.matrices = Qtype::kQ8_0, .unit = 64}},
      {"llama Q4_K", testing::tiny_llama, {.matrices = Qtype::kQ4_K, .unit = 256}},
      {"deepseek2 F16", testing::tiny_deepseek2, {.matrices = Qtype::kF16}},
      {"deepseek2 Q8_0", testing::tiny_deepseek2, {.matrices = Qtype::kQ8_0, .unit = 32}},
      {"qwen3moe Q6_K", testing::tiny_qwen3moe, {.matrices = Qtype::kQ6_K, .unit = 256}},
      {"gpt-oss Q4_0", testing::tiny_gpt_oss, {.matrices = Qtype::kQ4_0, .unit = 32}},
  };
}

class Equality : public ::testing::TestWithParam<Family> {
 protected:
  static bool is_mla() { return GetParam().recipe(GetParam().options).arch == "deepseek2"; }
  std::unique_ptr<LocalRunner> load(int threads) const {
    LoadOptions options = testing::small_options();
    options.threads = threads;
    // Only MLA has a form that rounds otherwise; the rest keeps the contract by default.
    options.deterministic = is_mla();
    return testing::load(GetParam().recipe(GetParam().options), options);
  }
};
INSTANTIATE_TEST_SUITE_P(Model, Equality, ::testing::ValuesIn(all_families()));

bool same_bytes(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

constexpr std::int64_t kTokens = 45;  // three pages

TEST_P(Equality, AnySplitOfAPromptGivesTheSameBytes) {
  const auto runner = load(1);
  const auto tokens = testing::some_tokens(kTokens, runner->config().vocab, 1);
  const auto whole = testing::all_logits(*runner, tokens, kTokens);
  for (const float value : whole) ASSERT_TRUE(std::isfinite(value));
  for (const std::int64_t chunk : {1, 2, 7, 16, 33}) {
    EXPECT_TRUE(same_bytes(testing::all_logits(*runner, tokens, chunk), whole)) << chunk;
  }
}

TEST_P(Equality, AnyNumberOfThreadsGivesTheSameBytes) {
  const auto one = load(1);
  const auto tokens = testing::some_tokens(kTokens, one->config().vocab, 2);
  const auto want = testing::all_logits(*one, tokens, 20);
  for (const int threads : {2, 3}) {
    EXPECT_TRUE(same_bytes(testing::all_logits(*load(threads), tokens, 20), want)) << threads;
  }
}

TEST_P(Equality, NeighboursInAStepChangeNothing) {
  const auto runner = load(2);
  const std::int64_t vocab = runner->config().vocab;
  const std::vector<std::int64_t> lengths{9, 1, 30, 17};
  Step prompts;
  Step decode;
  std::vector<std::vector<float>> alone;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const auto tokens =
        testing::some_tokens(lengths[i] + 1, vocab, static_cast<std::uint32_t>(10 + i));
    alone.push_back(testing::all_logits(*runner, tokens, lengths[i]));
    const SequenceId id = runner->open();
    const std::vector<std::int32_t> prompt(tokens.begin(), tokens.end() - 1);
    prompts.sequences.push_back(testing::rows(id, 0, prompt, Logits::kAll));
    decode.sequences.push_back(testing::rows(id, lengths[i], {tokens.back()}, Logits::kAll));
  }
  const StepResult first = runner->run(prompts);
  const StepResult second = runner->run(decode);
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    std::vector<float> got = first.sequences[i].logits;
    got.insert(got.end(), second.sequences[i].logits.begin(), second.sequences[i].logits.end());
    EXPECT_TRUE(same_bytes(got, alone[i])) << i;
  }
}

// Past the blocks that attention is cut into (512 rows), where partial results are merged.
TEST_P(Equality, PromptsPastAnAttentionBlockToo) {
  constexpr std::int64_t kLong = 530;
  struct Way {
    int threads;
    std::int64_t chunk;
  };
  std::vector<float> want;
  for (const Way way : {Way{1, 512}, Way{3, 129}}) {
    LoadOptions options = testing::small_options();
    options.n_ctx = 600;
    options.page_tokens = 64;
    options.threads = way.threads;
    options.deterministic = is_mla();
    const auto runner = testing::load(GetParam().recipe(GetParam().options), options);
    const auto tokens = testing::some_tokens(kLong, runner->config().vocab, 5);
    const SequenceId id = runner->open();
    for (std::int64_t at = 0; at < kLong; at += way.chunk) {
      const std::int64_t n = std::min(way.chunk, kLong - at);
      testing::run_one(
          *runner,
          testing::rows(id, at, {tokens.begin() + at, tokens.begin() + at + n}, Logits::kNone));
    }
    std::vector<float> got;
    for (const std::int32_t token : {3, 1, 4}) {  // decode behind it
      const auto result =
          testing::run_one(*runner, testing::rows(id, runner->length(id), {token}, Logits::kLast));
      got.insert(got.end(), result.logits.begin(), result.logits.end());
    }
    if (want.empty()) want = got;
    EXPECT_TRUE(same_bytes(got, want)) << way.threads << " threads, steps of " << way.chunk;
  }
}

// Two slices, hidden rows handed over on the host, as a cluster's pipeline would.
TEST_P(Equality, CutLayersGiveTheSameBytes) {
  const auto runner = load(1);
  const auto tokens = testing::some_tokens(11, runner->config().vocab, 3);
  const auto want = testing::all_logits(*runner, tokens, 11);

  const ModelFile model = understand(testing::build(GetParam().recipe(GetParam().options)));
  const Config& config = model.config;
  const auto backend = backend::make_backend("cpu", {.n_threads = 1});
  LoadOptions load_options = testing::small_options();
  load_options.deterministic = true;
  struct Sink : LogitsSink {
    std::vector<float> all;
    void take(std::int64_t, std::span<float> logits) override {
      all.insert(all.end(), logits.begin(), logits.end());
    }
  } sink;
  NoExchange exchange;
  const std::vector<std::int32_t> pages{2};
  const std::vector<backend::SequenceRows> sequences{{0, 11, 0, pages}};
  std::vector<float> hidden(static_cast<std::size_t>(11 * config.d_model));
  std::vector<std::int32_t> all_rows(11);
  for (int i = 0; i < 11; ++i) all_rows[static_cast<std::size_t>(i)] = i;

  const Slice front{0, 1, true, false};
  const Slice back{1, config.n_layers, false, true};
  for (const Slice& slice : {front, back}) {
    WeightOptions absorbed_only;
    absorbed_only.decompressed_mla = false;
    const ModelWeights weights = load_weights(*backend, model, slice, absorbed_only);
    const auto kv = backend->make_kv(kv_spec(config, slice, load_options, 64));
    Forward forward(*backend, config, slice, weights, *kv, exchange, forward_options(load_options));
    if (slice.embed) {
      forward.run({.tokens = tokens, .hidden = {}, .sequences = sequences},
                  {.logits_rows = {}, .hidden = hidden});
    } else {
      forward.run({.tokens = {}, .hidden = hidden, .sequences = sequences},
                  {.logits_rows = all_rows, .logits = &sink, .hidden = {}});
    }
  }
  EXPECT_TRUE(same_bytes(sink.all, want));
}

double largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i])));
  }
  return worst;
}

// The same attn_kv_b as attn_k_b and attn_v_b: both layouts hold the same numbers.
TEST(Mla, FormsAgreeUpToRounding) {
  for (const bool kv_b : {false, true}) {
    LoadOptions options = testing::small_options();
    options.kv_type = backend::KvType::kF32;
    const Recipe recipe = kv_b ? testing::tiny_deepseek2_kv_b() : testing::tiny_deepseek2();
    const auto free = testing::load(recipe, options);
    options.deterministic = true;
    const auto fixed = testing::load(recipe, options);
    const auto tokens = testing::some_tokens(kTokens, free->config().vocab, 4);
    ASSERT_TRUE(prefer_decompressed(free->config(), kTokens, kTokens, 1.0));
    ASSERT_FALSE(prefer_decompressed(free->config(), 1, kTokens, 1.0));
    const auto decompressed = testing::all_logits(*free, tokens, kTokens);
    const auto absorbed = testing::all_logits(*fixed, tokens, kTokens);
    EXPECT_LT(largest_difference(decompressed, absorbed), 2e-4);
    EXPECT_FALSE(same_bytes(decompressed, absorbed)) << "the decompressed form never ran";
  }
}

// A step whose sequences take different forms: each gets what it gets alone.
TEST(Mla, BothFormsInOneStepGiveTheSameBytes) {
  const auto runner = testing::load(testing::tiny_deepseek2(), testing::small_options());
  const std::int64_t vocab = runner->config().vocab;
  const std::vector<std::int64_t> lengths{1, 40, 2, 1, 45, 1};
  Step step;
  std::vector<std::vector<float>> alone;
  std::vector<bool> forms;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    const auto tokens = testing::some_tokens(lengths[i], vocab, static_cast<std::uint32_t>(i));
    alone.push_back(testing::all_logits(*runner, tokens, lengths[i]));
    step.sequences.push_back(testing::rows(runner->open(), 0, tokens, Logits::kAll));
    forms.push_back(prefer_decompressed(runner->config(), lengths[i], lengths[i], 1.0));
  }
  ASSERT_EQ(forms, (std::vector<bool>{false, true, false, false, true, false}));
  const StepResult result = runner->run(step);
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    EXPECT_TRUE(same_bytes(result.sequences[i].logits, alone[i])) << i;
  }
}

TEST(Mla, KimiPrefersDecompressionFromSomeRowsOn) {
  Config config;
  config.n_heads = 64;
  config.mla = {.q_lora = 1536, .kv_lora = 512, .d_nope = 128, .d_rope = 64, .d_v = 128};
  // FACTS.md: above about 171 by multiplications alone.
  EXPECT_FALSE(prefer_decompressed(config, 160, 16384, 1.0));
  EXPECT_TRUE(prefer_decompressed(config, 180, 16384, 1.0));
  const double eight_bits = mla_matmul_cost(quant::Qtype::kQ8_0);
  EXPECT_EQ(mla_matmul_cost(quant::Qtype::kF16), 1.0);
  for (const std::int64_t n_keys : {512, 16384, 262144}) {
    EXPECT_FALSE(prefer_decompressed(config, 1, n_keys, eight_bits));
    EXPECT_FALSE(prefer_decompressed(config, 32, n_keys, eight_bits));
    EXPECT_TRUE(prefer_decompressed(config, 128, n_keys, eight_bits));
  }
}

}  // namespace
}  // namespace moesaic::model
