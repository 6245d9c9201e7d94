// Pulls onto a disk that fails at every operation, that cannot be written, or that is too small.
// What must hold: it loads, uncached if need be, and nothing half made is left.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "cluster/slice_rig.h"

namespace moesaic::cluster::testing {
namespace {

using namespace std::chrono_literals;

struct Failure {
  FaultyOps::Kind kind;
  bool stays;
};

using DiskTest = SliceTest;

class FailingDisk : public SliceTest, public ::testing::WithParamInterface<Failure> {};

TEST_P(FailingDisk, AtEveryOperation) {
  int n_failed = 0;
  int n_kept = 0;
  for (int at = 0;; ++at) {
    SCOPED_TRACE(at);
    Folder cache;
    FaultyOps ops;
    ops.fail_at = at;
    ops.kind = GetParam().kind;
    ops.stays = GetParam().stays;
    const auto a = knowing_source();
    {
      Rig rig("", cache.str(), &ops);
      const OpenedSlice opened = rig.store->open(request({a}));
      expect_good(opened);
      const bool kept = opened.source == "pulled";
      EXPECT_TRUE(kept || opened.source == "pulled, not kept") << opened.source;
      EXPECT_EQ(rig.logged("kept in memory only"), kept ? 0 : 1);
      EXPECT_LE(rig.log.size(), 2U);  // and that digests are not remembered
      // No half file and no file that nobody vouches for.
      EXPECT_EQ(cache.names(".part").size() + cache.names(".journal").size(), 0U);
      EXPECT_EQ(cache.names(".tmp-").size(), 0U);
      EXPECT_EQ(slice_path(cache).empty(), !kept);
      n_kept += kept ? 1 : 0;
    }
    if (ops.count <= at) break;  // it ended before it could fail
    ++n_failed;
    // The disk works again: the next process has the slice, whatever is in the folder.
    Rig rig("", cache.str());
    expect_good(rig.store->open(request({a})));
    EXPECT_EQ(rig.store->open(request({})).bytes_read, 0U);
  }
  EXPECT_GT(n_failed, 20);
  EXPECT_GT(n_kept, 0);
}

std::string failure_name(const ::testing::TestParamInfo<Failure>& info) {
  constexpr const char* kNames[] = {"NoSpace", "Io", "Short"};
  return std::string(kNames[static_cast<int>(info.param.kind)]) +
         (info.param.stays ? "FromThenOn" : "Once");
}

INSTANTIATE_TEST_SUITE_P(Kinds, FailingDisk,
                         ::testing::Values(Failure{FaultyOps::Kind::kNoSpace, true},
                                           Failure{FaultyOps::Kind::kNoSpace, false},
                                           Failure{FaultyOps::Kind::kIo, true},
                                           Failure{FaultyOps::Kind::kIo, false},
                                           Failure{FaultyOps::Kind::kShort, true},
                                           Failure{FaultyOps::Kind::kShort, false}),
                         failure_name);

TEST_F(DiskTest, AReadOnlyFolderIsNoCache) {
  if (geteuid() == 0) {  // root may write anywhere: a file stands where the folder should be
    Folder parent;
    write_file(parent / "file", {1});
    Rig rig("", parent / "file/cache");
    EXPECT_EQ(rig.logged("no cache"), 1);
    const OpenedSlice opened = rig.store->open(request({source()}));
    EXPECT_EQ(opened.source, "pulled, not kept");
    expect_good(opened);
  } else {
    Folder cache;
    fs::permissions(cache.str(), fs::perms::owner_read | fs::perms::owner_exec);
    Rig rig("", cache.str());
    const OpenedSlice opened = rig.store->open(request({source()}));
    EXPECT_EQ(opened.source, "pulled, not kept");
    expect_good(opened);
    fs::permissions(cache.str(), fs::perms::owner_all);
  }
}

// A disk of a given size for one folder.
class SmallDisk final : public FileOps {
 public:
  SmallDisk(const Folder& folder, std::uint64_t n_bytes) : folder_(folder), size_(n_bytes) {}
  int allocate(int fd, std::uint64_t n_bytes) override {
    if (n_bytes > free_bytes("")) {
      errno = ENOSPC;
      return -1;
    }
    return FileOps::allocate(fd, n_bytes);
  }
  std::uint64_t free_bytes(const char*) override {
    std::uint64_t used = 0;
    for (const std::string& name : folder_.names()) used += fs::file_size(folder_ / name);
    return used < size_ ? size_ - used : 0;
  }
  std::uint64_t reserve_bytes(const char*) override { return reserve; }

