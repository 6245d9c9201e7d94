// A slice's file: where everything lies, and that nothing in it is believed.
#include "cluster/weights/slice_file.h"

#include <gtest/gtest.h>

#include "cluster/weight_rig.h"

namespace moesaic::cluster::testing {
namespace {

class SliceFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    // Experts larger than what is aligned to pages, and tensors smaller.
    whole = gguf::File::open(write_model(folder, "m.gguf", {.n_layers = 2, .expert_rows = 100}));
    content = content_of(*whole);
    tensors = layer_tensors(1, 2);
    layout = make_layout(whole, content.identity, tensors);
    path = folder / "s.slice";
    Bytes bytes = layout.head;
    bytes.resize(layout.trailer_offset);
    std::vector<wire::Digest> digests;
    const UnitDigests all = digests_of(*whole);
    for (const UnitKey& unit : layout.units) digests.push_back(all.at(unit));
    for (const SlicePlace& place : layout.places) {
      const auto from = whole->bytes(whole->tensors()[place.tensor]);
      std::copy(from.begin(), from.end(),
                bytes.begin() + static_cast<std::ptrdiff_t>(place.offset));
    }
    const auto trailer = make_trailer(layout, digests);
    bytes.insert(bytes.end(), trailer.begin(), trailer.end());
    good = bytes;
    write_file(path, good);
  }
  SliceInfo read(const std::vector<std::string>& of) {
    const Fd fd = open_file(ops, path, O_RDONLY);
    return read_slice_info(ops, fd.get(), path, content, of, "m.gguf");
  }

  Folder folder;
  FileOps ops;
  std::shared_ptr<const gguf::File> whole;
  Content content;
  std::vector<std::string> tensors;
  SliceLayout layout;
  std::string path;
  Bytes good;
};

TEST_F(SliceFileTest, LiesAlignedAndWhole) {
  EXPECT_EQ(good.size(), layout.file_bytes);
  EXPECT_EQ(layout.weights_bytes, bytes_of(*whole, tensors));
  ASSERT_EQ(layout.places.size(), 3U);
  std::uint64_t end = layout.head.size();
  for (const SlicePlace& place : layout.places) {
    EXPECT_EQ(place.offset % 64, 0U);
    EXPECT_TRUE(place.n_bytes < 65536 || place.offset % 4096 == 0);
    EXPECT_GE(place.offset, end);
    end = place.offset + place.n_bytes;
  }
  EXPECT_GE(layout.trailer_offset, end);
  EXPECT_EQ(layout.units.size(), 2U + 4U);
  EXPECT_EQ(layout.range(3).offset, layout.places[2].offset + 25600);
  EXPECT_EQ(layout.find(0), nullptr);
  EXPECT_EQ(layout.find(99), nullptr);

  const SliceInfo info = read(tensors);
  Fd fd = open_file(ops, path, O_RDONLY);
  const auto file = make_slice_file(info.layout, map_slice(std::move(fd), info.layout, path));
  expect_same_weights(*file, *whole, tensors);
  EXPECT_EQ(file->find("general.architecture")->as_string(), "test");
  EXPECT_EQ(file->paths()[0], "m.gguf");
  const std::string text =
      thrown<ArgumentError>([&] { file->bytes(*file->find_tensor("blk.0.attn_q.weight")); });
  EXPECT_NE(text.find("blk.0.attn_q.weight"), std::string::npos) << text;
  // As a backend asks: with a copy of the entry in another shape.
  gguf::TensorInfo reshaped = *file->find_tensor("blk.1.attn_q.weight");
  reshaped.ne = {256, 50, 2};
  EXPECT_EQ(file->bytes(reshaped).size(), 25600U);
  // Aligned in memory too: rows may be loaded as vectors.
  for (const std::string& name : tensors) {
    const auto at = file->bytes(*file->find_tensor(name));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(at.data()) % 64, 0U);
  }
}

TEST_F(SliceFileTest, EveryFlipOutsideTheWeightsIsFound) {
  const auto refused = [&](std::size_t at) {
    Bytes bytes = good;
    bytes[at] ^= static_cast<std::uint8_t>(1U << at % 8);
    write_file(path, bytes);
    EXPECT_THROW(read(tensors), Error) << at;
  };
  for (std::size_t at = 0; at < layout.head.size(); ++at) refused(at);
  for (std::size_t at = layout.trailer_offset; at < good.size(); ++at) refused(at);
}

TEST_F(SliceFileTest, EveryLengthButTheRightOneIsFound) {
  for (std::size_t n = 0; n < good.size(); n += n < 2000 ? 1 : 997) {
    write_file(path, Bytes(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(n)));
    EXPECT_THROW(read(tensors), Error) << n;
  }
  Bytes longer = good;
  longer.push_back(0);
  write_file(path, longer);
  EXPECT_THROW(read(tensors), FormatError);
}

TEST_F(SliceFileTest, AnotherSliceOrModelIsNotThisOne) {
  EXPECT_NO_THROW(read(tensors));
  EXPECT_THROW(read(layer_tensors(0, 2)), FormatError);
  EXPECT_THROW(read({tensors[0]}), FormatError);
  content.identity[0] ^= 1;
  EXPECT_THROW(read(tensors), FormatError);
}

TEST_F(SliceFileTest, SizesThatLieAllocateNothing) {
  Bytes bytes = good;
  for (int i = 80; i < 88; ++i) bytes[static_cast<std::size_t>(i)] = 0xFF;  // bytes of headers
  write_file(path, bytes);
  EXPECT_THROW(read(tensors), FormatError);
}

TEST_F(SliceFileTest, UnitsAreExpertsThatAreWorthIt) {
  gguf::TensorInfo tensor = *whole->find_tensor("blk.1.ffn_up_exps.weight");
  EXPECT_EQ(n_units(tensor), 4U);
  EXPECT_EQ(unit_bytes(tensor), 25600U);
  tensor.ne = {256, 1, 400};  // 256 bytes each: one unit
  EXPECT_EQ(n_units(tensor), 1U);
  EXPECT_EQ(unit_bytes(tensor), tensor.n_bytes);
  tensor.ne = {256, 50, 4, 2};
  EXPECT_EQ(n_units(tensor), 8U);
  tensor.ne = {256, 400};
  EXPECT_EQ(n_units(tensor), 1U);
}

TEST_F(SliceFileTest, DescriptorsDependOnTheSetOfNamesAlone) {
  const wire::Digest a = slice_descriptor({"a", "b"});
  EXPECT_EQ(slice_descriptor({"b", "a", "b"}), a);
  EXPECT_NE(slice_descriptor({"ab"}), a);
  EXPECT_NE(slice_descriptor({"a"}), a);
  EXPECT_NE(slice_descriptor({"a", "b", ""}), a);
}

TEST_F(SliceFileTest, NamesThatTheFileDoesNotHave) {
  const std::string text =
      thrown<FormatError>([&] { make_layout(whole, content.identity, {"blk.9.x"}); });
  EXPECT_NE(text.find("blk.9.x"), std::string::npos) << text;
}

}  // namespace
}  // namespace moesaic::cluster::testing
