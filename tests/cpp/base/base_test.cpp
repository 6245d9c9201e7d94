// Buffers, digests, checked arithmetic, messages and cgroup limits.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "base/aligned_buffer.h"
#include "base/cancel.h"
#include "base/cgroup.h"
#include "base/checked.h"
#include "base/digest.h"
#include "base/errors.h"

namespace moesaic {
namespace {

namespace fs = std::filesystem;

bool all_are(const std::uint8_t* data, std::size_t n, std::uint8_t value) {
  return std::all_of(data, data + n, [value](std::uint8_t b) { return b == value; });
}

TEST(AlignedBuffer, IsZeroAlignedAndMovable) {
  AlignedBuffer buffer(100000);
  EXPECT_EQ(buffer.size(), 100000U);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % 64, 0U);
  EXPECT_TRUE(all_are(buffer.data(), buffer.size(), 0));
  std::fill_n(buffer.data(), buffer.size(), std::uint8_t{7});
  AlignedBuffer other = std::move(buffer);
  EXPECT_TRUE(all_are(other.data(), other.size(), 7));
  AlignedBuffer empty;
  EXPECT_EQ(empty.size(), 0U);
  other = std::move(empty);
  EXPECT_EQ(AlignedBuffer(0).data(), nullptr);
}

TEST(AlignedBuffer, ReleaseGivesZerosInTheRangeOnly) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t n = 10 * page;
  for (const auto& [offset, length] : {std::pair<std::size_t, std::size_t>{0, n},
                                       {1, n - 2},
                                       {page, page},
                                       {page / 2, page},
                                       {page + 5, 10},
                                       {2 * page - 1, 2},
                                       {3 * page + 1, 4 * page},
                                       {n - 1, 1},
                                       {5, 0}}) {
    AlignedBuffer buffer(n);
    std::fill_n(buffer.data(), n, std::uint8_t{9});
    buffer.release(offset, length);
    EXPECT_TRUE(all_are(buffer.data(), offset, 9)) << offset << "+" << length;
    EXPECT_TRUE(all_are(buffer.data() + offset, length, 0)) << offset << "+" << length;
    EXPECT_TRUE(all_are(buffer.data() + offset + length, n - offset - length, 9))
        << offset << "+" << length;
  }
  AlignedBuffer buffer(n);
  EXPECT_THROW(buffer.release(1, n), InternalError);
  EXPECT_THROW(buffer.release(n + 1, 0), InternalError);
}

TEST(AlignedBuffer, ReleaseFreesPages) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  AlignedBuffer buffer(64 * page);
  std::fill_n(buffer.data(), buffer.size(), std::uint8_t{1});
  buffer.release(page, 62 * page);
  std::vector<unsigned char> resident(64);
  ASSERT_EQ(mincore(buffer.data(), buffer.size(), resident.data()), 0);
  EXPECT_LE(std::count_if(resident.begin(), resident.end(), [](auto r) { return (r & 1) != 0; }),
            2);
}

TEST(AlignedBuffer, AskingForTooMuchSaysSo) {
  try {
    const AlignedBuffer buffer(std::size_t{1} << 60);
    FAIL();
  } catch (const OutOfMemoryError& error) {
    EXPECT_EQ(error.needed_bytes, std::uint64_t{1} << 60);
    EXPECT_GT(error.free_bytes, 0U);
  }
}

TEST(Memory, SomeIsAvailable) {
  EXPECT_GT(available_memory_bytes(), std::uint64_t{1} << 20);
  EXPECT_LT(available_memory_bytes(), std::uint64_t{1} << 50);
}

