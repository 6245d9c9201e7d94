// A layer's rows in pieces, with a pause between any two: the same bytes as all rows at once, in
// logits, hidden rows, the cache and every capture, whatever the forms of attention.
#include <gtest/gtest.h>

#include <map>

#include "model/run/forward.h"
#include "model/run/step_results.h"
#include "model/state/kv_cache.h"
#include "model/tiny_model.h"

namespace moesaic::model {
namespace {

using testing::Recipe;
using testing::TinyOptions;

struct Family {
  const char* name;
  Recipe (*recipe)(const TinyOptions&);
  TinyOptions options;
  bool deterministic;
};
void PrintTo(const Family& family, std::ostream* out) { *out << family.name; }

class Pieces : public ::testing::TestWithParam<Family> {
 protected:
  struct Output {
    std::vector<float> logits;
    std::map<std::string, std::vector<float>> values;
    std::map<std::string, std::vector<std::int32_t>> ids;
    std::int64_t n_pauses = 0;
    bool operator==(const Output& other) const {
      return logits == other.logits && values == other.values && ids == other.ids;
    }
  };

  // Two prompts, the second after a beginning that is cached, and a sequence that decodes; the rows
  // of each piece come from `piece_rows`.
  static Output run(const std::function<std::int64_t()>& piece_rows) {
    LoadOptions options = testing::small_options();
    options.deterministic = GetParam().deterministic;
    const ModelFile model = understand(testing::build(GetParam().recipe(GetParam().options)));
    const Config& config = model.config;
    const Slice slice = Slice::whole(config);
    const auto backend = backend::make_backend("cpu", {.n_threads = 2});
    WeightOptions weight_options;
    weight_options.decompressed_mla = !options.deterministic;
    const ModelWeights weights = load_weights(*backend, model, slice, weight_options);
    KvCache kv(*backend, kv_spec(model, slice, options, 192, *backend));
    NoExchange exchange;
    Forward forward(*backend, config, slice, weights, kv.store(), exchange,
                    {.max_rows = 96, .n_ctx = 96, .deterministic = options.deterministic});
    const SequenceId ids[]{kv.open(), kv.open(), kv.open()};
    const auto pass = [&](const std::vector<SequenceStep>& sequences,
                          const std::function<std::int64_t()>& rows) {
      Step step;
      step.sequences = sequences;
      step.capture = capture_names(config);
      std::vector<KvPages::Write> writes;
      for (const SequenceStep& each : sequences) {
        writes.push_back(
            {each.sequence, each.start, static_cast<std::int64_t>(each.tokens.size())});
      }
      kv.claim(writes);
      std::vector<backend::SequenceRows> placed;
      std::vector<Captures::Rows> captured;
      std::vector<std::int32_t> tokens;
      for (const SequenceStep& each : sequences) {
        const auto begin = static_cast<std::int64_t>(tokens.size());
        const auto n = static_cast<std::int64_t>(each.tokens.size());
        placed.push_back({begin, n, each.start, kv.pages().pages(each.sequence)});
        if (each.capture) captured.push_back({begin, n});
        tokens.insert(tokens.end(), each.tokens.begin(), each.tokens.end());
      }
      Captures captures(config, step.capture, captured);
      StepResults results(step, config.vocab, &captures);
      std::vector<std::int32_t> logits_rows;
      list_logits_rows(step, logits_rows);
      Output output;
      forward.run(
          {.tokens = tokens,
           .hidden = {},
           .sequences = placed,
           .between_pieces = [&] { ++output.n_pauses; },
           .piece_rows = rows},
          {.logits_rows = logits_rows, .logits = &results, .hidden = {}, .captures = &captures});
      kv.commit(writes);
      for (const SequenceResult& result : results.finish().sequences) {
        output.logits.insert(output.logits.end(), result.logits.begin(), result.logits.end());
        for (const Captured& each : result.captures) {
          auto& values = output.values[each.name];
          values.insert(values.end(), each.values.begin(), each.values.end());
          auto& numbers = output.ids[each.name];
          numbers.insert(numbers.end(), each.ids.begin(), each.ids.end());
        }
      }
      return output;
    };
    const auto tokens = [&](std::int64_t n, std::uint32_t seed) {
      return testing::some_tokens(n, config.vocab, seed);
    };
    pass({testing::rows(ids[1], 0, tokens(20, 1), Logits::kNone),
          testing::rows(ids[2], 0, tokens(9, 2), Logits::kNone)},
         {});
    std::vector<SequenceStep> sequences{testing::rows(ids[0], 0, tokens(33, 3), Logits::kAll),
                                        testing::rows(ids[1], 20, tokens(41, 4), Logits::kAll),
                                        testing::rows(ids[2], 9, tokens(1, 5), Logits::kLast)};
    sequences[0].capture = sequences[1].capture = true;
    const Output output = pass(sequences, piece_rows);
    Output all = pass({testing::rows(ids[0], 33, {1}, Logits::kLast),  // what the cache holds now
                       testing::rows(ids[1], 61, {2}, Logits::kLast)},
                      {});
    all.logits.insert(all.logits.end(), output.logits.begin(), output.logits.end());
    all.values = output.values;
    all.ids = output.ids;
    all.n_pauses = output.n_pauses;
    return all;
  }
};
INSTANTIATE_TEST_SUITE_P(
    Model, Pieces,
    ::testing::Values(Family{"llama", testing::tiny_llama, {}, false},
                      Family{"gpt-oss", testing::tiny_gpt_oss, {.n_layers = 3}, false},
                      Family{"qwen3moe Q8_0",
                             testing::tiny_qwen3moe,
                             {.matrices = quant::Qtype::kQ8_0, .unit = 32},
                             false},
                      Family{"deepseek2", testing::tiny_deepseek2, {}, true},
                      Family{"deepseek2 decompressed", testing::tiny_deepseek2, {}, false},
                      Family{"deepseek2 Q8_0 decompressed",
                             testing::tiny_deepseek2,
                             {.matrices = quant::Qtype::kQ8_0, .unit = 32},
                             false}));

TEST_P(Pieces, GiveTheSameBytesAsAllRowsAtOnce) {
  const Output whole = run({});
  ASSERT_FALSE(whole.logits.empty());
  ASSERT_GT(whole.values.size(), 5U);
  for (const std::int64_t rows : {1, 7, 32, 33, 74, 75}) {
    const Output cut = run([&] { return rows; });
    EXPECT_TRUE(cut == whole) << rows;
    const std::int64_t n_layers = GetParam().options.n_layers;
    const std::int64_t n_more = (75 + rows - 1) / rows - 1;
    EXPECT_EQ(cut.n_pauses, whole.n_pauses + n_layers * n_more) << rows;
  }
  int n = 0;
  EXPECT_TRUE(run([&] { return n++ % 3 == 0 ? 1000 : n % 11; }) == whole) << "as they come";
}

}  // namespace
}  // namespace moesaic::model
