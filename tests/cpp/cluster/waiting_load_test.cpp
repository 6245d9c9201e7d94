// A load that waits says for what, again each second, and hears of a cancel: for another load of
// the same slice, and for a disk that takes its time.
#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <future>
#include <map>

#include "cluster/cluster_rig.h"
#include "cluster/slice_rig.h"
#include "cluster/weights/slow_calls.h"
#include "net/rig.h"

namespace moesaic::cluster::testing {
namespace {

using namespace std::chrono_literals;
using net::testing::eventually;

// A disk on which nothing gets written for as long as it is held.
class HeldDisk final : public FileOps {
 public:
  enum class At { kNever, kAllocate, kSync, kRename };
  void hold(At at) {
    const std::scoped_lock lock(mutex_);
    at_ = at;
    changed_.notify_all();
  }
  int n_held() const { return n_held_; }

  int allocate(int fd, std::uint64_t n_bytes) override {
    pass(At::kAllocate);
    return FileOps::allocate(fd, n_bytes);
  }
  int sync(int fd) override {
    pass(At::kSync);
    return FileOps::sync(fd);
  }
  int rename(const char* from, const char* to) override {
    pass(At::kRename);
    return FileOps::rename(from, to);
  }

 private:
  void pass(At at) {
    std::unique_lock lock(mutex_);
    if (at_ == at) ++n_held_;
    changed_.wait(lock, [&] { return at_ != at; });
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  At at_ = At::kNever;
  std::atomic<int> n_held_{0};
};

std::string lock_of(const std::string& slice) {
  return fs::path(slice).replace_extension(".lock").string();
}

class WaitingLoad : public SliceTest {
 protected:
  // Opens on another thread; counts what is said.
  struct Opening {
    CancelFlag cancel;
    std::mutex mutex;
    std::map<std::string, int> said;
    std::future<OpenedSlice> result;
    int n_said(const std::string& what) {
      const std::scoped_lock lock(mutex);
      return said[what];
    }
  };
  std::unique_ptr<Opening> open(Rig& rig, std::vector<std::shared_ptr<BlobSource>> sources) {
    auto opening = std::make_unique<Opening>();
    OpenSlice slice = request(std::move(sources));
    slice.cancel = &opening->cancel;
    slice.progress = [raw = opening.get()](std::uint64_t, std::uint64_t, const char* what) {
      const std::scoped_lock lock(raw->mutex);
      ++raw->said[what];
    };
    opening->result =
        std::async(std::launch::async, [&rig, slice] { return rig.store->open(slice); });
    return opening;
  }
  static void expect_cancelled_soon(Opening& opening) {
    opening.cancel.set();
    // At once on an idle machine.
    ASSERT_EQ(opening.result.wait_for(10s), std::future_status::ready);
    EXPECT_THROW(opening.result.get(), CancelledError);
  }
};

TEST_F(WaitingLoad, SaysEachSecondThatAnotherLoadHasTheSlice) {
  Folder cache;
  { Rig(std::string(), cache.str()).store->open(request({source()})); }
  FileOps ops;
  Fd held = try_lock_file(ops, lock_of(slice_path(cache)));
  ASSERT_TRUE(held);
  Rig rig("", cache.str());
  const auto cancelled = open(rig, {});
  const auto waits = open(rig, {});
  EXPECT_TRUE(eventually([&] { return waits->n_said("waiting for another load") >= 2; }));
  expect_cancelled_soon(*cancelled);
  held.reset();
  expect_good(waits->result.get());
}

TEST_F(WaitingLoad, SaysEachSecondThatTheDiskIsWaitedFor) {
  for (const HeldDisk::At at :
       {HeldDisk::At::kAllocate, HeldDisk::At::kSync, HeldDisk::At::kRename}) {
    SCOPED_TRACE(static_cast<int>(at));
    Folder cache;
    HeldDisk disk;
    Rig rig("", cache.str(), &disk);
    disk.hold(at);
    const auto opening = open(rig, {source()});
    const int n = at == HeldDisk::At::kSync ? 2 : 1;
    EXPECT_TRUE(eventually([&] { return opening->n_said("writing to disk") >= n; }));
    EXPECT_GE(disk.n_held(), 1);
    disk.hold(HeldDisk::At::kNever);
    const OpenedSlice opened = opening->result.get();
    EXPECT_EQ(opened.source, "pulled");
    expect_good(opened);
  }
}

TEST_F(WaitingLoad, IsCancelledWhileTheDiskSyncsAndTheNextOneGoesOn) {
  Folder cache;
  HeldDisk disk;
  Rig rig("", cache.str(), &disk);
  const auto first = source();
  first->on_fetch = [&](const wire::BlobRequest& blob) {
    if (blob.tensor != wire::kHeaderTensor) disk.hold(HeldDisk::At::kSync);
  };
  const auto opening = open(rig, {first});
  ASSERT_TRUE(eventually([&] { return opening->n_said("writing to disk") >= 1; }));
  expect_cancelled_soon(*opening);
  EXPECT_GE(disk.n_held(), 1);  // and it still is
  disk.hold(HeldDisk::At::kNever);
  expect_good(rig.store->open(request({source()})));
}

TEST(SlowCalls, ThrowWhatTheCallThrowsAndWaitForWhatWasLeft) {
  std::atomic<bool> ended{false};
  CancelFlag cancel;
  {
    SlowCalls calls;
    EXPECT_THROW(calls.run({}, "x", [](const CancelFlag&) { fail<IoError>("bad disk"); }), IoError);
    EXPECT_THROW(calls.finish({}, "x", [] { fail<IoError>("bad disk"); }), IoError);
    cancel.set();
    std::atomic<bool> began{false};
    EXPECT_THROW(calls.run({&cancel, {}}, "x",
                           [&](const CancelFlag& is_left) {
                             began = true;
                             while (!is_left.is_set()) std::this_thread::sleep_for(1ms);
                             std::this_thread::sleep_for(20ms);
                             ended = true;
                           }),
                 CancelledError);
    // One that cannot be left is heard to its end before the cancel is.
    bool finished = false;
    EXPECT_THROW(calls.finish({&cancel, {}}, "x",
                              [&] {
                                std::this_thread::sleep_for(50ms);
                                finished = true;
                              }),
                 CancelledError);
    EXPECT_TRUE(finished);
  }
  EXPECT_TRUE(ended);
}

// From the lock in a worker's cache to the caller's progress, and no patience runs out meanwhile.
TEST(WaitingWorker, TellsTheCallerWhatItsLoadWaitsFor) {
  ClusterRig rig(model::testing::tiny_llama({.n_layers = 4}),
                 {.n_workers = 1, .local_copies = false});
  auto runner = rig.deploy();
  const auto tokens = model::testing::some_tokens(20, runner->config().vocab, 1);
  const auto expected = model::testing::all_logits(*runner, tokens, 20);
  runner.reset();
  ASSERT_TRUE(eventually([&] { return rig.log().find("\nended") != std::string::npos; }));
  ASSERT_TRUE(
      eventually([&] { return rig.coordinator().unload("", nullptr).at(0).models.empty(); }));
  FileOps ops;
  Fd held = try_lock_file(ops, lock_of(rig.cache_file(0, ".slice")));
  ASSERT_TRUE(held);
  CancelFlag cancel;
  std::atomic<int> n_said{0};
  DeployOptions options;
  options.load = ClusterRig::load_options();
  options.load.cancel = &cancel;
  options.progress = [&](const NodeProgress& progress) {
    if (progress.what == "waiting for another load" && ++n_said == 2) cancel.set();
  };
  EXPECT_THROW(rig.deploy(options), CancelledError);
  EXPECT_EQ(n_said, 2);
  options.load.cancel = nullptr;
  options.progress = [&](const NodeProgress& progress) {
    if (progress.what == "waiting for another load") held.reset();
  };
  EXPECT_EQ(model::testing::all_logits(*rig.deploy(options), tokens, 20), expected);
}

}  // namespace
}  // namespace moesaic::cluster::testing