// FIPS 180-4's examples.
TEST(Sha256, KnownDigests) {
  Sha256 sha;
  EXPECT_EQ(to_hex(sha.finish()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  sha.update("abc", 3);
  EXPECT_EQ(to_hex(sha.finish()),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  sha.update("ab", 2);
  Sha256 moved = std::move(sha);
  moved.update("c", 1);
  EXPECT_EQ(to_hex(moved.finish()),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Sha256, GoesOnWhereAnotherWas) {
  std::vector<std::uint8_t> bytes(1000);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::uint8_t>(i * 37);
  Sha256 whole;
  whole.update(bytes.data(), bytes.size());
  const Sha256Digest want = whole.finish();
  for (const std::size_t n : {0UL, 1UL, 63UL, 64UL, 65UL, 128UL, 999UL, 1000UL}) {
    Sha256 first;
    first.update(bytes.data(), n);
    const Sha256State state = first.state();
    EXPECT_EQ(state.n_bytes, n / 64 * 64);
    Sha256 second(state);
    second.update(bytes.data() + state.n_bytes, bytes.size() - state.n_bytes);
    EXPECT_EQ(second.finish(), want) << n;
  }
  // Of more bits than 32 can count, which the sum ends with.
  Sha256State far;
  far.n_bytes = std::uint64_t{1} << 40;
  EXPECT_EQ(Sha256(far).state().n_bytes, far.n_bytes);
  far.n_bytes += 1;
  EXPECT_THROW(Sha256{far}, ArgumentError);
}

TEST(Checked, Arithmetic) {
  EXPECT_EQ(checked_add(1, 2, "x"), 3U);
  EXPECT_EQ(checked_mul(3, 4, "x"), 12U);
  EXPECT_EQ(checked_align(33, 32, "x"), 64U);
  EXPECT_EQ(checked_align(64, 32, "x"), 64U);
  EXPECT_THROW(checked_add(UINT64_MAX, 1, "x"), FormatError);
  EXPECT_THROW(checked_mul(std::uint64_t{1} << 32, std::uint64_t{1} << 32, "x"), FormatError);
  EXPECT_THROW(checked_align(UINT64_MAX, 32, "x"), FormatError);
}

TEST(Errors, MessagesAndFamily) {
  try {
    fail<ClosedError>("[Model] ", 3, " of ", 4.5);
  } catch (const ArgumentError& error) {
    EXPECT_STREQ(error.what(), "[Model] 3 of 4.5");
  }
  CancelFlag flag;
  EXPECT_NO_THROW(flag.check());
  flag.set();
  EXPECT_THROW(flag.check(), CancelledError);
}

// A pretended /proc/self/cgroup and /sys/fs/cgroup.
class Cgroup : public testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / ("moesaic_cgroup_" + std::to_string(getpid()));
    fs::create_directories(root_);
  }
  void TearDown() override { fs::remove_all(root_); }
  void write(const std::string& path, const std::string& text) const {
    fs::create_directories((root_ / path).parent_path());
    std::ofstream(root_ / path) << text << "\n";
  }
  CgroupLimits limits() const {
    return cgroup_limits((root_ / "membership").string(), (root_ / "fs").string());
  }
  fs::path root_;
};

TEST_F(Cgroup, NothingThereIsNoLimit) {
  EXPECT_EQ(limits().cpus, 0);
  EXPECT_EQ(limits().memory_left_bytes, CgroupLimits::kNoLimit);
}

TEST_F(Cgroup, V2TakesTheTightestOnTheWayUp) {
  write("membership", "0::/a/b");
  write("fs/a/b/cpu.max", "max 100000");
  write("fs/a/cpu.max", "250000 100000");
  write("fs/a/b/memory.max", "max");
  write("fs/a/memory.max", "1000000");
  write("fs/a/memory.current", "700000");
  write("fs/a/memory.stat", "anon 300000\nactive_file 100000\ninactive_file 200000");
  EXPECT_EQ(limits().cpus, 2.5);
  EXPECT_EQ(limits().memory_bytes, 1000000U);
  EXPECT_EQ(limits().memory_left_bytes, 600000U);  // page cache counts as free
}

TEST_F(Cgroup, V2InAContainerSeesItsOwnRoot) {
  write("membership", "0::/only/visible/outside");
  write("fs/cpu.max", "50000 100000");
  EXPECT_EQ(limits().cpus, 0.5);
}

TEST_F(Cgroup, V1) {
  write("membership", "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n1:name=systemd:/");
  write("fs/cpu/docker/x/cpu.cfs_quota_us", "150000");
  write("fs/cpu/docker/x/cpu.cfs_period_us", "100000");
  write("fs/cpu/cpu.cfs_quota_us", "-1");
  write("fs/cpu/cpu.cfs_period_us", "100000");
  write("fs/memory/docker/x/memory.limit_in_bytes", "5000");
  write("fs/memory/docker/x/memory.usage_in_bytes", "6000");
  write("fs/memory/memory.limit_in_bytes", "9223372036854771712");
  EXPECT_EQ(limits().cpus, 1.5);
  EXPECT_EQ(limits().memory_bytes, 5000U);
  EXPECT_EQ(limits().memory_left_bytes, 0U);
}

TEST_F(Cgroup, RubbishIsNoLimit) {
  write("membership", "rubbish\n0::\n::\n0::relative");
  write("fs/cpu.max", "lots and lots");
  write("fs/memory.max", "-5");
  EXPECT_EQ(limits().cpus, 0);
  EXPECT_EQ(limits().memory_left_bytes, CgroupLimits::kNoLimit);
}

}  // namespace
}  // namespace moesaic
