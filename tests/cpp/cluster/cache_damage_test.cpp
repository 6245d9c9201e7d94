// Files of the cache that anything has happened to: nothing bad is ever used, and it loads.
// MOESAIC_CACHE_FILES: how many damaged files (default 100; ./dev campaign runs 1,000).
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <random>

#include "cluster/slice_rig.h"

namespace moesaic::cluster::testing {
namespace {

using CacheDamage = SliceTest;

int damaged_files() {
  const char* text = std::getenv("MOESAIC_CACHE_FILES");
  return text == nullptr ? 100 : std::atoi(text);
}

TEST_F(CacheDamage, DamagedCacheFiles) {
  // Two slices of this model, one of another with the same tensors, and the sidecars of all.
  Folder good;
  const auto a = knowing_source();
  ModelSpec other_spec;
  other_spec.seed = 2;
  const std::string other_path = write_model(origin, "other.gguf", other_spec);
  const auto other = gguf::File::open(other_path);
  OpenSlice wider = request({a});
  wider.tensors = layer_tensors(0, 3);
  OpenSlice of_other = request({std::make_shared<FileSource>(other)});
  of_other.content = content_of(*other);
  {
    Rig rig("", good.str());
    rig.store->open(request({a}));
    rig.store->open(wider);
    rig.store->open(of_other);
  }
  std::vector<std::string> names;
  for (const std::string& name : good.names()) {
    if (name.ends_with(".slice") || name.ends_with(".digests")) names.push_back(name);
  }
  ASSERT_EQ(names.size(), 6U);
  std::mt19937 random(20261121);
  std::map<std::string, int> outcomes;
  const int total = damaged_files();
  for (int i = 0; i < total; ++i) {
    SCOPED_TRACE(i);
    Folder cache;
    for (const std::string& name : names) fs::copy_file(good / name, cache / name);
    const std::string victim = names[random() % names.size()];
    Bytes bytes = read_file(cache / victim);
    switch (random() % 5) {
      case 0:
        for (unsigned n = random() % 3 + 1; n > 0; --n) {
          bytes[random() % bytes.size()] ^= static_cast<std::uint8_t>(1U << random() % 8);
        }
        break;
      case 1:
        bytes.resize(random() % bytes.size());
        break;
      case 2: {  // a run of zeros, as a lost page is
        const std::size_t at = random() % bytes.size();
        const std::size_t n = std::min<std::size_t>(4096, bytes.size() - at);
        std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), n, 0);
        break;
      }
      case 3:
        bytes.resize(bytes.size() + random() % 5000 + 1, 0x55);
        break;
      default:
        bytes = read_file(cache / names[random() % names.size()]);  // swapped (or itself)
        break;
    }
    write_file(cache / victim, bytes);
    // Half of the files keep the times that the sidecars may know.
    if (random() % 2 == 0) fs::last_write_time(cache / victim, fs::last_write_time(good / victim));
    Rig rig("", cache.str());
    const OpenedSlice opened = rig.store->open(request({a}));
    expect_good(opened);
    ++outcomes[opened.source];
    const OpenedSlice foreign = rig.store->open(of_other);
    expect_same_weights(*foreign.file, *other, tensors);
    EXPECT_LE(cache.names(".bad").size(), 1U);
  }
  EXPECT_GT(outcomes["pulled"], total / 20);  // bad ones were found
  EXPECT_GT(outcomes["cache"], total / 20);   // and others not touched
  EXPECT_EQ(outcomes.size(), 2U);
}

TEST_F(CacheDamage, SlicesUnderEachOthersName) {
  Folder cache;
  const auto a = source();
  OpenSlice wider = request({a});
  wider.tensors = layer_tensors(0, 3);
  {
    Rig rig("", cache.str());
    rig.store->open(request({a}));
    rig.store->open(wider);
  }
  std::vector<std::string> slices;
  for (const std::string& name : cache.names(".slice")) {
    if (name.ends_with(".slice")) slices.push_back(cache / name);
  }
  ASSERT_EQ(slices.size(), 2U);
  fs::rename(slices[0], cache / "x");
  fs::rename(slices[1], slices[0]);
  fs::rename(cache / "x", slices[1]);
  Rig rig("", cache.str());
  expect_good(rig.store->open(request({a})));
  expect_same_weights(*rig.store->open(wider).file, *whole, wider.tensors);
  EXPECT_EQ(rig.logged("quarantine"), 2);
  EXPECT_EQ(cache.names(".bad").size(), 1U);
}

TEST_F(CacheDamage, ADamagedSliceIsNoSourceForAnother) {
  Folder cache;
  const auto a = source();
  { Rig("", cache.str()).store->open(request({a})); }
  const std::string path = slice_path(cache);
  Bytes bytes = read_file(path);
  bytes[bytes.size() / 2] ^= 1;  // in the weights: the sidecar does not fit any more, the head does
  write_file(path, bytes);
  Rig rig("", cache.str());
  OpenSlice wider = request({a});
  wider.tensors = layer_tensors(0, 3);
  const std::uint64_t before = a->n_bytes;
  expect_same_weights(*rig.store->open(wider).file, *whole, wider.tensors);
  EXPECT_GT(a->n_bytes - before, bytes_of(*whole, layer_tensors(0, 1)));
  EXPECT_LT(a->n_bytes - before, bytes_of(*whole, wider.tensors));
}

}  // namespace
}  // namespace moesaic::cluster::testing
