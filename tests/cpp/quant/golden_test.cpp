// Every decoder against what the gguf package decodes (tests/data/make_quant_bins.py; Q1_0 and Q2_0
// by formula: make_q1_q2_goldens.py), bit for bit; only a NaN need not have the same sign and
// payload.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "quant/qtype.h"

namespace moesaic::quant {
namespace {

struct Golden {
  std::uint32_t type, n_blocks, block_bytes, block_elems;
  std::vector<std::uint8_t> blocks;  // (n_blocks, block_bytes)
  std::vector<float> values;         // (n_blocks, block_elems)
};

Golden read_golden(const std::string& name) {
  const std::string path = std::string(MOESAIC_TEST_DATA) + "/quant/golden_" + name + ".bin";
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  Golden golden{};
  std::uint32_t header[4] = {};
  in.read(reinterpret_cast<char*>(header), sizeof header);
  golden.type = header[0];
  golden.n_blocks = header[1];
  golden.block_bytes = header[2];
  golden.block_elems = header[3];
  golden.blocks.resize(std::size_t{header[1]} * header[2]);
  golden.values.resize(std::size_t{header[1]} * header[3]);
  in.read(reinterpret_cast<char*>(golden.blocks.data()),
          static_cast<std::streamsize>(golden.blocks.size()));
  in.read(reinterpret_cast<char*>(golden.values.data()),
          static_cast<std::streamsize>(golden.values.size() * sizeof(float)));
  EXPECT_TRUE(in.good()) << path;
  return golden;
}

class EveryType : public testing::TestWithParam<QtypeTraits> {};

TEST_P(EveryType, DecodesBitForBit) {
  const QtypeTraits& traits = GetParam();
  const Golden golden = read_golden(std::string(traits.name));
  ASSERT_EQ(golden.type, static_cast<std::uint32_t>(traits.type));
  ASSERT_EQ(golden.block_bytes, static_cast<std::uint32_t>(traits.block_bytes));
  ASSERT_EQ(golden.block_elems, static_cast<std::uint32_t>(traits.block_elems));
  std::vector<float> got(golden.values.size(), 12345.0F);
  traits.decode(golden.blocks.data(), golden.n_blocks, got.data());
  int n_finite = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(golden.values[i])) {
      ASSERT_TRUE(std::isnan(got[i])) << "element " << i;
      continue;
    }
    n_finite += std::isfinite(got[i]);
    ASSERT_EQ(std::bit_cast<std::uint32_t>(got[i]), std::bit_cast<std::uint32_t>(golden.values[i]))
        << "element " << i << ": got " << got[i] << ", need " << golden.values[i];
  }
  EXPECT_GT(n_finite, static_cast<int>(got.size() / 2));
}

// A view into a file can begin anywhere.
TEST_P(EveryType, DecodesUnaligned) {
  const QtypeTraits& traits = GetParam();
  const Golden golden = read_golden(std::string(traits.name));
  std::vector<std::uint8_t> shifted(golden.blocks.size() + 1);
  std::memcpy(shifted.data() + 1, golden.blocks.data(), golden.blocks.size());
  std::vector<float> a(golden.values.size());
  std::vector<float> b(golden.values.size());
  traits.decode(golden.blocks.data(), golden.n_blocks, a.data());
  traits.decode(shifted.data() + 1, golden.n_blocks, b.data());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0);
}

std::vector<QtypeTraits> weight_types() {
  std::vector<QtypeTraits> types;
  for (const QtypeTraits& row : all_qtypes()) {
    if (row.is_weight) types.push_back(row);
  }
  return types;
}

TEST(Table, HoldsThe28WeightTypes) { EXPECT_EQ(weight_types().size(), 28U); }

INSTANTIATE_TEST_SUITE_P(Types, EveryType, testing::ValuesIn(weight_types()),
                         [](const auto& param) { return std::string(param.param.name); });

}  // namespace
}  // namespace moesaic::quant
