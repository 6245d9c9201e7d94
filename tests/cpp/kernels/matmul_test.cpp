// Every weight type x every table x ragged shapes: the generic table against plain double sums of
// decoded weights, every other table against the generic one bit by bit, and within a table few
// against many and cuts against the whole.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "kernels/random_weights.h"
#include "kernels/unpack.h"

namespace moesaic::kernels::testing {
namespace {

struct Shape {
  std::int64_t n_rows;
  std::int64_t n_cols;
  std::int64_t n_blocks;  // of 256, of 32, or of 10 floats
};

struct Operands {
  Operands(quant::Qtype t, std::int64_t rows, std::int64_t cols, std::int64_t row_k, unsigned seed)
      : type(t),
        n_rows(rows),
        n_cols(cols),
        k(row_k),
        rng(seed),
        weights(random_weights(t, rows, row_k, rng)),
        x(random_floats(static_cast<std::size_t>(cols * row_k), rng)),
        row_bytes(quant::row_bytes(t, static_cast<std::uint64_t>(row_k))) {}
  quant::Qtype type;
  std::int64_t n_rows;
  std::int64_t n_cols;
  std::int64_t k;
  std::mt19937 rng;
  std::vector<std::uint8_t> weights;  // (n_rows, k) blocks
  std::vector<float> x;               // (n_cols, k)
  std::size_t row_bytes;
};

// One table's outputs (n_cols, n_rows), with the rows cut at `cut` and the columns at `col_cut`.
std::vector<float> run(const Table& table, const Operands& in, bool many, std::int64_t cut,
                       std::int64_t col_cut) {
  const MatmulKernel& kernel = table.matmul[static_cast<std::uint32_t>(in.type)];
  const std::size_t act_bytes = act_row_bytes(kernel.act, in.k);
  Aligned acts(act_bytes * static_cast<std::size_t>(in.n_cols));
  table.prepare(kernel.act, in.x.data(), in.k, in.n_cols, in.k, acts.data());
  std::vector<float> out(static_cast<std::size_t>(in.n_cols * in.n_rows),
                         std::numeric_limits<float>::quiet_NaN());
  std::vector<const std::uint8_t*> act_rows;
  for (std::int64_t c = 0; c < in.n_cols; ++c) {
    act_rows.push_back(acts.data() + static_cast<std::size_t>(c) * act_bytes);
  }
  Aligned scratch(matmul_scratch_bytes(in.k));
  for (std::int64_t c0 = 0; c0 < in.n_cols; c0 += col_cut) {
    const std::int64_t n_cols = std::min(col_cut, in.n_cols - c0);
    Aligned packed(table.packed_bytes(kernel.act, n_cols, in.k));
    if (many) table.pack(kernel.act, act_rows.data() + c0, n_cols, in.k, packed.data());
    for (std::int64_t r0 = 0; r0 < in.n_rows; r0 += cut) {
      std::vector<float*> outs;
      for (std::int64_t c = 0; c < n_cols; ++c) {
        outs.push_back(out.data() + (c0 + c) * in.n_rows + r0);
      }
      // Only the rows of the cut, ending where their memory ends: a sanitizer sees over-reading.
      const std::int64_t n_rows = std::min(cut, in.n_rows - r0);
      const auto begin = in.weights.begin() +
                         static_cast<std::ptrdiff_t>(static_cast<std::size_t>(r0) * in.row_bytes);
      const std::vector<std::uint8_t> part(
          begin,
          begin + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(n_rows) * in.row_bytes));
      // What comes next is only fetched ahead, never read.
      const MatmulJob job{part.data(),
                          in.row_bytes,
                          n_rows,
                          in.k,
                          many ? nullptr : act_rows.data() + c0,
                          n_cols,
                          outs.data(),
                          scratch.data(),
                          cut < in.n_rows ? part.data() + 1 : nullptr};
      if (many) {
        kernel.many(job, {packed.data(), n_cols});
      } else {
        kernel.few(job);
      }
    }
  }
  return out;
}

std::vector<float> run(const Table& table, const Operands& in, bool many) {
  return run(table, in, many, in.n_rows, in.n_cols);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

std::vector<quant::Qtype> weight_types() {
  std::vector<quant::Qtype> types;
  for (const quant::QtypeTraits& row : quant::all_qtypes()) {
    if (row.is_weight) types.push_back(row.type);
  }
  return types;
}

// A row length: whole blocks, or for float weights any number.
std::int64_t row_length(quant::Qtype type, std::int64_t n_blocks) {
  const int elems = quant::traits(type).block_elems;
  return elems == 1 ? 10 * n_blocks + 3 : elems * n_blocks;
}

class Matmul : public ::testing::TestWithParam<quant::Qtype> {};

// Sum over a row of what rounding errors scale with: |terms| before they cancel.
double row_norm(quant::Qtype type, const std::uint8_t* row, std::int64_t k,
                const std::vector<float>& decoded, const std::vector<double>& act) {
  double norm = 0.0;
  for (std::int64_t i = 0; i < k; ++i) {
    norm += std::abs(static_cast<double>(decoded[static_cast<std::size_t>(i)]) *
                     act[static_cast<std::size_t>(i)]);
  }
  if (const SuperType* super = super_type(type); super != nullptr && super->has_min) {
    SuperBlock block;
    for (std::int64_t i = 0; i < k; ++i) {
      if (i % 256 == 0) super->unpack(row + i / 256 * super->block_bytes, block);
      norm += 2.0 * std::abs(static_cast<double>(block.dmin) * block.min[i % 256 / 16] *
                             act[static_cast<std::size_t>(i)]);
    }
  }
  if (const SmallType* small = small_type(type); small != nullptr && small->has_min) {
    SmallBlock block;
    for (std::int64_t i = 0; i < k; ++i) {
      if (i % 32 == 0) small->unpack(row + i / 32 * small->block_bytes, 0, block);
      norm += 2.0 * std::abs(static_cast<double>(block.min) * act[static_cast<std::size_t>(i)]);
    }
  }
  return norm;
}

TEST_P(Matmul, GenericEqualsDoubleSumsOfDecodedWeights) {
  const quant::Qtype type = GetParam();
  const Table& table = table_by_name("generic");
  const MatmulKernel& kernel = table.matmul[static_cast<std::uint32_t>(type)];
  ASSERT_NE(kernel.few, nullptr);
  for (const std::int64_t n_blocks : {1, 3, 10}) {
    const Operands in(type, 5, 3, row_length(type, n_blocks), 17);
    const std::vector<float> out = run(table, in, false);
    std::vector<float> decoded(static_cast<std::size_t>(in.k));
    Aligned prepared(act_row_bytes(kernel.act, in.k));
    for (std::int64_t c = 0; c < in.n_cols; ++c) {
      table.prepare(kernel.act, in.x.data() + c * in.k, in.k, 1, in.k, prepared.data());
      const std::vector<double> act = read_prepared(kernel.act, prepared.data(), in.k);
      for (std::int64_t r = 0; r < in.n_rows; ++r) {
        const std::uint8_t* row = in.weights.data() + static_cast<std::size_t>(r) * in.row_bytes;
        const quant::QtypeTraits& traits = quant::traits(type);
        traits.decode(row, in.k / traits.block_elems, decoded.data());
        double expected = 0.0;
        for (std::int64_t i = 0; i < in.k; ++i) {
          expected += static_cast<double>(decoded[static_cast<std::size_t>(i)]) *
                      act[static_cast<std::size_t>(i)];
        }
        // Roundings on the way of a term: decoding 2, its block 4, one addition per block; the
        // sixteen lanes of float types add 4 for the tree.
        const double steps =
            10.0 + static_cast<double>(in.k) / (kernel.act == ActFormat::kF32 ? 16 : 32);
        const double tolerance = steps * 0x1p-24 * row_norm(type, row, in.k, decoded, act);
        EXPECT_NEAR(out[static_cast<std::size_t>(c * in.n_rows + r)], expected, tolerance)
            << traits.name << " k " << in.k << " row " << r << " column " << c;
      }
    }
  }
}

TEST_P(Matmul, EveryTableGivesTheBitsOfTheGenericOne) {
  const quant::Qtype type = GetParam();
  constexpr Shape kShapes[] = {{1, 1, 1},   {2, 2, 2},   {3, 1, 3},  {17, 3, 4},   {70, 1, 9},
                               {33, 5, 5},  {16, 8, 8},  {19, 9, 7}, {1, 40, 3},   {40, 23, 6},
                               {70, 40, 1}, {8, 16, 18}, {15, 7, 2}, {48, 17, 16}, {17, 9, 28}};
  for (const Shape& shape : kShapes) {
    const Operands in(type, shape.n_rows, shape.n_cols, row_length(type, shape.n_blocks), 5);
    const std::vector<float> expected = run(table_by_name("generic"), in, false);
    for (const float x : expected) ASSERT_TRUE(std::isfinite(x));
    for (const Table* table : available_tables()) {
      const std::string where = std::string(table->isa) + " " +
                                std::string(quant::traits(type).name) + " rows " +
                                std::to_string(shape.n_rows) + " columns " +
                                std::to_string(shape.n_cols) + " k " + std::to_string(in.k);
      ASSERT_TRUE(same_bits(run(*table, in, false), expected)) << where << " few";
      ASSERT_TRUE(same_bits(run(*table, in, true), expected)) << where << " many";
      if (shape.n_rows * shape.n_cols > 30) {
        ASSERT_TRUE(same_bits(run(*table, in, false, 7, 4), expected)) << where << " few, cut";
        ASSERT_TRUE(same_bits(run(*table, in, true, 11, 6), expected)) << where << " many, cut";
      }
    }
  }
}

// However many there are: tiles of every width, one, two and three of them.
TEST_P(Matmul, EveryNumberOfColumns) {
  const quant::Qtype type = GetParam();
  for (std::int64_t n_cols = 1; n_cols <= 36; ++n_cols) {
    const Operands in(type, 35, n_cols, row_length(type, 3), 7);
    const std::vector<float> expected = run(table_by_name("generic"), in, false);
    for (const Table* table : available_tables()) {
      ASSERT_TRUE(same_bits(run(*table, in, true), expected)) << table->isa << " " << n_cols;
    }
  }
}

TEST_P(Matmul, ExtremeCodesDoNotOverflow) {
  const quant::Qtype type = GetParam();
  if (quant::traits(type).block_elems == 1) return;  // float weights have no codes
  const std::int64_t k = row_length(type, 8);
  for (const int fill : {0x00, 0x7F, 0x80, 0xFF, 0x77, 0x88}) {
    Operands in(type, 16, 9, k, 3);
    const std::vector<std::uint8_t> scales = in.weights;
    std::fill(in.weights.begin(), in.weights.end(), static_cast<std::uint8_t>(fill));
    // Scales of ordinary size again, so that the result is finite.
    const quant::QtypeTraits& traits = quant::traits(type);
    const auto block_bytes = static_cast<std::size_t>(traits.block_bytes);
    for (std::size_t b = 0; b < in.weights.size(); b += block_bytes) {
      for (const int offset : f16_offsets(type)) {
        std::memcpy(&in.weights[b + static_cast<std::size_t>(offset)],
                    &scales[b + static_cast<std::size_t>(offset)], 2);
      }
      if (type == quant::Qtype::kMXFP4) in.weights[b] = 120;
      if (type == quant::Qtype::kNVFP4) std::memset(&in.weights[b], 0x30, 4);
      if (type == quant::Qtype::kIQ1_M) {
        for (std::size_t w = 0; w < 4; ++w) {
          std::uint8_t& top = in.weights[b + 49 + 2 * w];
          top = static_cast<std::uint8_t>((top & 15U) | (scales[b + 49 + 2 * w] & 0xF0U));
        }
      }
    }
    for (std::size_t i = 0; i < in.x.size(); ++i) {  // every activation at +-127
      in.x[i] = (i / 16 % 2 == 0) == (fill != 0x80) ? 1.0F : -1.0F;
      if (fill == 0xFF || fill == 0x7F) in.x[i] = fill == 0xFF ? 1.0F : -1.0F;
    }
    const std::vector<float> expected = run(table_by_name("generic"), in, false);
    for (const float value : expected) ASSERT_TRUE(std::isfinite(value));
    for (const Table* table : available_tables()) {
      EXPECT_TRUE(same_bits(run(*table, in, false), expected)) << table->isa << " " << fill;
      EXPECT_TRUE(same_bits(run(*table, in, true), expected)) << table->isa << " " << fill;
    }
  }
}

TEST_P(Matmul, KernelIsNamedAfterTableAndType) {
  for (const Table* table : available_tables()) {
    const MatmulKernel& kernel = table->matmul[static_cast<std::uint32_t>(GetParam())];
    ASSERT_NE(kernel.few, nullptr) << table->isa;
    ASSERT_NE(kernel.many, nullptr) << table->isa;
    ASSERT_NE(kernel.name, nullptr) << table->isa;
    EXPECT_EQ(std::string(kernel.name),
              std::string(table->isa) + "/" + std::string(quant::traits(GetParam()).name));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, Matmul, ::testing::ValuesIn(weight_types()), [](const auto& info) {
  return std::string(quant::traits(info.param).name);
});

}  // namespace
}  // namespace moesaic::kernels::testing
