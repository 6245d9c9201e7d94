// The sidecar of digests: remembered by a file's state, shared by processes, worth nothing when
// damaged.
#include "cluster/weights/digest_book.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <thread>

#include "cluster/weight_rig.h"

namespace moesaic::cluster::testing {
namespace {

class Book : public ::testing::Test {
 protected:
  DigestBook book(FileOps* ops = nullptr) {
    return {folder.str(), ops == nullptr ? ops_ : *ops,
            [this](const std::string&, const std::string& text) { log.push_back(text); }};
  }
  static UnitDigests some(std::uint32_t begin, std::uint32_t end) {
    UnitDigests digests;
    for (std::uint32_t i = begin; i < end; ++i) digests[{i / 4, i % 4}][i % 32] = 7;
    return digests;
  }

  Folder folder;
  FileOps ops_;
  std::vector<std::string> log;
  FileStates states{{1, 2, 3, 4, 5, 6}, {1, 3, 3, 4, 5, 6}};
};

TEST_F(Book, RemembersByState) {
  {
    DigestBook first = book();
    EXPECT_TRUE(first.find(states).empty());
    first.add(states, some(0, 5));
    first.add(states, some(3, 9));
    EXPECT_EQ(first.find(states), some(0, 9));
  }
  DigestBook second = book();
  EXPECT_EQ(second.find(states), some(0, 9));
  for (std::size_t part = 0; part < states.size(); ++part) {
    for (int field = 0; field < 6; ++field) {
      FileStates other = states;
      FileState& state = other[part];
      if (field == 0) ++state.device;
      if (field == 1) ++state.inode;
      if (field == 2) ++state.size;
      if (field == 3) ++state.modified_ns;
      if (field == 4) ++state.changed_ns;
      if (field == 5) ++state.born_ns;
      EXPECT_TRUE(second.find(other).empty()) << field;
    }
  }
  EXPECT_TRUE(second.find({states[0]}).empty());
  EXPECT_TRUE(second.find({}).empty());
  second.forget(states);
  EXPECT_TRUE(second.find(states).empty());
  EXPECT_TRUE(book().find(states).empty());
  EXPECT_TRUE(log.empty());
}

// Two workers of one machine prove two slices of one file at the same time.
TEST_F(Book, BooksThatShareAFolderAddToEachOther) {
  DigestBook first = book();
  DigestBook second = book();
  EXPECT_TRUE(first.find(states).empty());
  EXPECT_TRUE(second.find(states).empty());
  first.add(states, some(0, 5));
  second.add(states, some(5, 9));
  EXPECT_EQ(book().find(states), some(0, 9));
  EXPECT_EQ(second.find(states), some(0, 9));
  first.add(states, some(9, 11));
  EXPECT_EQ(book().find(states), some(0, 11));
  EXPECT_TRUE(log.empty());
}

TEST_F(Book, NoneOfManyAtOnceIsLost) {
  constexpr std::uint32_t kBooks = 4;
  constexpr std::uint32_t kTimes = 25;
  std::vector<std::thread> threads;
  for (std::uint32_t b = 0; b < kBooks; ++b) {
    threads.emplace_back([&, b] {
      FileOps ops;
      DigestBook mine(folder.str(), ops, [](auto&, auto& text) { ADD_FAILURE() << text; });
      for (std::uint32_t i = 0; i < kTimes; ++i) {
        const std::uint32_t unit = b * kTimes + i;
        mine.add(states, some(unit, unit + 1));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(book().find(states), some(0, kBooks * kTimes));
}

TEST_F(Book, WhoeverHangsWithTheLockHoldsNobodyUpForLong) {
  const Fd held = try_lock_file(ops_, folder / "digests.lock");
  ASSERT_TRUE(held);
  const auto begin = std::chrono::steady_clock::now();
  book().add(states, some(0, 3));
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
  EXPECT_EQ(book().find(states), some(0, 3));
  EXPECT_TRUE(log.empty());
}

TEST_F(Book, EveryTruncationAndEveryFlipIsAsGoodAsNone) {
  book().add(states, some(0, 6));
  const std::string path = folder / folder.names(".digests").at(0);
  const Bytes good = read_file(path);
  for (std::size_t n = 0; n < good.size(); ++n) {
    write_file(path, Bytes(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(n)));
    EXPECT_TRUE(book().find(states).empty()) << n;
  }
  for (std::size_t n = 0; n < good.size(); ++n) {
    Bytes bytes = good;
    bytes[n] ^= static_cast<std::uint8_t>(1U << n % 8);
    write_file(path, bytes);
    EXPECT_TRUE(book().find(states).empty()) << n;
  }
  Bytes longer = good;
  longer.resize(good.size() + 40);
  write_file(path, longer);
  EXPECT_TRUE(book().find(states).empty());
  // And it is made again.
  DigestBook after = book();
  after.add(states, some(0, 2));
  EXPECT_EQ(book().find(states), some(0, 2));
}

TEST_F(Book, WithoutAFolderItLivesWithTheProcess) {
  DigestBook book("", ops_, [](const std::string&, const std::string&) { FAIL(); });
  book.add(states, some(0, 3));
  EXPECT_EQ(book.find(states), some(0, 3));
}

TEST_F(Book, AFailingDiskCostsTheNextStartItsDigests) {
  FaultyOps broken;
  broken.fail_at = 0;
  broken.stays = true;
  DigestBook first = book(&broken);
  first.add(states, some(0, 3));
  EXPECT_EQ(first.find(states), some(0, 3));
  ASSERT_EQ(log.size(), 1U);
  EXPECT_NE(log[0].find("No space left"), std::string::npos) << log[0];
  EXPECT_TRUE(folder.names().empty());
  EXPECT_TRUE(book().find(states).empty());
}

TEST_F(Book, OldBooksAreThrownAway) {
  DigestBook first = book();
  for (std::uint64_t i = 0; i < 300; ++i) {
    states[0].inode = 1000 + i;
    // Files of long ago: of the same age to the clock, the newest among them must stay.
    first.add(states, some(0, 1));
    if (i < 10) {
      for (const std::string& name : folder.names(".digests")) {
        fs::last_write_time(folder / name,
                            fs::file_time_type::clock::now() - std::chrono::hours(1));
      }
    }
  }
  EXPECT_EQ(folder.names(".digests").size(), 256U);
  EXPECT_EQ(book().find(states), some(0, 1));
}

TEST_F(Book, StatesOfFilesTellChanges) {
  const std::string path = folder / "f";
  write_file(path, {1, 2, 3});
  const std::vector<std::string> paths{path};
  const FileStates before = file_states(paths);
  EXPECT_EQ(before.size(), 1U);
  EXPECT_EQ(before[0].size, 3U);
  EXPECT_EQ(file_states(paths), before);
  let_stamps_settle(before);
  chmod(path.c_str(), 0600);
  chmod(path.c_str(), 0640);  // nothing but the change time
  EXPECT_NE(file_states(paths), before);
  const FileStates after = file_states(paths);
  let_stamps_settle(after);
  write_file(path, {4, 2, 3});
  EXPECT_NE(file_states(paths), after);
  EXPECT_THROW(file_states(std::vector<std::string>{folder / "absent"}), IoError);
}

TEST_F(Book, AFreshFileIsLeftTimeToSettle) {
  const std::string path = folder / "f";
  FileStates fresh;
  bool waited = false;  // on a loaded machine the file may have settled by itself
  for (int i = 0; i < 20 && !waited; ++i) {
    write_file(path, {1, 2, 3});
    fresh = file_states(std::vector<std::string>{path});
    const auto begin = std::chrono::steady_clock::now();
    let_stamps_settle(fresh);
    waited = std::chrono::steady_clock::now() - begin >= std::chrono::milliseconds(40);
  }
  EXPECT_TRUE(waited);
  // Settled now, and a stamp of the future waits for nothing.
  bool at_once = false;
  for (int i = 0; i < 20 && !at_once; ++i) {
    FileStates future = fresh;
    future[0].changed_ns += std::int64_t{3600} * 1000000000;
    const auto begin = std::chrono::steady_clock::now();
    let_stamps_settle(fresh);
    let_stamps_settle(future);
    at_once = std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(40);
  }
  EXPECT_TRUE(at_once);
}

TEST(SettleTime, CoarseStampsAreGivenTwoSeconds) {
  const std::int64_t now = 1'700'000'000'500'000'000;
  const auto after = [&](std::int64_t changed_ns) {
    FileState state;
    state.changed_ns = changed_ns;
    return settle_time({FileState{}, state}, now);
  };
  EXPECT_EQ(after(now - 20'000'000).count(), 30'000'000);      // of some milliseconds
  EXPECT_EQ(after(now - 60'000'000).count(), 0);               // settled
  EXPECT_EQ(after(now - 500'000'000).count(), 1'550'000'000);  // whole seconds: FAT or old NFS
  EXPECT_EQ(after(now - 2'500'000'000).count(), 0);
  EXPECT_EQ(after(now + 3'000'000'000).count(), 50'000'000);     // a server's clock that is ahead
  EXPECT_EQ(after(now + 4'500'000'000).count(), 2'050'000'000);  // and coarse
  EXPECT_EQ(after(now + 3600'000'000'000).count(), 0);           // a clock that has jumped
}

TEST_F(Book, AWaitForCoarseStampsCanBeCancelled) {
  FileStates coarse(1);
  timespec time{};
  clock_gettime(CLOCK_REALTIME, &time);
  coarse[0].changed_ns = (static_cast<std::int64_t>(time.tv_sec) + 30) * 1'000'000'000;
  CancelFlag cancel;
  cancel.set();
  EXPECT_THROW(let_stamps_settle(coarse, &cancel), CancelledError);
}

}  // namespace
}  // namespace moesaic::cluster::testing
