// Pulls that go wrong: a disk that fails at every operation, kills at every write, sources that
// lie, lack, and leave; and cache files that anything has happened to. What must hold: it loads, or
// it is a typed error, and nothing bad is ever used. MOESAIC_CACHE_FILES: how many damaged files
// (default 100; ./dev campaign runs 1,000).
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>

#include <chrono>
#include <cstdlib>
#include <random>
#include <set>
#include <thread>

#include "cluster/weight_rig.h"

namespace moesaic::cluster::testing {
namespace {

using namespace std::chrono_literals;

class SliceFault : public ::testing::Test {
 protected:
  void SetUp() override {
    model_path = write_model(origin);
    whole = gguf::File::open(model_path);
    identity = header_identity(*whole);
    tensors = layer_tensors(1, 3);
    slice_bytes = bytes_of(*whole, tensors);
    header_bytes = whole->headers()[0].size();
  }
  OpenSlice request(const std::vector<std::shared_ptr<BlobSource>>& sources) const {
    OpenSlice slice;
    slice.identity = identity;
    slice.name = "m.gguf";
    slice.tensors = tensors;
    slice.sources = sources;
    return slice;
  }
  std::shared_ptr<FileSource> source(const std::string& name = "source:1") const {
    return std::make_shared<FileSource>(whole, name);
  }
  std::shared_ptr<FileSource> knowing_source(const std::string& name = "source:1") const {
    auto made = source(name);
    made->digests = digests_of(*whole);
    return made;
  }
  void expect_good(const OpenedSlice& opened) const {
    expect_same_weights(*opened.file, *whole, tensors);
  }
  std::string slice_path(const Folder& cache) const {
    for (const std::string& name : cache.names(".slice")) {
      if (name.ends_with(".slice")) return cache / name;
    }
    return "";
  }

