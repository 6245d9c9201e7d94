// The store from its border: local copies, the cache, pulls, what is read and how often, and what
// it tells others.
#include "cluster/weights/weight_store.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "cluster/slice_rig.h"

namespace moesaic::cluster::testing {
namespace {

class WeightStoreTest : public SliceTest {
 protected:
  void SetUp() override {
    SliceTest::SetUp();
    fs::create_directory(models / "");
  }
  std::string cached_file() const {
    const auto names = cache.names(".slice");
    return names.size() == 1 ? cache / names[0] : "";
  }

  Folder models;
  Folder cache;
};

TEST_F(WeightStoreTest, ALocalCopyIsReadOnceEver) {
  fs::create_directories(models / "deep/er");
  fs::copy_file(model_path, models / "deep/er/m.gguf");
  {
    Rig rig(models.str(), cache.str());
    const OpenedSlice first = rig.store->open(request());
    EXPECT_EQ(first.source, "local copy");
    EXPECT_EQ(first.bytes_read, slice_bytes);
    expect_same_weights(*first.file, *whole, tensors);
    EXPECT_EQ(rig.store->open(request()).bytes_read, 0U);
  }
  Rig again(models.str(), cache.str());
  EXPECT_EQ(again.store->open(request()).bytes_read, 0U);
  EXPECT_EQ(again.store->bytes_read(), 0U);
  // More of the same file: only what is new.
  OpenSlice more = request();
  more.tensors = layer_tensors(0, 3);
  EXPECT_EQ(again.store->open(more).bytes_read, bytes_of(*whole, layer_tensors(0, 1)));
}

TEST_F(WeightStoreTest, PoliciesAlwaysAndNever) {
  fs::copy_file(model_path, models / "m.gguf");
  Rig rig(models.str(), cache.str());
  OpenSlice slice = request();
  slice.digests = wire::DigestPolicy::kNever;
  EXPECT_EQ(rig.store->open(slice).bytes_read, slice_bytes);  // it could be any model
  EXPECT_EQ(rig.store->open(slice).bytes_read, 0U);
  slice.digests = wire::DigestPolicy::kAlways;
  EXPECT_EQ(rig.store->open(slice).bytes_read, slice_bytes);
  EXPECT_EQ(rig.store->open(slice).bytes_read, slice_bytes);
}

TEST_F(WeightStoreTest, ASplitSetIsFoundByItsFirstPart) {
  for (int part = 0; part < 3; ++part) {
    gguf::Writer writer;
    if (part == 0) writer.add_string("general.architecture", "test");
    writer.add_uint("split.no", gguf::ValueType::kU16, static_cast<std::uint64_t>(part));
    writer.add_uint("split.count", gguf::ValueType::kU16, 3);
    add_layers(writer, {}, part, part + 1);
    writer.write(models / strcat("s-0000", part + 1, "-of-00003.gguf"));
  }
  const auto split = gguf::File::open(models / "s-00001-of-00003.gguf");
  Rig rig(models.str(), cache.str());
  OpenSlice slice = request();
  slice.content = content_of(*split);
  slice.name = "s-00001-of-00003.gguf";
  const OpenedSlice opened = rig.store->open(slice);
  EXPECT_EQ(opened.source, "local copy");
  EXPECT_EQ(opened.bytes_read, slice_bytes);
  expect_same_weights(*opened.file, *whole, tensors);
  EXPECT_EQ(rig.store->open(slice).bytes_read, 0U);

  // And pulled by somebody who has no part of it.
  Folder empty;
  Rig puller("", empty.str());
  slice.sources = {std::make_shared<FileSource>(split)};
  const OpenedSlice pulled = puller.store->open(slice);
  EXPECT_EQ(pulled.source, "pulled");
  expect_same_weights(*pulled.file, *whole, tensors);
  EXPECT_EQ(pulled.file->paths()[2], "s-00003-of-00003.gguf");
}

TEST_F(WeightStoreTest, AnotherFileUnderTheNameIsNotUsed) {
  write_model(models, "m.gguf", {.n_layers = 4});
  fs::create_directory(models / "sub");
  fs::copy_file(model_path, models / "sub/m.gguf");
  Rig rig(models.str(), cache.str());
  const OpenedSlice opened = rig.store->open(request());
  EXPECT_EQ(opened.source, "local copy");
  EXPECT_EQ(opened.file->paths()[0], models / "sub/m.gguf");
  EXPECT_EQ(rig.logged("another file of this name"), 1);
  fs::remove(models / "sub/m.gguf");
  const std::string text = thrown<IoError>([&] { rig.store->open(request()); });
  EXPECT_NE(text.find("no source has it"), std::string::npos) << text;
}

// Copies whose headers are equal to those of the model that is asked for.
TEST_F(WeightStoreTest, ACopyWithOtherWeightsIsNamedAndNotUsed) {
  const std::string path = models / "m.gguf";
  Bytes bytes = read_file(model_path);
  bytes[bytes.size() - 100] ^= 1;  // of blk.2.ffn_up_exps.weight
  write_file(path, bytes);
  Rig rig(models.str(), cache.str());
  for (const auto policy :
       {wire::DigestPolicy::kFirst, wire::DigestPolicy::kAlways, wire::DigestPolicy::kNever}) {
    OpenSlice slice = request();
    slice.digests = policy;
    const std::string text = thrown<FormatError>([&] { rig.store->open(slice); });
    EXPECT_NE(text.find(path), std::string::npos) << text;
    EXPECT_NE(text.find("blk.2.ffn_up_exps.weight"), std::string::npos) << text;
    EXPECT_NE(text.find(short_hex(identity)), std::string::npos) << text;
  }
  // Where the right one can be fetched, it is, and the log says why.
  const OpenedSlice pulled = rig.store->open(request({source()}));
  EXPECT_EQ(pulled.source, "pulled");
  expect_good(pulled);
  EXPECT_GE(rig.logged("other weights under equal headers"), 1);
  // A good copy beside it comes first, whatever order the names have.
  fs::create_directories(models / "z");
  fs::copy_file(model_path, models / "z/m.gguf");
  Rig again(models.str(), "");
  const OpenedSlice good = again.store->open(request());
  EXPECT_EQ(good.paths, std::vector<std::string>{models / "z/m.gguf"});
  expect_good(good);
  // A slice without the tensor that differs is the same in both.
  fs::remove_all(models / "z");
  OpenSlice other_layers = request();
  other_layers.tensors = layer_tensors(0, 2);
  EXPECT_EQ(again.store->open(other_layers).source, "local copy");
}

TEST_F(WeightStoreTest, ARewrittenFileIsReadAgain) {
  const std::string path = models / "m.gguf";
  fs::copy_file(model_path, path);
  const fs::file_time_type time = fs::last_write_time(path);
  Rig rig(models.str(), cache.str());
  rig.store->open(request());
  // The same size, other weights, and the old times put back, as `cp -p` of another file would.
  Bytes bytes = read_file(path);
  const Bytes before = bytes;
  bytes[bytes.size() - 100] ^= 1;
  write_file(path, bytes);
  fs::last_write_time(path, time);
  thrown<FormatError>([&] { rig.store->open(request()); });
  // Another inode with the right bytes.
  write_file(models / "copy", before);
  fs::rename(models / "copy", path);
  fs::last_write_time(path, time);
  EXPECT_EQ(rig.store->open(request()).bytes_read, slice_bytes);
  EXPECT_EQ(rig.store->open(request()).bytes_read, 0U);
}

TEST_F(WeightStoreTest, OnePartOfASplitSetExchanged) {
  const auto write_part = [&](int part, std::uint64_t seed) {
    gguf::Writer writer;
    if (part == 0) writer.add_string("general.architecture", "test");
    writer.add_uint("split.no", gguf::ValueType::kU16, static_cast<std::uint64_t>(part));
    writer.add_uint("split.count", gguf::ValueType::kU16, 3);
    ModelSpec spec;
    spec.seed = seed;
    add_layers(writer, spec, part, part + 1);
    writer.write(models / strcat("s-0000", part + 1, "-of-00003.gguf"));
  };
  for (int part = 0; part < 3; ++part) write_part(part, 1);
  OpenSlice slice = request();
  slice.name = "s-00001-of-00003.gguf";
  slice.content = content_of(*gguf::File::open(models / slice.name));
  Rig rig(models.str(), cache.str());
  EXPECT_EQ(rig.store->open(slice).source, "local copy");
  write_part(1, 7);  // of another model, with equal headers
  const std::string text = thrown<FormatError>([&] { rig.store->open(slice); });
  EXPECT_NE(text.find("s-00002-of-00003.gguf"), std::string::npos) << text;
  EXPECT_NE(rig.manifest(slice.name)->identity, slice.content.identity);
}

TEST_F(WeightStoreTest, ClocksMayJump) {
  const std::string path = models / "m.gguf";
  fs::copy_file(model_path, path);
  Rig rig(models.str(), cache.str());
  // A time stamp far in the future, then one far in the past: neither hides a change.
  for (const auto jump : {std::chrono::hours(24 * 365 * 20), -std::chrono::hours(24 * 365 * 20)}) {
    fs::last_write_time(path, fs::file_time_type::clock::now() + jump);
    EXPECT_EQ(rig.store->open(request()).bytes_read, slice_bytes);
    EXPECT_EQ(rig.store->open(request()).bytes_read, 0U);
  }
}

TEST_F(WeightStoreTest, AWarmStartAsksNoSource) {
  fs::copy_file(model_path, models / "m.gguf");
  Rig rig(models.str(), cache.str());
  const auto peer = source("10.0.0.3:9777");
  EXPECT_EQ(rig.store->open(request({peer})).bytes_read, slice_bytes);
  EXPECT_EQ(rig.store->open(request({peer})).bytes_read, 0U);
  EXPECT_EQ(peer->n_manifests, 0);
}

TEST_F(WeightStoreTest, PullsItsSliceOnceEver) {
  const std::uint64_t header = whole->headers()[0].size();
  const auto a = source();
  {
    Rig rig("", cache.str());
    std::uint64_t last = 0;
    OpenSlice slice = request({a});
    slice.progress = [&](std::uint64_t done, std::uint64_t total, const char* what) {
      EXPECT_GE(done, last);
      EXPECT_EQ(total, slice_bytes);
      EXPECT_STREQ(what, "pull");
      last = done;
    };
    const OpenedSlice opened = rig.store->open(slice);
    EXPECT_EQ(last, slice_bytes);
    EXPECT_EQ(opened.source, "pulled");
    EXPECT_EQ(opened.bytes_read, slice_bytes + header);
    EXPECT_EQ(a->n_bytes, slice_bytes + header);
    expect_same_weights(*opened.file, *whole, tensors);
    EXPECT_THROW(opened.file->bytes(*opened.file->find_tensor("blk.0.attn_q.weight")),
                 ArgumentError);
  }
  EXPECT_EQ(cache.names(".part").size() + cache.names(".journal").size(), 0U);
  Rig rig("", cache.str());  // without anybody to ask
  const OpenedSlice warm = rig.store->open(request());
  EXPECT_EQ(warm.source, "cache");
  EXPECT_EQ(warm.bytes_read, 0U);
  expect_same_weights(*warm.file, *whole, tensors);
  OpenSlice always = request();
  always.digests = wire::DigestPolicy::kAlways;
  EXPECT_EQ(rig.store->open(always).bytes_read, slice_bytes);
}

TEST_F(WeightStoreTest, HeadersComeOnceAndThenFromTheCache) {
  const auto a = source();
  const std::uint64_t header = whole->headers()[0].size();
  OpenSlice headers = request({a});
  headers.tensors.clear();
  {
    Rig rig("", cache.str());
    EXPECT_EQ(rig.store->open(headers).bytes_read, header);
    EXPECT_EQ(rig.store->open(request({a})).bytes_read, slice_bytes);
    EXPECT_EQ(rig.store->bytes_read(), header + slice_bytes);
  }
  Rig rig("", cache.str());
  headers.sources.clear();
  const OpenedSlice warm = rig.store->open(headers);
  EXPECT_EQ(warm.source, "cache");
  EXPECT_EQ(header_identity(*warm.file), content.headers);
  EXPECT_EQ(rig.store->open(request()).source, "cache");
  EXPECT_EQ(rig.store->bytes_read(), 0U);
}

TEST_F(WeightStoreTest, WithoutACacheNothingIsKept) {
  const auto a = source();
  Rig rig("", "");
  const OpenedSlice opened = rig.store->open(request({a}));
  EXPECT_EQ(opened.source, "pulled, not kept");
  expect_same_weights(*opened.file, *whole, tensors);
  EXPECT_TRUE(rig.log.empty());
}

TEST_F(WeightStoreTest, AFlippedBitIsFoundSetAsideAndPulledAgain) {
  const auto a = source();
  { Rig("", cache.str()).store->open(request({a})); }
  const std::string path = cached_file();
  ASSERT_FALSE(path.empty());
  for (int round = 0; round < 2; ++round) {
    Bytes bytes = read_file(path);
    bytes[bytes.size() / 2] ^= 0x10;
    write_file(path, bytes);
    Rig rig("", cache.str());
    const OpenedSlice opened = rig.store->open(request({a}));
    EXPECT_EQ(opened.source, "pulled");
    expect_same_weights(*opened.file, *whole, tensors);
    EXPECT_EQ(rig.logged("quarantine"), 1);
    EXPECT_EQ(cache.names(".bad").size(), 1U);
  }
  // Nobody to pull from: an error, never the bad bytes.
  Bytes bytes = read_file(path);
  bytes[bytes.size() / 2] ^= 0x10;
  write_file(path, bytes);
  Rig rig("", cache.str());
  thrown<IoError>([&] { rig.store->open(request()); });
}

TEST_F(WeightStoreTest, HeadersAlone) {
  const auto a = source();
  Rig rig("", cache.str());
  OpenSlice slice = request({a});
  slice.tensors.clear();
  for (const Content& by : {content, Content{}}) {
    slice.content = by;
    const OpenedSlice opened = rig.store->open(slice);
    EXPECT_EQ(header_identity(*opened.file), content.headers);
    EXPECT_THROW(opened.file->bytes(opened.file->tensors()[0]), ArgumentError);
  }
  fs::copy_file(model_path, models / "m.gguf");
  Rig local(models.str(), "");
  EXPECT_EQ(local.store->open(slice).source, "local copy");
}

TEST_F(WeightStoreTest, NamesThatAreNoFileNamesAreRefused) {
  fs::copy_file(model_path, models / "m.gguf");
  fs::create_directory(models / "sub");
  Rig rig((models / "sub"), cache.str());
  for (const std::string& name :
       {std::string("../m.gguf"), models / "m.gguf", std::string(".."), std::string("."),
        std::string("a\0b", 3), std::string(300, 'a'), std::string("a\\b")}) {
    OpenSlice slice = request();
    slice.name = name;
    thrown<ArgumentError>([&] { rig.store->open(slice); });
    wire::ManifestRequest ask;
    ask.name = name;
    thrown<ArgumentError>([&] { rig.store->manifest(ask); });
  }
}

TEST_F(WeightStoreTest, AnswersForWhatItHas) {
  fs::copy_file(model_path, models / "m.gguf");
  Rig rig(models.str(), cache.str());
  const UnitDigests want = digests_of(*whole);
  wire::ManifestRequest ask = asking(content, "m.gguf");
  ask.request = 7;
  auto manifest = rig.store->manifest(ask);  // it may be it; whoever fetches proves it
  ASSERT_TRUE(manifest.has_value());
  EXPECT_EQ(manifest->request, 7U);
  EXPECT_EQ(manifest->identity, identity);
  EXPECT_EQ(manifest->header_bytes, whole->headers()[0].size());
  EXPECT_TRUE(manifest->units.empty() && manifest->tensors.empty());  // none made yet
  rig.store->open(request());
  manifest = rig.store->manifest(ask);
  ASSERT_TRUE(manifest.has_value());
  EXPECT_EQ(manifest->units.size(), units_of(*whole, tensor_indices(*whole, tensors)).size());
  for (const wire::UnitDigest& unit : manifest->units) {
    EXPECT_EQ(unit.sha256, want.at({unit.tensor, unit.expert}));
  }
  manifest = rig.manifest("m.gguf");  // by name: all of it is read
  ASSERT_TRUE(manifest.has_value());
  EXPECT_EQ(manifest->identity, identity);
  EXPECT_EQ(manifest->tensors, content.tensors);
  EXPECT_EQ(manifest->units.size(), want.size());
  EXPECT_TRUE(manifest->is_file);
  ask.identity[0] ^= 1;
  EXPECT_FALSE(rig.store->manifest(ask).has_value());

  wire::BlobRequest blob;
  blob.identity = identity;
  blob.tensor = 1;
  blob.offset = 10;
  blob.n_bytes = 100;
  const auto bytes = rig.store->read(blob);
  EXPECT_EQ(bytes, Bytes(whole->bytes(whole->tensors()[1]).begin() + 10,
                         whole->bytes(whole->tensors()[1]).begin() + 110));
  const auto refused = [&](std::uint32_t tensor, std::uint64_t offset, std::uint64_t n) {
    blob.tensor = tensor;
    blob.offset = offset;
    blob.n_bytes = n;
    thrown<ArgumentError>([&] { rig.store->read(blob); });
  };
  refused(1, 25600, 1);
  refused(1, 25599, 2);
  refused(1, ~std::uint64_t{0}, 2);
  refused(1, 0, 0);
  refused(1, 0, (4U << 20) + 1);
  refused(9, 0, 1);
  refused(wire::kHeaderTensor, manifest->header_bytes, 1);
  blob.identity[0] ^= 1;
  blob.tensor = 1;
  blob.n_bytes = 1;
  thrown<IoError>([&] { rig.store->read(blob); });
}

TEST_F(WeightStoreTest, OffersAreServedAsLongAsTheyAreHeld) {
  Rig rig("", "");
  rig.store->offer(whole, rig.store->identify(whole, {}), "mine.gguf");
  wire::ManifestRequest ask;
  ask.identity = identity;
  ASSERT_TRUE(rig.store->manifest(ask).has_value());
  whole.reset();
  EXPECT_FALSE(rig.store->manifest(ask).has_value());
}

// Shows fewer tensors than its headers tell of.
class OtherView final : public gguf::File {
 public:
  explicit OtherView(std::shared_ptr<const gguf::File> file) : file_(std::move(file)) {}
  std::uint32_t version() const override { return file_->version(); }
  std::uint64_t alignment() const override { return file_->alignment(); }
  std::span<const gguf::Value> metadata() const override { return file_->metadata(); }
  std::span<const gguf::TensorInfo> tensors() const override { return file_->tensors().subspan(1); }
  std::span<const std::string> paths() const override { return file_->paths(); }
  void check_intact() const override { file_->check_intact(); }
  std::vector<int> descriptors() const override { return file_->descriptors(); }
  const gguf::Value* find(std::string_view key) const override { return file_->find(key); }
  const gguf::TensorInfo* find_tensor(std::string_view n) const override {
    return file_->find_tensor(n);
  }
  std::span<const std::uint8_t> bytes(const gguf::TensorInfo& t) const override {
    return file_->bytes(t);
  }
  std::span<const std::span<const std::uint8_t>> headers() const override {
    return file_->headers();
  }

 private:
  std::shared_ptr<const gguf::File> file_;
};

TEST_F(WeightStoreTest, AViewWithOtherTensorsIsNotServed) {
  Rig rig("", "");
  const auto view = std::make_shared<OtherView>(whole);
  rig.store->offer(view, content, "m.gguf");
  wire::ManifestRequest ask;
  ask.identity = identity;
  EXPECT_FALSE(rig.store->manifest(ask).has_value());
  EXPECT_EQ(rig.logged("not served"), 1);
}

TEST_F(WeightStoreTest, APulledSliceIsServedOn) {
  const auto a = source();
  Rig rig("", cache.str());
  const OpenedSlice held = rig.store->open(request({a}));
  wire::BlobRequest blob;
  blob.identity = identity;
  blob.tensor = tensor_indices(*whole, tensors)[0];
  blob.n_bytes = 256;
  const auto want = whole->bytes(whole->tensors()[blob.tensor]);
  EXPECT_EQ(rig.store->read(blob), Bytes(want.begin(), want.begin() + 256));
  blob.tensor = 0;  // layer 0: not of the slice
  thrown<IoError>([&] { rig.store->read(blob); });
}

}  // namespace
}  // namespace moesaic::cluster::testing
