// Pulls that are broken off, by kills, cuts, a caller, a power cut, and what is left of them: it
// goes on, with nothing damaged in it, and no byte of weights is read or fetched twice for nothing.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <chrono>
#include <map>
#include <set>
#include <thread>

#include "cluster/slice_rig.h"
#include "cluster/weights/digest_book.h"

namespace moesaic::cluster::testing {
namespace {

using namespace std::chrono_literals;

using PullResume = SliceTest;

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

TEST_F(PullResume, KilledAtEveryWrite) {
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

TEST_F(PullResume, OnlyWhatIsMissingIsFetched) {
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

TEST_F(PullResume, WhatIsDamagedBetweenTwoTriesIsFetchedAgain) {
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

TEST_F(PullResume, ADamagedJournalCostsNothingButFetching) {
  const auto broken_off = [&](const Folder& cache) {
    const auto a = source();
    std::atomic<int> left{5};
    a->on_fetch = [&](const wire::BlobRequest&) {
      if (--left < 0) fail<NetError>("source:1: gone");
    };
    Rig rig("", cache.str());
    thrown<NetError>([&] { rig.store->open(request({a})); });
    return cache / cache.names(".journal")[0];
  };
  std::size_t n_bytes = SIZE_MAX;
  for (std::size_t i = 0; i < n_bytes; i += 5) {
    SCOPED_TRACE(i);
    Folder cache;
    const std::string journal = broken_off(cache);
    Bytes bytes = read_file(journal);
    n_bytes = bytes.size();
    ASSERT_GT(n_bytes, 300U);
    if (i >= n_bytes) break;
    if (i % 2 == 0) {
      bytes[i] ^= 0x40;
    } else {
      bytes.resize(i);
    }
    write_file(journal, bytes);
    Rig rig("", cache.str());
    expect_good(rig.store->open(request({source()})));
  }
}

// --- how often a byte of weights is read or fetched, over all lives of a worker

// What children count, in memory that they share with the test.
struct Counts {
  std::atomic<std::uint64_t> fetched{0};
  std::atomic<std::uint64_t> read{0};  // of files of weights
  std::uint64_t all() const { return fetched + read; }
};

class SharedCounts {
 public:
  SharedCounts()
      : counts_(new (mmap(nullptr, sizeof(Counts), PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Counts) {}
  ~SharedCounts() { munmap(counts_, sizeof(Counts)); }
  SharedCounts(const SharedCounts&) = delete;
  SharedCounts& operator=(const SharedCounts&) = delete;
  Counts* operator->() const { return counts_; }

 private:
  Counts* counts_;
};

// Counts what is read of half fetched and finished slices. As a disk with a power cut ahead it
// keeps from the file what was not synced; its journal lasts at once, which is the worst case.
class CountingOps final : public FileOps {
 public:
  explicit CountingOps(const SharedCounts& counts) : counts_(counts) {}
  bool loses_unsynced = false;
  std::string boot = "this one";

  int open(const char* path, int flags, unsigned mode) override {
    const int fd = FileOps::open(path, flags, mode);
    const std::string name = path;
    const std::lock_guard lock(mutex_);
    parts_.erase(fd);
    if (name.ends_with(".part")) parts_[fd];
    return fd;
  }
  std::int64_t pread(int fd, void* bytes, std::size_t n_bytes, std::uint64_t offset) override {
    const std::int64_t n = FileOps::pread(fd, bytes, n_bytes, offset);
    const std::lock_guard lock(mutex_);
    if (n > 0 && parts_.contains(fd)) counts_->read += static_cast<std::uint64_t>(n);
    return n;
  }
  std::int64_t pwrite(int fd, const void* bytes, std::size_t n_bytes,
                      std::uint64_t offset) override {
    const std::lock_guard lock(mutex_);
    const auto part = parts_.find(fd);
    if (!loses_unsynced || part == parts_.end()) {
      return FileOps::pwrite(fd, bytes, n_bytes, offset);
    }
    const auto* from = static_cast<const std::uint8_t*>(bytes);
    part->second.emplace_back(offset, Bytes(from, from + n_bytes));
    return static_cast<std::int64_t>(n_bytes);
  }
  int sync(int fd) override {
    const std::lock_guard lock(mutex_);
    const auto part = parts_.find(fd);
    if (part != parts_.end()) {
      for (const auto& [offset, bytes] : part->second) {
        FileOps::pwrite(fd, bytes.data(), bytes.size(), offset);
      }
      part->second.clear();
    }
    return FileOps::sync(fd);
  }
  std::string boot_id() override { return boot; }

 private:
  const SharedCounts& counts_;
  std::mutex mutex_;
  std::map<int, std::vector<std::pair<std::uint64_t, Bytes>>> parts_;  // what is not synced
};

// A model whose slice is large against what is on its way at any time, as those of real ones are,
// in units that are not.
class PullTwice : public SliceTest {
 protected:
  void SetUp() override {
    ModelSpec spec;
    spec.n_experts = 8;
    spec.expert_rows = 16384;  // 4 MiB each
    set_model(spec);
  }

  enum class End { kKill, kCut, kNone };
  // One life of a worker that has fetched so much of the slice when it ends.
  int life(const Folder& cache, End end, double until,
           const std::function<void(CountingOps&)>& set) {
    return in_child([&] {
      CountingOps ops(counts);
      if (set) set(ops);
      const auto a = knowing_source();
      const auto most = static_cast<std::uint64_t>(until * static_cast<double>(slice_bytes));
      a->on_fetch = [&](const wire::BlobRequest& blob) {
        if ((counts->fetched += blob.n_bytes) < most || end == End::kNone) return;
        if (end == End::kKill) kill(getpid(), SIGKILL);
        fail<NetError>("source:1: gone");
      };
      Rig rig("", cache.str(), &ops);
      try {
        const OpenedSlice opened = rig.store->open(request({a}));
        expect_good(opened);
        return ::testing::Test::HasFailure() ? 2 : 0;
      } catch (const NetError&) {
        return 1;
      }
    });
  }

  SharedCounts counts;
};

TEST_F(PullTwice, WhateverBreaksItOff) {
  const std::vector<std::vector<std::pair<End, double>>> histories = {
      {{End::kKill, 0.02}},
      {{End::kKill, 0.5}},
      {{End::kKill, 0.97}},
      {{End::kCut, 0.03}, {End::kCut, 0.5}, {End::kCut, 0.96}},
      {{End::kKill, 0.2}, {End::kCut, 0.4}, {End::kKill, 0.6}, {End::kKill, 0.8}},
  };
  for (const auto& history : histories) {
    SCOPED_TRACE(&history - histories.data());
    Folder cache;
    counts->fetched = counts->read = 0;
    for (const auto& [end, until] : history) {
      const int status = life(cache, end, until, {});
      if (end == End::kKill) {
        ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
      } else {
        ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1);
      }
    }
    const int status = life(cache, End::kNone, 1, {});
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    EXPECT_LE(counts->all(), slice_bytes + slice_bytes / 50);
    EXPECT_LT(counts->read, slice_bytes / 1000);  // heads: no weights
    Rig warm("", cache.str());
    const OpenedSlice opened = warm.store->open(request({}));
    EXPECT_EQ(opened.bytes_read, 0U);
    expect_good(opened);
  }
}

TEST_F(PullTwice, APowerCutCostsWhatWasNotSynced) {
  for (const double until : {0.05, 0.4, 0.9}) {
    SCOPED_TRACE(until);
    Folder cache;
    counts->fetched = counts->read = 0;
    const int status =
        life(cache, End::kKill, until, [](CountingOps& ops) { ops.loses_unsynced = true; });
    ASSERT_TRUE(WIFSIGNALED(status));
    const std::uint64_t before = counts->fetched;
    const int next = life(cache, End::kNone, 1, [](CountingOps& ops) { ops.boot = "the next"; });
    ASSERT_TRUE(WIFEXITED(next) && WEXITSTATUS(next) == 0);  // and its bytes are the right ones
    // Lost: what came since the last sync (8 MiB, and what came while that ran), and units that
    // had begun. Read in vain: the same.
    constexpr std::uint64_t kMost = std::uint64_t{32} << 20;
    EXPECT_LE(counts->fetched, slice_bytes + header_bytes + kMost);
    EXPECT_LE(counts->read, kMost);
    if (until > 0.8) {  // most was kept
      EXPECT_LT(counts->fetched - before, slice_bytes / 2);
    }
    Rig warm("", cache.str());
    expect_good(warm.store->open(request({})));
  }
}

TEST_F(PullTwice, WhatOthersChangedAfterAKillIsFound) {
  Folder cache;
  ASSERT_TRUE(WIFSIGNALED(life(cache, End::kKill, 0.6, {})));
  const std::string part = cache / cache.names(".part")[0];
  const std::string journal = cache / cache.names(".journal")[0];
  const auto before = fs::last_write_time(part) - 30s;
  fs::last_write_time(part, before);
  fs::last_write_time(journal, before);
  Bytes bytes = read_file(part);
  for (std::size_t i = 100000; i < bytes.size(); i += 1 << 20) bytes[i] ^= 1;
  write_file(part, bytes);  // in place: the same file, with another stamp
  const int next = life(cache, End::kNone, 1, [](CountingOps&) {});
  ASSERT_TRUE(WIFEXITED(next));
  EXPECT_EQ(WEXITSTATUS(next), 0);
}

TEST_F(PullTwice, ABeginningThatWasWrongIsNotGoneOnWith) {
  // The first chunk of each unit is wrong once; the link is cut now and then.
  Folder cache;
  std::mutex mutex;
  std::set<std::pair<std::uint32_t, std::uint64_t>> spoiled;
  const auto a = knowing_source();
  const std::uint64_t unit = std::uint64_t{4} << 20;
  std::atomic<int> n{0};
  a->spoil = [&](const wire::BlobRequest& blob, Bytes& bytes) {
    const std::lock_guard lock(mutex);
    if (blob.tensor == wire::kHeaderTensor || blob.offset % unit != 0 || blob.tensor % 3 != 2)
      return;
    if (spoiled.insert({blob.tensor, blob.offset}).second) bytes[7] ^= 1;
  };
  a->on_fetch = [&](const wire::BlobRequest&) {
    if (++n % 300 == 0) fail<NetError>("source:1: gone");
  };
  Rig rig("", cache.str());
  for (int i = 0; i < 50; ++i) {
    try {
      expect_good(rig.store->open(request({a})));
      EXPECT_EQ(spoiled.size(), 16U);
      return;
    } catch (const NetError&) {
    }
  }
  FAIL() << "it never ended";
}

TEST_F(PullResume, AbandonedFilesAreRemovedAtStart) {
  Folder cache;
  const std::string name(64, 'a');
  write_file(cache / (name + ".slice.part"), {1, 2, 3});               // without a journal
  write_file(cache / (std::string(64, 'b') + ".slice.journal"), {1});  // without a file
  write_file(cache / "x.digests.tmp-999999999-0", {1});                // of a dead process
  write_file(cache / strcat("y.digests.tmp-", getpid(), "-0"), {1});   // of a living one
  write_file(cache / "z.digests.tmp-999999998-0", {1});                // living elsewhere
  write_file(cache / "z.digests.tmp-r0123456789abcdef", {1});          // abandoned
  const int elsewhere = open((cache / "z.digests.tmp-999999998-0").c_str(), O_RDWR);
  ASSERT_EQ(flock(elsewhere, LOCK_EX), 0);
  write_file(cache / (std::string(64, 'c') + ".slice.part"), {1});  // goes on tomorrow
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
  EXPECT_TRUE(fs::exists(cache / "z.digests.tmp-999999998-0"));
  EXPECT_FALSE(fs::exists(cache / "z.digests.tmp-r0123456789abcdef"));
  close(elsewhere);
  EXPECT_TRUE(fs::exists(cache / strcat("y.digests.tmp-", getpid(), "-0")));
  EXPECT_EQ(cache.names(std::string(64, 'c') + ".slice").size(), 2U);
  EXPECT_FALSE(fs::exists(cache / (std::string(64, 'd') + ".slice.part")));
  EXPECT_TRUE(fs::exists(cache / (std::string(64, 'e') + ".slice.part")));
  close(fd);
}

TEST_F(PullResume, TwoProcessesFetchOnce) {
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

TEST_F(PullResume, WaitingForAnotherProcessCanBeCancelled) {
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

TEST_F(PullResume, CancelledPullsGoOn) {
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

}  // namespace
}  // namespace moesaic::cluster::testing
