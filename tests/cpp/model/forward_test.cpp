// The borders of a slice's forward pass, as a cluster's worker will meet them: what comes from
// another machine is checked before it is computed with.
#include "model/run/forward.h"

#include <gtest/gtest.h>

#include "base/errors.h"
#include "model/tiny_model.h"

namespace moesaic::model {
namespace {

class ForwardBorders : public ::testing::Test {
 protected:
  ForwardBorders()
      : model_(understand(testing::build(testing::tiny_llama()))),
        backend_(backend::make_backend("cpu", {.n_threads = 1})),
        weights_(load_weights(*backend_, model_, back(), {})),
        kv_(backend_->make_kv(kv_spec(model_.config, back(), testing::small_options(), 96))),
        forward_(*backend_, model_.config, back(), weights_, *kv_, exchange_,
                 {.max_rows = 8, .n_ctx = 20}) {}

  Slice back() const { return {1, 2, false, true}; }

  // Runs n hidden rows of one sequence from `start` on.
  void run(std::int64_t n, std::int64_t start, std::size_t n_values) {
    const std::vector<std::int32_t> pages{0, 1};
    const std::vector<backend::SequenceRows> sequences{{0, n, start, pages}};
    const std::vector<float> hidden(n_values, 0.5F);
    forward_.run({.tokens = {}, .hidden = hidden, .sequences = sequences}, {});
  }
  std::size_t values(std::int64_t n) const {
    return static_cast<std::size_t>(n * model_.config.d_model);
  }

  ModelFile model_;
  std::unique_ptr<backend::Backend> backend_;
  ModelWeights weights_;
  std::unique_ptr<backend::KvStore> kv_;
  NoExchange exchange_;
  Forward forward_;
};

TEST_F(ForwardBorders, RowsPositionsAndSizesAreChecked) {
  run(8, 0, values(8));
  run(8, 12, values(8));
  EXPECT_THROW(run(9, 0, values(9)), ArgumentError) << "more rows than planned for";
  EXPECT_THROW(run(8, 13, values(8)), ArgumentError) << "past n_ctx";
  EXPECT_THROW(run(4, 0, values(4) - 1), ArgumentError) << "a value is missing";
  EXPECT_THROW(run(4, 0, values(5)), ArgumentError) << "a row too many";
  EXPECT_THROW(run(0, 0, 0), Error);
  EXPECT_THROW(forward_.run({}, {}), ArgumentError) << "no rows at all";
}

TEST_F(ForwardBorders, ASliceHoldsItsOwnWeightsOnly) {
  const WeightBytes whole = weight_bytes(model_, Slice::whole(model_.config), false);
  const WeightBytes front = weight_bytes(model_, {0, 1, true, false}, false);
  const WeightBytes rest = weight_bytes(model_, back(), false);
  EXPECT_EQ(front.mapped + rest.mapped, whole.mapped);
  EXPECT_EQ(weights_.layers.size(), 1U);
  EXPECT_EQ(weights_.token_embd, nullptr);
  ASSERT_NE(weights_.output, nullptr);
}

}  // namespace
}  // namespace moesaic::model
