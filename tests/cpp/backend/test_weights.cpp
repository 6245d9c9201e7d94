// Weights from a file: slices by expert and row, at odd addresses, and what is refused.
#include <algorithm>

#include "backend/rig.h"
#include "base/cancel.h"
#include "base/errors.h"
#include "gguf/file.h"
#include "gguf/writer.h"

namespace moesaic::backend::test {
namespace {

using quant::Qtype;

class Weights : public Conformance {};

// A file in memory whose tensor bytes lie at an odd address.
class OddFile {
 public:
  explicit OddFile(const gguf::Writer& writer) {
    const std::vector<std::uint8_t> bytes = writer.finish();
    memory_.resize(bytes.size() + 1);
    std::copy(bytes.begin(), bytes.end(), memory_.begin() + 1);
    file_ = gguf::File::from_memory({memory_.data() + 1, bytes.size()}, "odd");
  }
  WeightSource source(const char* name, std::int64_t expert, std::int64_t n_experts,
                      std::int64_t row, std::int64_t n_rows) const {
    return {file_, file_->find_tensor(name), expert, n_experts, row, n_rows};
  }

 private:
  std::vector<std::uint8_t> memory_;
  std::shared_ptr<const gguf::File> file_;
};

std::vector<std::uint8_t> encoded(Qtype type, const std::vector<float>& values) {
  const quant::QtypeTraits& traits = quant::traits(type);
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(quant::row_bytes(type, values.size())));
  traits.encode(values.data(), static_cast<std::int64_t>(values.size()) / traits.block_elems,
                bytes.data());
  return bytes;
}

TEST_P(Weights, SlicesOfAFileMultiplyLikeTheWhole) {
  Rig rig(GetParam());
  const std::int64_t n_experts = 4;
  const std::int64_t rows = 40;
  const std::int64_t cols = 256;
  for (const Qtype type : {Qtype::kF32, Qtype::kF16, Qtype::kQ8_0, Qtype::kQ4_K}) {
    const std::vector<float> values = random_values(n_experts * rows * cols, 1);
    gguf::Writer writer;
    writer.add_tensor("w", type, std::vector<std::uint64_t>{256, 40, 4}, encoded(type, values));
    const OddFile file(writer);
    const Weight* whole = rig.weight(type, n_experts, rows, cols, values);
    const std::unique_ptr<Weight> slice = rig->load(file.source("w", 1, 2, 8, 25));
    ASSERT_EQ(slice->n_experts(), 2);
    ASSERT_EQ(slice->rows(), 25);
    ASSERT_EQ(slice->cols(), cols);
    ASSERT_EQ(slice->type(), type);
    ASSERT_EQ(slice->n_bytes(), 50 * quant::row_bytes(type, 256));
    rig->prefault(*slice);
    const std::int64_t n = 3;
    const std::vector<float> x = random_values(n * n_experts * cols, 2);
    const Mat all = rig.mat(n, n_experts * rows);
    const Mat part = rig.mat(n, 2 * 25);
    const Mat in = rig.mat(n, n_experts * cols, x);
    rig->matmul_heads(in, cols, *whole, all, rows);
    rig->matmul_heads(in.col_range(cols, 2 * cols), cols, *slice, part, 25);
    const std::vector<float> want = rig.get(all);
    const std::vector<float> got = rig.get(part);
    for (std::int64_t i = 0; i < n * 50; ++i) {
      const std::int64_t e = i / 25 % 2 + 1;
      ASSERT_EQ(got[static_cast<std::size_t>(i)],
                want[static_cast<std::size_t>((i / 50 * n_experts + e) * rows + 8 + i % 25)]);
    }
  }
}

TEST_P(Weights, RefusesWhatIsNotThere) {
  Rig rig(GetParam());
  gguf::Writer writer;
  writer.add_tensor("w", Qtype::kF32, std::vector<std::uint64_t>{8, 4, 2},
                    std::vector<std::uint8_t>(8 * 4 * 2 * 4));
  writer.add_tensor("i", Qtype::kI32, std::vector<std::uint64_t>{8}, std::vector<std::uint8_t>(32));
  const OddFile file(writer);
  EXPECT_THROW(rig->load(file.source("w", 1, 2, 0, 4)), InternalError);
  EXPECT_THROW(rig->load(file.source("w", -1, 1, 0, 4)), InternalError);
  EXPECT_THROW(rig->load(file.source("w", 0, 1, 3, 2)), InternalError);
  EXPECT_THROW(rig->load(file.source("w", 0, 1, 0, 0)), InternalError);
  EXPECT_THROW(rig->load(file.source("missing", 0, 1, 0, 1)), InternalError);
  EXPECT_THROW(rig->load(file.source("i", 0, 1, 0, 1)), FormatError);
  EXPECT_THROW(rig->make_weight(Qtype::kQ8_0, 1, 1, 31, std::vector<float>(31)), InternalError);
  EXPECT_THROW(rig->make_weight(Qtype::kF32, 1, 2, 3, std::vector<float>(5)), InternalError);
}

TEST_P(Weights, PrefaultStopsWhenCancelled) {
  Rig rig(GetParam());
  gguf::Writer writer;
  writer.add_tensor("w", Qtype::kF32, std::vector<std::uint64_t>{1 << 20},
                    std::vector<std::uint8_t>(4 << 20));
  const OddFile file(writer);
  const std::unique_ptr<Weight> weight = rig->load(file.source("w", 0, 1, 0, 1));
  CancelFlag cancel;
  cancel.set();
  rig->set_cancel(&cancel);
  EXPECT_THROW(rig->prefault(*weight), CancelledError);
  rig->set_cancel(nullptr);
  rig->prefault(*weight);
}

INSTANTIATE_TEST_SUITE_P(Backends, Weights, testing::ValuesIn(all_params()), param_name);

}  // namespace
}  // namespace moesaic::backend::test
