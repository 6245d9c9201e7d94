// What a journal vouches for, after each way in which a pull can end; and what it must not.
#include "cluster/weights/slice_journal.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <set>

#include "cluster/slice_rig.h"

namespace moesaic::cluster::testing {
namespace {

class BootOps final : public FileOps {
 public:
  std::string boot = "first";
  std::string boot_id() override { return boot; }
};

wire::Digest digest_of(std::uint8_t seed) {
  wire::Digest digest;
  digest.fill(seed);
  return digest;
}

class Journal : public SliceTest {
 protected:
  void SetUp() override {
    SliceTest::SetUp();
    layout = make_layout(whole, content_of(*whole).identity, tensors);
    path = folder / "x.slice.journal";
    part = folder / "x.slice.part";
    write_file(part, Bytes(layout.file_bytes));
  }
  FileState part_state() { return file_states(std::span(&part, 1))[0]; }
  SliceJournal::Content read() { return SliceJournal(layout, path, ops).read(part_state()); }
  // Units 0 to 2, of which two are marked, and some of the fourth.
  void write(bool is_sealed) {
    SliceJournal journal(layout, path, ops);
    journal.start(part_state(), {{0, digest_of(0)}}, {});
    journal.add_unit(1, digest_of(1));
    journal.mark(journal.n_notes());
    journal.add_unit(2, digest_of(2));
    Sha256State state;
    state.n_bytes = 128;
    journal.add_beginning(3, state);
    if (is_sealed) journal.seal(part_state());
  }
  void touch_part(std::chrono::seconds later) {
    fs::last_write_time(part, fs::last_write_time(part) + later);
  }
  void expect(const std::set<std::size_t>& believed, const std::set<std::size_t>& doubted,
              bool has_beginning) {
    const SliceJournal::Content content = read();
    const auto numbers = [](const std::vector<SliceJournal::Unit>& units) {
      std::set<std::size_t> found;
      for (const auto& [unit, digest] : units) {
        EXPECT_EQ(digest, digest_of(static_cast<std::uint8_t>(unit)));
        found.insert(unit);
      }
      return found;
    };
    EXPECT_EQ(numbers(content.believed), believed);
    EXPECT_EQ(numbers(content.doubted), doubted);
    EXPECT_EQ(content.beginnings.contains(3), has_beginning);
  }

  Folder folder;
  BootOps ops;
  SliceLayout layout;
  std::string path;
  std::string part;
};

TEST_F(Journal, AfterAKillTheKernelHasWhatWasNoted) {
  write(false);
  expect({0, 1, 2}, {}, true);
}

TEST_F(Journal, AfterAPowerCutOnlyWhatWasSynced) {
  write(false);
  ops.boot = "second";
  expect({0, 1}, {2}, false);
  ops.boot = "";  // the kernel does not tell: it may be another one
  expect({0, 1}, {2}, false);
}

TEST_F(Journal, ASealLastsOverAPowerCut) {
  write(true);
  expect({0, 1, 2}, {}, true);
  ops.boot = "second";
  expect({0, 1, 2}, {}, true);
}

TEST_F(Journal, AFileThatWasTouchedIsDoubted) {
  write(true);
  Bytes bytes = read_file(part);
  bytes[5000] ^= 1;
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // time stamps have a grain
  write_file(part, bytes);
  expect({}, {0, 1, 2}, false);
}

TEST_F(Journal, WithoutASealItMayNotBeYoungerThanTheJournal) {
  write(false);
  touch_part(std::chrono::seconds(10));
  expect({}, {0, 1, 2}, false);
  ops.boot = "second";  // the kernel writes inodes when it likes
  expect({0, 1}, {2}, false);
  touch_part(std::chrono::seconds(100));
  expect({}, {0, 1, 2}, false);
}

TEST_F(Journal, AnotherFileUnderTheNameIsDoubted) {
  write(true);
  fs::copy_file(part, folder / "copy");
  fs::rename(folder / "copy", part);
  expect({}, {0, 1, 2}, false);
}

TEST_F(Journal, OfAnotherSliceOrLengthItSaysNothing) {
  write(true);
  fs::resize_file(part, layout.file_bytes - 1);
  expect({}, {}, false);
  fs::resize_file(part, layout.file_bytes);
  layout = make_layout(whole, content_of(*whole).identity, layer_tensors(0, 2));
  write_file(part, Bytes(layout.file_bytes));
  expect({}, {}, false);
}

TEST_F(Journal, ABeginningThatWasDroppedIsGoneWhateverElseIsBelieved) {
  {
    SliceJournal journal(layout, path, ops);
    Sha256State state;
    state.n_bytes = 128;
    journal.start(part_state(), {}, {{3, state}});
    EXPECT_EQ(SliceJournal(layout, path, ops).read(part_state()).beginnings.size(), 1U);
    journal.drop_beginning(3);
  }
  expect({}, {}, false);
  ops.boot = "second";
  expect({}, {}, false);
}

TEST_F(Journal, ATornRecordEndsIt) {
  write(false);
  const Bytes good = read_file(path);
  const std::size_t end_of_head = good.size() - 6 * 56;  // unit, mark, unit, mark, unit, beginning
  for (std::size_t at = end_of_head; at < good.size(); ++at) {
    Bytes bytes = good;
    bytes[at] ^= 8;
    write_file(path, bytes);
    const SliceJournal::Content content = read();
    const std::size_t n_whole = (at - end_of_head) / 56;
    EXPECT_EQ(content.believed.size(), n_whole == 0   ? 0U
                                       : n_whole <= 2 ? 1U
                                       : n_whole <= 4 ? 2U
                                                      : 3U);
    EXPECT_TRUE(content.doubted.empty());
  }
}

}  // namespace
}  // namespace moesaic::cluster::testing
