// Files of which only the headers are here: the same directory as the whole file's, sizes checked
// by arithmetic, no bytes.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "base/errors.h"
#include "base/thrown.h"
#include "gguf/file.h"
#include "gguf/raw_file.h"
#include "gguf/writer.h"

namespace moesaic::gguf {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<std::uint8_t>;
using moesaic::testing::thrown;

std::vector<Bytes> copies(std::span<const std::span<const std::uint8_t>> headers) {
  std::vector<Bytes> out;
  for (const auto& header : headers) out.emplace_back(header.begin(), header.end());
  return out;
}

Bytes joined(const std::vector<Bytes>& parts) {
  Bytes out;
  for (const Bytes& part : parts) out.insert(out.end(), part.begin(), part.end());
  return out;
}

void expect_same_directory(const File& a, const File& b) {
  EXPECT_EQ(a.version(), b.version());
  EXPECT_EQ(a.alignment(), b.alignment());
  ASSERT_EQ(a.metadata().size(), b.metadata().size());
  for (std::size_t i = 0; i < a.metadata().size(); ++i) {
    EXPECT_EQ(a.metadata()[i].key(), b.metadata()[i].key());
    EXPECT_EQ(a.metadata()[i].type(), b.metadata()[i].type());
  }
  ASSERT_EQ(a.tensors().size(), b.tensors().size());
  for (std::size_t i = 0; i < a.tensors().size(); ++i) {
    const TensorInfo& x = a.tensors()[i];
    const TensorInfo& y = b.tensors()[i];
    EXPECT_EQ(x.name, y.name);
    EXPECT_EQ(x.file, y.file);
    EXPECT_EQ(x.offset, y.offset);
    EXPECT_EQ(x.n_bytes, y.n_bytes);
    EXPECT_EQ(x.ne, y.ne);
    EXPECT_EQ(b.find_tensor(x.name), &y);
  }
}

std::string one_file() {
  return RawFile()
      .text("general.architecture", "llama")
      .scalar<std::uint32_t>("general.alignment", ValueType::kU32, 64)
      .tensor({"a", 1, {8}, 0, 0})
      .tensor({"b", 2, {4, 6}, 0, 64})
      .data(64 + 96)
      .build();
}

TEST(Headers, HaveTheWholeFilesDirectory) {
  const std::string bytes = one_file();
  const auto whole = load(bytes);
  ASSERT_EQ(whole->headers().size(), 1U);
  EXPECT_EQ(whole->headers()[0].data(), as_bytes(bytes).data());  // a view, nothing copied
  EXPECT_LT(whole->headers()[0].size(), bytes.size() - 160 + 1);

  std::vector<Bytes> parts = copies(whole->headers());
  const Bytes all = joined(parts);
  for (const auto& file :
       {File::from_headers(std::move(parts), "m.gguf"), File::from_headers(all, "m.gguf")}) {
    expect_same_directory(*whole, *file);
    EXPECT_EQ(file->find("general.architecture")->as_string(), "llama");
    EXPECT_EQ(file->paths()[0], "m.gguf");
    ASSERT_EQ(file->headers().size(), 1U);
    EXPECT_TRUE(
        std::equal(all.begin(), all.end(), file->headers()[0].begin(), file->headers()[0].end()));
    const std::string text = thrown<ArgumentError>([&] { file->bytes(*file->find_tensor("b")); });
    EXPECT_NE(text.find("\"b\""), std::string::npos) << text;
    EXPECT_NE(text.find("weights are not here"), std::string::npos) << text;
  }
}

TEST(Headers, AFileWithoutTensorsEndsWithItsKeys) {
  const std::string bytes = RawFile().text("general.architecture", "llama").build();
  const auto whole = load(bytes);
  EXPECT_EQ(whole->headers()[0].size(), bytes.size());
  EXPECT_EQ(File::from_headers(copies(whole->headers()), "v.gguf")->tensors().size(), 0U);
}

TEST(Headers, EveryTruncationAndWhatFollowsIsRefused) {
  const std::string bytes = one_file();
  const Bytes header = copies(load(bytes)->headers())[0];
  for (std::size_t n = 0; n < header.size(); ++n) {
    const Bytes cut(header.begin(), header.begin() + static_cast<std::ptrdiff_t>(n));
    EXPECT_THROW(File::from_headers(std::vector<Bytes>{cut}, "m.gguf"), FormatError) << n;
    EXPECT_THROW(File::from_headers(std::span<const std::uint8_t>(cut), "m.gguf"), FormatError)
        << n;
  }
  Bytes longer = header;
  longer.push_back(0);
  const std::string text =
      thrown<FormatError>([&] { File::from_headers(std::vector<Bytes>{longer}, "m.gguf"); });
  EXPECT_NE(text.find("directory ends at byte"), std::string::npos) << text;
  EXPECT_THROW(File::from_headers(longer, "m.gguf"), FormatError);
  EXPECT_THROW(File::from_headers(std::vector<Bytes>{}, "m.gguf"), FormatError);
  EXPECT_THROW(File::from_headers(Bytes{}, "m.gguf"), FormatError);
}

TEST(Headers, SizesAreCheckedByArithmetic) {
  // 4 EB of tensor far beyond any file: fine without the file, but its end must fit 64 bits.
  RawFile far;
  far.tensor({"far", 1, {8}, 0, std::uint64_t{1} << 62});
  const std::string bytes = far.build();
  const Bytes header(bytes.begin(), bytes.end());
  EXPECT_EQ(File::from_headers(header, "m.gguf")->tensors()[0].n_bytes, 32U);
  RawFile wraps;
  wraps.tensor({"wraps", 1, {8}, 0, ~std::uint64_t{31}});
  const std::string wrapping = wraps.build();
  EXPECT_NE(thrown<FormatError>([&] {
              File::from_headers(Bytes(wrapping.begin(), wrapping.end()), "m.gguf");
            }).find("64 bits"),
            std::string::npos);
  RawFile twice;
  twice.tensor({"a", 1, {8}, 0, 0}).tensor({"b", 1, {8}, 0, 0});
  const std::string overlapping = twice.build();
  EXPECT_NE(thrown<FormatError>([&] {
              File::from_headers(Bytes(overlapping.begin(), overlapping.end()), "m.gguf");
            }).find("inside tensor"),
            std::string::npos);
}

class SplitHeaders : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("moesaic_headers_" + std::to_string(getpid()));
    fs::create_directories(folder_);
    for (int number = 0; number < 3; ++number) {
      Writer writer;
      if (number == 0) writer.add_string("general.architecture", "llama");
      writer.add_uint("split.no", ValueType::kU16, static_cast<std::uint64_t>(number));
      writer.add_uint("split.count", ValueType::kU16, 3);
      writer.add_int("split.tensors.count", ValueType::kI32, 2);
      const std::uint64_t ne[] = {4};
      const Bytes bytes(16, static_cast<std::uint8_t>(number));
      // The first part has keys only, as large sets have.
      if (number > 0)
        writer.add_tensor("t" + std::to_string(number), quant::Qtype::kF32, ne, bytes);
      writer.write(path(number));
    }
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string name(int number) const {
    char text[64];
    std::snprintf(text, sizeof text, "m-%05d-of-00003.gguf", number + 1);
    return text;
  }
  std::string path(int number) const { return (folder_ / name(number)).string(); }