  Folder origin;
  std::string model_path;
  std::shared_ptr<const gguf::File> whole;
  wire::Digest identity{};
  std::vector<std::string> tensors;
  std::uint64_t slice_bytes = 0;
  std::uint64_t header_bytes = 0;
};

// --- a disk that fails

struct Failure {
  FaultyOps::Kind kind;
  bool stays;
};

class FailingDisk : public SliceFault, public ::testing::WithParamInterface<Failure> {};

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

TEST_F(SliceFault, AReadOnlyFolderIsNoCache) {
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

// --- kills and what is left

// In a child of its own; how it ended.
int in_child(const std::function<int()>& work) {
  const pid_t pid = fork();
  if (pid == 0) {
    int code = 99;
    try {
      code = work();
    } catch (const std::exception& error) {
      fprintf(stderr, "child: %s\n", error.what());
    }
    _exit(code);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  return status;
}

TEST_F(SliceFault, KilledAtEveryWrite) {
  std::uint64_t fewest = UINT64_MAX;
  int n_killed = 0;
  for (int at = 0;; ++at) {
    SCOPED_TRACE(at);
    Folder cache;
    const int status = in_child([&] {
      FaultyOps ops;
      ops.before = [&](int n) {
        if (n == at) kill(getpid(), SIGKILL);
      };
      Rig rig("", cache.str(), &ops);
      rig.store->open(request({knowing_source()}));
      return 0;
    });
    if (WIFEXITED(status)) {
      EXPECT_EQ(WEXITSTATUS(status), 0);
      break;
    }
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    ++n_killed;
    const auto a = knowing_source();
    {
      Rig rig("", cache.str());
      const OpenedSlice opened = rig.store->open(request({a}));
      expect_good(opened);
      // Fetched or read again: each byte once, together.
      EXPECT_LE(opened.bytes_read, slice_bytes + header_bytes);
      fewest = std::min<std::uint64_t>(fewest, a->n_bytes);
    }
    EXPECT_EQ(
        cache.names(".part").size() + cache.names(".journal").size() + cache.names(".tmp-").size(),
        0U);
    Rig warm("", cache.str());
    EXPECT_EQ(warm.store->open(request({})).bytes_read, 0U);
  }
  EXPECT_GT(n_killed, 20);
  EXPECT_LE(fewest, header_bytes);  // killed late, nothing was fetched twice
}

TEST_F(SliceFault, OnlyWhatIsMissingIsFetched) {
  for (const int n_before : {1, 3, 5}) {
    SCOPED_TRACE(n_before);
    Folder cache;
    const auto a = source();
    std::atomic<int> left{n_before + 1};  // one for the headers
    a->on_fetch = [&](const wire::BlobRequest&) {
      if (--left < 0) fail<NetError>("source:1: gone");
    };
    Rig rig("", cache.str());
    thrown<NetError>([&] { rig.store->open(request({a})); });
    const std::uint64_t first = a->n_bytes - header_bytes;
    EXPECT_GT(first, 0U);
    a->on_fetch = {};
    const std::uint64_t before = a->n_bytes;
    const OpenedSlice opened = rig.store->open(request({a}));
    expect_good(opened);
    EXPECT_EQ(a->n_bytes - before, slice_bytes - first);  // the headers are still known
    EXPECT_LE(opened.bytes_read, slice_bytes);
    EXPECT_EQ(opened.source, "pulled");
  }
}

TEST_F(SliceFault, WhatIsDamagedBetweenTwoTriesIsFetchedAgain) {
  Folder cache;
  const auto a = source();
  std::atomic<int> left{6};
  a->on_fetch = [&](const wire::BlobRequest&) {
    if (--left < 0) fail<NetError>("source:1: gone");
  };
  {
    Rig rig("", cache.str());
    thrown<NetError>([&] { rig.store->open(request({a})); });
  }
  const std::string part = cache / cache.names(".part")[0];
  Bytes bytes = read_file(part);
  for (std::size_t i = 1000; i < bytes.size(); i += 5000) bytes[i] ^= 1;  // most units
  write_file(part, bytes);
  a->on_fetch = {};
  Rig rig("", cache.str());
  expect_good(rig.store->open(request({a})));
}

TEST_F(SliceFault, ADamagedJournalCostsNothingButFetching) {
  Folder cache;
  const auto make = [&] {
    const auto a = source();
    std::atomic<int> left{5};
    a->on_fetch = [&](const wire::BlobRequest&) {
      if (--left < 0) fail<NetError>("source:1: gone");
    };
    Rig rig("", cache.str());
    thrown<NetError>([&] { rig.store->open(request({a})); });
  };
  make();
  const std::string journal = cache / cache.names(".journal")[0];
  const Bytes good = read_file(journal);
  ASSERT_GT(good.size(), 80U);
  for (std::size_t i = 0; i < good.size(); i += 7) {
    Bytes bytes = good;
    if (i % 2 == 0) {
      bytes[i] ^= 0x40;
    } else {
      bytes.resize(i);
    }
    Folder other;
    for (const std::string& name : cache.names()) fs::copy_file(cache / name, other / name);
    write_file(other / cache.names(".journal")[0], bytes);
    Rig rig("", other.str());
    expect_good(rig.store->open(request({source()})));
  }
}

TEST_F(SliceFault, AbandonedFilesAreRemovedAtStart) {
  Folder cache;
  const std::string name(64, 'a');
  write_file(cache / (name + ".slice.part"), {1, 2, 3});               // without a journal
  write_file(cache / (std::string(64, 'b') + ".slice.journal"), {1});  // without a file
  write_file(cache / "x.digests.tmp-999999999-0", {1});                // of a dead process
  write_file(cache / strcat("y.digests.tmp-", getpid(), "-0"), {1});   // of a living one
  write_file(cache / (std::string(64, 'c') + ".slice.part"), {1});     // goes on tomorrow
  write_file(cache / (std::string(64, 'c') + ".slice.journal"), {1});
  write_file(cache / (std::string(64, 'd') + ".slice.part"), {1});  // never goes on
  write_file(cache / (std::string(64, 'd') + ".slice.journal"), {1});
  fs::last_write_time(cache / (std::string(64, 'd') + ".slice.part"),
                      fs::file_time_type::clock::now() - std::chrono::hours(24 * 8));
  write_file(cache / (std::string(64, 'e') + ".slice.part"), {1});  // somebody is at it
  const int fd = open((cache / (std::string(64, 'e') + ".lock")).c_str(), O_RDWR | O_CREAT, 0600);
  ASSERT_EQ(flock(fd, LOCK_EX), 0);
  Rig rig("", cache.str());
  EXPECT_FALSE(fs::exists(cache / (name + ".slice.part")));
  EXPECT_TRUE(cache.names(std::string(64, 'b') + ".slice").empty());
  EXPECT_FALSE(fs::exists(cache / "x.digests.tmp-999999999-0"));
  EXPECT_TRUE(fs::exists(cache / strcat("y.digests.tmp-", getpid(), "-0")));
  EXPECT_EQ(cache.names(std::string(64, 'c') + ".slice").size(), 2U);
  EXPECT_FALSE(fs::exists(cache / (std::string(64, 'd') + ".slice.part")));
  EXPECT_TRUE(fs::exists(cache / (std::string(64, 'e') + ".slice.part")));
  close(fd);
}

TEST_F(SliceFault, TwoProcessesFetchOnce) {
  Folder cache;
  Folder counts;
  std::vector<pid_t> children;
  for (int child = 0; child < 2; ++child) {
    const pid_t pid = fork();
    if (pid == 0) {
      int code = 1;
      try {
        const auto a = knowing_source();
        a->on_fetch = [](const wire::BlobRequest&) { std::this_thread::sleep_for(5ms); };
        Rig rig("", cache.str());
        const OpenedSlice opened = rig.store->open(request({a}));
        std::ofstream(counts / std::to_string(child)) << a->n_bytes;
        code = opened.file->bytes(*opened.file->find_tensor(tensors[0])).size() == 256 ? 0 : 2;
      } catch (const std::exception& error) {
        fprintf(stderr, "child: %s\n", error.what());
      }
      _exit(code);
    }
    children.push_back(pid);
  }
  std::uint64_t fetched = 0;
  for (int child = 0; child < 2; ++child) {
    int status = 0;
    waitpid(children[static_cast<std::size_t>(child)], &status, 0);
    EXPECT_EQ(status, 0);
    std::uint64_t n = 0;
    std::ifstream(counts / std::to_string(child)) >> n;
    fetched += n;
  }
  EXPECT_EQ(fetched, slice_bytes + header_bytes);
}

TEST_F(SliceFault, WaitingForAnotherProcessCanBeCancelled) {
  Folder cache;
  { Rig("", cache.str()).store->open(request({source()})); }
  const std::string lock = cache / cache.names(".lock")[0];
  const int fd = open(lock.c_str(), O_RDWR);
  ASSERT_EQ(flock(fd, LOCK_EX), 0);
  CancelFlag cancel;
  std::thread presser([&] {
    std::this_thread::sleep_for(50ms);
    cancel.set();
  });
  Rig rig("", cache.str());
  OpenSlice slice = request({source()});
  slice.cancel = &cancel;
  thrown<CancelledError>([&] { rig.store->open(slice); });
  presser.join();
  close(fd);
}

TEST_F(SliceFault, CancelledPullsGoOn) {
  Folder cache;
  const auto a = source();
  CancelFlag cancel;
  std::atomic<int> n{0};
  a->on_fetch = [&](const wire::BlobRequest&) {
    if (++n < 4) return;
    cancel.set();
    std::this_thread::sleep_for(200ms);  // four at a time, so that most are never asked for
  };
  Rig rig("", cache.str());
  OpenSlice slice = request({a});
  slice.tensors = layer_tensors(0, 3);
  slice.cancel = &cancel;
  thrown<CancelledError>([&] { rig.store->open(slice); });
  EXPECT_LT(a->n_bytes, header_bytes + bytes_of(*whole, slice.tensors));
  a->on_fetch = {};
  const std::uint64_t before = a->n_bytes;
  slice.cancel = nullptr;
  expect_same_weights(*rig.store->open(slice).file, *whole, slice.tensors);
  EXPECT_LT(a->n_bytes - before, bytes_of(*whole, slice.tensors));
}

// --- sources

TEST_F(SliceFault, ASpoiledChunkIsAskedForOnceMore) {
  Folder cache;
  const auto a = knowing_source();
  std::atomic<int> n{0};
  a->spoil = [&](const wire::BlobRequest& blob, Bytes& bytes) {
    if (blob.tensor != wire::kHeaderTensor && n++ == 3) bytes[bytes.size() / 2] ^= 4;
  };
  Rig rig("", cache.str());
  expect_good(rig.store->open(request({a})));
  // Always wrong: a FormatError that names what and who, and no file.
  Folder other;
  Rig spoiled("", other.str());
  a->spoil = [](const wire::BlobRequest& blob, Bytes& bytes) {
    if (blob.tensor == 5) bytes[0] ^= 4;
  };
  const std::string text = thrown<FormatError>([&] { spoiled.store->open(request({a})); });
  EXPECT_NE(text.find("blk.1.ffn_up_exps.weight, expert 0"), std::string::npos) << text;
  EXPECT_NE(text.find("source:1"), std::string::npos) << text;
  EXPECT_TRUE(slice_path(other).empty());
  // Another one has it right.
  const OpenedSlice opened = spoiled.store->open(request({a, knowing_source("source:2")}));
  expect_good(opened);
}

TEST_F(SliceFault, SpoiledHeadersAreNotBelieved) {
  Folder cache;
  const auto a = source();
  a->spoil = [](const wire::BlobRequest& blob, Bytes& bytes) {
    if (blob.tensor == wire::kHeaderTensor) bytes[30] ^= 1;
  };
  Rig rig("", cache.str());
  thrown<IoError>([&] { rig.store->open(request({a})); });
  expect_good(rig.store->open(request({a, source("source:2")})));
}

TEST_F(SliceFault, HeadersOfAnotherModelAreNotBelieved) {
  // Whole and well-formed, of the same length, but not those that the manifest names.
  ModelSpec other_spec;
  other_spec.seed = 2;
  const auto other = gguf::File::open(write_model(origin, "other.gguf", other_spec));
  ASSERT_EQ(other->headers()[0].size(), header_bytes);
  Folder cache;
  const auto a = source();
  a->spoil = [&](const wire::BlobRequest& blob, Bytes& bytes) {
    if (blob.tensor != wire::kHeaderTensor) return;
    const auto from = other->headers()[0].subspan(blob.offset, blob.n_bytes);
    bytes.assign(from.begin(), from.end());
  };
  Rig rig("", cache.str());
  OpenSlice headers = request({a});
  headers.tensors.clear();
  for (const OpenSlice& slice : {request({a}), headers}) {
    const std::string text = thrown<IoError>([&] { rig.store->open(slice); });
    EXPECT_NE(text.find("another identity"), std::string::npos) << text;
  }
}

TEST_F(SliceFault, SourcesThatHaveOnlyAPartOfIt) {
  Folder cache;
  const auto only = [&](std::uint32_t begin, std::uint32_t end, const std::string& name) {
    auto made = source(name);
    made->on_fetch = [=](const wire::BlobRequest& blob) {
      if (blob.tensor != wire::kHeaderTensor && (blob.tensor < begin || blob.tensor >= end)) {
        fail<IoError>("this tensor is not here");
      }
    };
    return made;
  };
  Rig rig("", cache.str());
  expect_good(rig.store->open(request({only(0, 6, "source:1"), only(6, 9, "source:2")})));
  Folder other;
  Rig lacking("", other.str());
  const std::string text = thrown<IoError>([&] {
    lacking.store->open(request({only(0, 6, "source:1"), only(0, 7, "source:2")}));
  });
  EXPECT_NE(text.find("blk.2."), std::string::npos) << text;
}

TEST_F(SliceFault, WhatOnlyALostSourceHadIsAnError) {
  // One has all but the last tensor, which waits for the other; that is lost over other tensors.
  // Nobody may wait for it any more.
  for (int round = 0; round < 10; ++round) {
    Folder cache;
    std::atomic<int> n_held{0};
    std::atomic<int> n_lost{0};
    std::atomic<bool> is_refused{false};
    const auto until = [](const std::function<bool()>& done) {
      for (int i = 0; i < 2000 && !done(); ++i) std::this_thread::sleep_for(1ms);
    };
    const auto a = source("source:1");
    a->on_fetch = [&](const wire::BlobRequest& blob) {
      if (blob.tensor == wire::kHeaderTensor) return;
      until([&] { return n_held >= 4; });  // its threads have taken what comes first
      if (blob.tensor != 8) return;
      is_refused = true;
      fail<IoError>("this tensor is not here");
    };
    const auto b = source("source:2");
    b->on_fetch = [&](const wire::BlobRequest& blob) {
      if (blob.tensor == wire::kHeaderTensor) return;
      const bool is_late = ++n_held > 4;
      until([&] { return is_late ? n_lost >= 4 : is_refused.load(); });
      ++n_lost;
      fail<NetError>("source:2: gone");
    };
    Rig rig("", cache.str());
    OpenSlice slice = request({a, b});
    slice.tensors = layer_tensors(0, 3);
    CancelFlag hangs;
    slice.cancel = &hangs;
    std::atomic<bool> ended{false};
    std::thread watchdog([&] {
      until([&] { return ended.load(); });
      until([&] { return ended.load(); });
      hangs.set();
    });
    thrown<NetError>([&] { rig.store->open(slice); });
    ended = true;
    watchdog.join();
  }
}

TEST_F(SliceFault, ASpoiledChunkIsAskedForAgainWhereItIs) {
  Folder cache;
  const auto a = knowing_source("source:1");
  std::atomic<int> n{0};
  a->spoil = [&](const wire::BlobRequest& blob, Bytes& bytes) {
    if (blob.tensor == 4 && n++ == 0) bytes[0] ^= 1;
  };
  const auto b = source("source:2");  // has nothing but the headers
  b->on_fetch = [](const wire::BlobRequest& blob) {
    if (blob.tensor != wire::kHeaderTensor) fail<IoError>("this tensor is not here");
  };
  Rig rig("", cache.str());
  expect_good(rig.store->open(request({a, b})));
  EXPECT_EQ(n, 2);
}

TEST_F(SliceFault, ShortAndLongChunksAreRefused) {
  for (const int change : {-1, +1}) {
    Folder cache;
    const auto a = source();
    a->spoil = [&](const wire::BlobRequest& blob, Bytes& bytes) {
      if (blob.tensor != wire::kHeaderTensor) bytes.resize(bytes.size() + change);
    };
    Rig rig("", cache.str());
    thrown<ProtocolError>([&] { rig.store->open(request({a})); });
    EXPECT_TRUE(slice_path(cache).empty());
  }
}

// --- other plans, and a disk that is too small for all of them

TEST_F(SliceFault, AnotherPlanFetchesOnlyWhatIsNew) {
  Folder cache;
  const auto a = knowing_source();
  {
    Rig rig("", cache.str());
    rig.store->open(request({a}));
    OpenSlice wider = request({a});
    wider.tensors = layer_tensors(0, 3);
    const std::uint64_t before = a->n_bytes;
    expect_same_weights(*rig.store->open(wider).file, *whole, wider.tensors);
    EXPECT_EQ(a->n_bytes - before, bytes_of(*whole, layer_tensors(0, 1)));
  }
  // One that lies within another needs nobody.
  Rig rig("", cache.str());
  OpenSlice narrow = request({});
  narrow.tensors = layer_tensors(1, 2);
  const OpenedSlice opened = rig.store->open(narrow);
  expect_same_weights(*opened.file, *whole, narrow.tensors);
  EXPECT_EQ(opened.bytes_read, bytes_of(*whole, narrow.tensors));
}

TEST_F(SliceFault, ADamagedSliceIsNoSourceForAnother) {
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

 private:
  const Folder& folder_;
  std::uint64_t size_;
};

TEST_F(SliceFault, AFullDiskGivesUpWhatNobodyUses) {
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

// --- anything may have happened to the folder

int damaged_files() {
  const char* text = std::getenv("MOESAIC_CACHE_FILES");
  return text == nullptr ? 100 : std::atoi(text);
}

TEST_F(SliceFault, DamagedCacheFiles) {
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
  of_other.identity = header_identity(*other);
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

TEST_F(SliceFault, SlicesUnderEachOthersName) {
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

}  // namespace
}  // namespace moesaic::cluster::testing