  std::uint64_t reserve = 0;

 private:
  const Folder& folder_;
  std::uint64_t size_;
};

TEST_F(DiskTest, AFullDiskGivesUpWhatNobodyUses) {
  Folder cache;
  const auto a = source();
  const auto slice_of = [&](int begin, int end) {
    OpenSlice slice = request({a});
    slice.tensors = layer_tensors(begin, end);
    return slice;
  };
  const auto is_cached = [&](const OpenSlice& slice) {
    Rig rig("", cache.str());
    OpenSlice alone = slice;
    alone.sources.clear();
    try {
      return rig.store->open(alone).source == "cache";
    } catch (const IoError&) {
      return false;
    }
  };
  // Room for two slices of one layer and their sidecars, not for three.
  SmallDisk disk(cache, 5 * bytes_of(*whole, layer_tensors(0, 1)) / 2 + 16384);
  {
    Rig rig("", cache.str(), &disk);
    EXPECT_EQ(rig.store->open(slice_of(0, 1)).source, "pulled");
    std::this_thread::sleep_for(20ms);
    EXPECT_EQ(rig.store->open(slice_of(1, 2)).source, "pulled");
    std::this_thread::sleep_for(20ms);
    EXPECT_EQ(rig.store->open(slice_of(0, 1)).source, "cache");  // used last
    EXPECT_EQ(rig.store->open(slice_of(2, 3)).source, "pulled");
    EXPECT_EQ(rig.logged("is thrown out"), 1);
    EXPECT_EQ(rig.logged("kept in memory only"), 0);
  }
  EXPECT_TRUE(is_cached(slice_of(0, 1)));
  EXPECT_FALSE(is_cached(slice_of(1, 2)));
  EXPECT_TRUE(is_cached(slice_of(2, 3)));
  // What is in use stays, and what could never be enough stays too.
  Rig rig("", cache.str(), &disk);
  const OpenedSlice first = rig.store->open(slice_of(0, 1));
  const OpenedSlice third = rig.store->open(slice_of(2, 3));
  EXPECT_EQ(rig.store->open(slice_of(1, 2)).source, "pulled, not kept");
  EXPECT_EQ(rig.logged("is thrown out"), 0);
  EXPECT_EQ(rig.logged("kept in memory only"), 1);
  expect_same_weights(*first.file, *whole, layer_tensors(0, 1));
}

// Pulls leave a share of the disk to others, and keep to the cache's own size.
TEST_F(DiskTest, PullsStayWithinTheCachesSizeAndLeaveAReserve) {
  const auto a = source();
  const auto slice_of = [&](int begin, int end) {
    OpenSlice slice = request({a});
    slice.tensors = layer_tensors(begin, end);
    return slice;
  };
  const std::uint64_t one = bytes_of(*whole, layer_tensors(0, 1));
  for (const bool by_size : {true, false}) {
    SCOPED_TRACE(by_size ? "size" : "reserve");
    Folder cache;
    SmallDisk disk(cache, by_size ? 100 * one : 10 * one);
    if (!by_size) disk.reserve = 10 * one - (5 * one / 2 + 16384);
    Rig rig("", cache.str(), &disk, by_size ? 5 * one / 2 + 16384 : 0);
    EXPECT_EQ(rig.store->open(slice_of(0, 1)).source, "pulled");
    std::this_thread::sleep_for(20ms);
    EXPECT_EQ(rig.store->open(slice_of(1, 2)).source, "pulled");
    std::this_thread::sleep_for(20ms);
    EXPECT_EQ(rig.logged("is thrown out"), 0);
    EXPECT_EQ(rig.store->open(slice_of(2, 3)).source, "pulled");
    EXPECT_EQ(rig.logged("is thrown out"), 1);
    EXPECT_EQ(rig.store->open(slice_of(0, 3)).source, "pulled, not kept");  // more than it all
    EXPECT_EQ(rig.logged("kept in memory only"), 1);
    EXPECT_EQ(rig.logged("--cache-size"), 1);
  }
}

}  // namespace
}  // namespace moesaic::cluster::testing