  fs::path folder_;
};

TEST_F(SplitHeaders, TravelTogether) {
  const auto whole = File::open(path(1));
  ASSERT_EQ(whole->headers().size(), 3U);
  const Bytes all = joined(copies(whole->headers()));
  const auto file = File::from_headers(all, name(0));
  expect_same_directory(*whole, *file);
  ASSERT_EQ(file->paths().size(), 3U);
  EXPECT_EQ(file->paths()[2], name(2));
  EXPECT_EQ(file->headers().size(), 3U);
  EXPECT_THROW(file->bytes(file->tensors()[1]), ArgumentError);
  EXPECT_EQ(File::from_headers(all, "other.gguf")->paths()[1], "other.gguf (part 2)");
}

TEST_F(SplitHeaders, MissingAndMixedPartsAreRefused) {
  const std::vector<Bytes> parts = copies(File::open(path(0))->headers());
  EXPECT_THROW(File::from_headers(std::vector<Bytes>{parts[0], parts[1]}, name(0)), FormatError);
  EXPECT_THROW(File::from_headers(std::vector<Bytes>{parts[0], parts[2], parts[1]}, name(0)),
               FormatError);
  EXPECT_THROW(File::from_headers(std::vector<Bytes>{parts[0], parts[1], parts[1]}, name(0)),
               FormatError);
  EXPECT_THROW(File::from_headers(std::vector<Bytes>{parts[1]}, name(0)), FormatError);
  EXPECT_NO_THROW(File::from_headers(std::vector<Bytes>(parts), name(0)));
}

}  // namespace
}  // namespace moesaic::gguf
