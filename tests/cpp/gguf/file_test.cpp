// Good files: every value type, v2 and v3, tensors and their bytes, the writer's round trip, and
// what one bad byte does.
#include "gguf/file.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>

#include "base/errors.h"
#include "gguf/writer.h"
#include "raw_file.h"

namespace moesaic::gguf {
namespace {

using quant::Qtype;

std::vector<std::uint8_t> counting(std::size_t n) {
  std::vector<std::uint8_t> bytes(n);
  for (std::size_t i = 0; i < n; ++i) bytes[i] = static_cast<std::uint8_t>(i * 7 + 1);
  return bytes;
}

Writer small_writer(std::uint32_t alignment = 32) {
  Writer writer(alignment);
  writer.add_string("general.architecture", "llama");
  writer.add_uint("u8", ValueType::kU8, 200);
  writer.add_int("i8", ValueType::kI8, -100);
  writer.add_uint("u16", ValueType::kU16, 60000);
  writer.add_int("i16", ValueType::kI16, -30000);
  writer.add_uint("u32", ValueType::kU32, 4000000000U);
  writer.add_int("i32", ValueType::kI32, -2000000000);
  writer.add_uint("u64", ValueType::kU64, UINT64_MAX);
  writer.add_int("i64", ValueType::kI64, INT64_MIN);
  writer.add_float("f32", ValueType::kF32, 1e-5);
  writer.add_float("f64", ValueType::kF64, 1e-5);
  writer.add_bool("yes", true);
  writer.add_bool("no", false);
  const std::vector<std::string> strings = {"one", "", std::string("nul\0byte", 8), "\xC3\xA4"};
  writer.add_strings("strings", strings);
  const float floats[] = {1.5F, -2.5F};
  writer.add_array("floats", ValueType::kF32, 2,
                   {reinterpret_cast<const std::uint8_t*>(floats), 8});
  writer.add_array("none", ValueType::kU8, 0, {});
  const std::uint64_t ne_a[] = {8, 3};
  writer.add_tensor("a.weight", Qtype::kF32, ne_a, counting(96));
  const std::uint64_t ne_b[] = {256, 2, 1, 2};
  writer.add_tensor("b.weight", Qtype::kQ4_K, ne_b, counting(4 * 144));
  const std::uint64_t ne_c[] = {32};
  writer.add_tensor("c.weight", Qtype::kMXFP4, ne_c, counting(17));
  return writer;
}

void expect_small(const File& file) {
  EXPECT_EQ(file.version(), 3U);
  EXPECT_EQ(file.find("general.architecture")->as_string(), "llama");
  EXPECT_EQ(file.find("u8")->as_int(), 200);
  EXPECT_EQ(file.find("i8")->as_int(), -100);
  EXPECT_EQ(file.find("u16")->as_uint(), 60000U);
  EXPECT_EQ(file.find("i16")->as_int(), -30000);
  EXPECT_EQ(file.find("u32")->as_uint(), 4000000000U);
  EXPECT_EQ(file.find("i32")->as_int(), -2000000000);
  EXPECT_EQ(file.find("u64")->as_uint(), UINT64_MAX);
  EXPECT_EQ(file.find("i64")->as_int(), INT64_MIN);
  EXPECT_EQ(file.find("f32")->as_float(), static_cast<double>(1e-5F));
  EXPECT_EQ(file.find("f64")->as_float(), 1e-5);
  EXPECT_EQ(file.find("u32")->as_float(), 4e9);
  EXPECT_TRUE(file.find("yes")->as_bool());
  EXPECT_FALSE(file.find("no")->as_bool());
  const auto strings = file.find("strings")->as_array().strings();
  ASSERT_EQ(strings.size(), 4U);
  EXPECT_EQ(strings[2], std::string_view("nul\0byte", 8));
  const ArrayView floats = file.find("floats")->as_array();
  EXPECT_EQ(floats.elem_type(), ValueType::kF32);
  EXPECT_EQ(floats.count(), 2U);
  EXPECT_EQ(floats.bytes().size(), 8U);
  EXPECT_EQ(file.find("none")->as_array().count(), 0U);
  EXPECT_EQ(file.find("absent"), nullptr);

  ASSERT_EQ(file.tensors().size(), 3U);
  const TensorInfo* b = file.find_tensor("b.weight");
  ASSERT_NE(b, nullptr);
  EXPECT_EQ(b->type, Qtype::kQ4_K);
  EXPECT_EQ(b->ne, (std::vector<std::uint64_t>{256, 2, 1, 2}));
  EXPECT_EQ(b->n_elems, 1024U);
  EXPECT_EQ(b->n_rows(), 4U);
  EXPECT_EQ(b->n_bytes, 576U);
  EXPECT_EQ(b->offset % file.alignment(), 0U);
  const auto bytes = file.bytes(*b);
  EXPECT_EQ(std::vector<std::uint8_t>(bytes.begin(), bytes.end()), counting(576));
  EXPECT_EQ(file.find_tensor("d.weight"), nullptr);
}

TEST(File, EveryValueTypeComesBack) {
  const std::vector<std::uint8_t> bytes = small_writer().finish();
  const auto file = File::from_memory(bytes, "small");
  expect_small(*file);
  EXPECT_EQ(file->alignment(), 32U);
  EXPECT_EQ(file->metadata().size(), 16U);
  EXPECT_EQ(file->metadata()[1].key(), "u8");  // file order
}

TEST(File, OtherAlignments) {
  for (const std::uint32_t alignment : {8U, 64U, 4096U}) {
    const std::vector<std::uint8_t> bytes = small_writer(alignment).finish();
    const auto file = File::from_memory(bytes, "small");
    expect_small(*file);
    EXPECT_EQ(file->alignment(), alignment);
  }
}

TEST(File, Version2IsRead) {
  std::vector<std::uint8_t> bytes = small_writer().finish();
  bytes[4] = 2;
  EXPECT_EQ(File::from_memory(bytes, "v2")->version(), 2U);
}

// The last tensor's padding is not needed; one byte less of it is.
TEST(File, LastPaddingMayBeAbsent) {
  std::vector<std::uint8_t> bytes = small_writer().finish();
  bytes.resize(bytes.size() - 15);  // c.weight: 17 bytes of 32
  expect_small(*File::from_memory(bytes, "small"));
  bytes.pop_back();
  EXPECT_THROW(File::from_memory(bytes, "small"), FormatError);
}

TEST(File, ScalarTensorHasOneElement) {
  const std::string bytes = RawFile().tensor({"s", 0, {}, 0, 0}).data(4).build();
  const auto file = load(bytes);
  EXPECT_EQ(file->tensors()[0].n_elems, 1U);
  EXPECT_EQ(file->tensors()[0].n_bytes, 4U);
}

TEST(File, WrongGettersNameTheKey) {
  const std::vector<std::uint8_t> bytes = small_writer().finish();
  const auto file = File::from_memory(bytes, "small");
  const auto says = [](const auto& call, const std::string& key) {
    try {
      call();
      FAIL() << key;
    } catch (const FormatError& error) {
      EXPECT_NE(std::string(error.what()).find(key), std::string::npos) << error.what();
    }
  };
  says([&] { file->find("f32")->as_int(); }, "\"f32\"");
  says([&] { file->find("u64")->as_int(); }, "\"u64\"");
  says([&] { file->find("i8")->as_uint(); }, "\"i8\"");
  says([&] { file->find("u8")->as_bool(); }, "\"u8\"");
  says([&] { file->find("yes")->as_float(); }, "\"yes\"");
  says([&] { file->find("u8")->as_string(); }, "\"u8\"");
  says([&] { file->find("strings")->as_string(); }, "\"strings\"");
  says([&] { file->find("u8")->as_array(); }, "\"u8\"");
  EXPECT_THROW(file->find("floats")->as_array().strings(), FormatError);
}

TEST(Writer, RefusesWhatCannotBeRead) {
  Writer writer;
  writer.add_bool("twice", true);
  EXPECT_THROW(writer.add_bool("twice", true), ArgumentError);
  EXPECT_THROW(writer.add_bool("", true), ArgumentError);
  EXPECT_THROW(writer.add_uint("a", ValueType::kU8, 256), ArgumentError);
  EXPECT_THROW(writer.add_int("a", ValueType::kU8, -1), ArgumentError);
  EXPECT_THROW(writer.add_int("a", ValueType::kI8, -129), ArgumentError);
  EXPECT_THROW(writer.add_uint("a", ValueType::kF32, 1), ArgumentError);
  EXPECT_THROW(writer.add_float("a", ValueType::kU32, 1), ArgumentError);
  EXPECT_THROW(writer.add_array("a", ValueType::kString, 0, {}), ArgumentError);
  EXPECT_THROW(writer.add_array("a", ValueType::kU32, 2, counting(4)), ArgumentError);
  const std::uint64_t ne[] = {32};
  EXPECT_THROW(writer.add_tensor("t", Qtype::kQ8_0, ne, counting(33)), ArgumentError);
  const std::uint64_t odd[] = {31};
  EXPECT_THROW(writer.add_tensor("t", Qtype::kQ8_0, odd, counting(34)), ArgumentError);
  const std::uint64_t zero[] = {32, 0};
  EXPECT_THROW(writer.add_tensor("t", Qtype::kQ8_0, zero, {}), ArgumentError);
  EXPECT_THROW(writer.add_tensor("t", Qtype::kF32, {}, counting(4)), ArgumentError);
  EXPECT_THROW(Writer(33), ArgumentError);
  EXPECT_THROW(Writer(0), ArgumentError);
}

TEST(Writer, WriteIsFinishOnDisk) {
  const auto path = std::filesystem::temp_directory_path() /
                    ("moesaic_writer_" + std::to_string(getpid()) + ".gguf");
  const Writer writer = small_writer();
  writer.write(path.string());
  std::ifstream in(path, std::ios::binary);
  const std::vector<char> chars((std::istreambuf_iterator<char>(in)),
                                std::istreambuf_iterator<char>());
  EXPECT_EQ(std::vector<std::uint8_t>(chars.begin(), chars.end()), writer.finish());
  const auto file = File::open(path.string());
  expect_small(*file);
  std::filesystem::remove(path);
  expect_small(*file);  // the mapping outlives the name
  EXPECT_THROW(writer.write("/nonexistent/folder/file.gguf"), IoError);
}

// What a load gives, as one string, for comparisons.
std::string summary(const File& file) {
  std::string out;
  for (const Value& value : file.metadata()) out += std::string(value.key()) + ";";
  for (const TensorInfo& t : file.tensors()) {
    out += t.name + ":" + std::to_string(t.offset) + "+" + std::to_string(t.n_bytes) + ";";
    const auto bytes = file.bytes(t);
    EXPECT_EQ(bytes.size(), t.n_bytes);
    unsigned sum = 0;
    for (const std::uint8_t b : bytes) sum = sum * 31 + b;
    out += std::to_string(sum);
  }
  return out;
}

TEST(Robust, EveryTruncationIsRefusedOrTheSame) {
  const std::vector<std::uint8_t> whole = small_writer().finish();
  const std::string want = summary(*File::from_memory(whole, "m"));
  int n_same = 0;
  for (std::size_t n = 0; n < whole.size(); ++n) {
    // A copy of exactly n bytes, so that a sanitizer sees a read past the end.
    const std::vector<std::uint8_t> cut(whole.begin(),
                                        whole.begin() + static_cast<std::ptrdiff_t>(n));
    try {
      EXPECT_EQ(summary(*File::from_memory(cut, "m")), want);
      ++n_same;
    } catch (const FormatError&) {
    }
  }
  EXPECT_EQ(n_same, 15);  // the padding of the last tensor
}

TEST(Robust, MutationsAreRefusedOrReadInBounds) {
  const std::vector<std::uint8_t> whole = small_writer().finish();
  std::mt19937 engine(1);
  int n_refused = 0;
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::uint8_t> bytes = whole;
    const int n_changes = 1 + static_cast<int>(engine() % 3);
    for (int i = 0; i < n_changes; ++i) {
      const std::size_t at = engine() % bytes.size();
      switch (engine() % 4) {
        case 0:
          bytes[at] = static_cast<std::uint8_t>(engine());
          break;
        case 1:
          bytes[at] ^= static_cast<std::uint8_t>(1U << (engine() % 8));
          break;
        case 2:
          for (std::size_t j = at; j < std::min(at + 8, bytes.size()); ++j) bytes[j] = 0xFF;
          break;
        default:
          bytes.erase(bytes.begin() + static_cast<std::ptrdiff_t>(at));
      }
    }
    try {
      const auto file = File::from_memory(bytes, "m");
      summary(*file);
      for (const Value& value : file->metadata()) {
        if (value.type() == ValueType::kArray &&
            value.as_array().elem_type() == ValueType::kString) {
          for (const std::string_view text : value.as_array().strings()) {
            ASSERT_LE(text.size(), bytes.size());
          }
        }
      }
    } catch (const FormatError& error) {
      ++n_refused;
      ASSERT_LT(std::string(error.what()).size(), 1000U);
    }
  }
  EXPECT_GT(n_refused, 5000);
}

// 100,000 tensors of one element each: sorting, not comparing all pairs.
TEST(Robust, ManyTensorsTakeMilliseconds) {
  RawFile raw;
  constexpr std::uint64_t kTensors = 100000;
  for (std::uint64_t i = 0; i < kTensors; ++i) {
    raw.tensor({strcat("t", i), 1, {1}, 0, (kTensors - 1 - i) * 32});
  }
  const std::string bytes = raw.data(kTensors * 32).build();
  const auto start = std::chrono::steady_clock::now();
  const auto file = load(bytes);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  EXPECT_EQ(file->tensors().size(), kTensors);
  EXPECT_NE(file->find_tensor("t99999"), nullptr);
  EXPECT_LT(took.count(), 2.0);  // far below what comparing 5e9 pairs takes, also under sanitizers
}

}  // namespace
}  // namespace moesaic::gguf
