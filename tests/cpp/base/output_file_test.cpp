// OutputFile: whole files only, links kept, nothing but regular files replaced.
#include "base/output_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "base/errors.h"
#include "thrown.h"

namespace moesaic {
namespace {

namespace fs = std::filesystem;
using Access = OutputFile::Access;
using testing::thrown;

std::span<const std::uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

std::string content(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

class OutputFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "moesaic_output_XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  static void put(const fs::path& path, std::string_view text, Access access = Access::kAsUsual) {
    OutputFile file("test", path.string(), access);
    file.write(bytes_of(text));
    file.commit();
  }
  std::int64_t n_entries() const {
    return std::distance(fs::directory_iterator(folder_), fs::directory_iterator());
  }
  static unsigned mode(const fs::path& path) {
    struct stat info {};
    EXPECT_EQ(::stat(path.c_str(), &info), 0);
    return info.st_mode & 07777U;
  }

  fs::path folder_;
};

TEST_F(OutputFiles, TheNameShowsTheOldOrTheNewContent) {
  const fs::path path = folder_ / "f";
  put(path, "old");
  {
    OutputFile file("test", path.string(), Access::kAsUsual);
    file.write(bytes_of("half"));
    EXPECT_EQ(content(path), "old");
  }  // given up
  EXPECT_EQ(content(path), "old");
  EXPECT_EQ(n_entries(), 1);
  put(path, "new");
  EXPECT_EQ(content(path), "new");
  EXPECT_EQ(n_entries(), 1);
}

TEST_F(OutputFiles, AKilledWriterLeavesTheOldFile) {
  const fs::path path = folder_ / "f";
  put(path, "old");
  const pid_t child = ::fork();
  if (child == 0) {
    OutputFile file("test", path.string(), Access::kAsUsual);
    file.write(bytes_of("half"));
    ::raise(SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(content(path), "old");
}

TEST_F(OutputFiles, ModesAreTheUmasksTheOldFilesOrTheOwnersOnly) {
  const mode_t before = ::umask(027);
  put(folder_ / "new", "x");
  put(folder_ / "private", "x", Access::kOwnerOnly);
  {
    OutputFile file("test", (folder_ / "under way").string(), Access::kAsUsual);
    for (const fs::directory_entry& entry : fs::directory_iterator(folder_)) {
      if (entry.path().filename().string().starts_with("under way")) {
        EXPECT_EQ(mode(entry.path()), 0600U);
      }
    }
  }
  ::umask(before);
  EXPECT_EQ(mode(folder_ / "new"), 0640U);
  EXPECT_EQ(mode(folder_ / "private"), 0600U);
  fs::permissions(folder_ / "new", fs::perms(0604));
  put(folder_ / "new", "y");
  EXPECT_EQ(mode(folder_ / "new"), 0604U);
}

TEST_F(OutputFiles, LinksAreWrittenThrough) {
  fs::create_directory(folder_ / "other");
  put(folder_ / "other" / "target", "old");
  fs::create_symlink("other/target", folder_ / "link");  // relative to the link's own folder
  fs::create_symlink("link", folder_ / "second");
  put(folder_ / "second", "new");
  EXPECT_TRUE(fs::is_symlink(folder_ / "link"));
  EXPECT_TRUE(fs::is_symlink(folder_ / "second"));
  EXPECT_EQ(content(folder_ / "other" / "target"), "new");
  fs::create_symlink("other/not yet", folder_ / "dangling");
  put(folder_ / "dangling", "made");
  EXPECT_TRUE(fs::is_symlink(folder_ / "dangling"));
  EXPECT_EQ(content(folder_ / "other" / "not yet"), "made");
  fs::create_symlink("b", folder_ / "a");
  fs::create_symlink("a", folder_ / "b");
  EXPECT_NE(thrown<IoError>([&] { put(folder_ / "a", "x"); }).find("Too many levels"),
            std::string::npos);
}

TEST_F(OutputFiles, OnlyRegularFilesAreReplaced) {
  const fs::path fifo = folder_ / "fifo";
  ASSERT_EQ(::mkfifo(fifo.c_str(), 0600), 0);
  fs::create_symlink("fifo", folder_ / "to fifo");
  fs::create_directory(folder_ / "d");
  fs::create_symlink("/dev/null", folder_ / "to null");
  EXPECT_NE(thrown<IoError>([&] { put(fifo, "x"); }).find("a pipe"), std::string::npos);
  EXPECT_NE(thrown<IoError>([&] { put(folder_ / "to fifo", "x"); }).find("a pipe"),
            std::string::npos);
  EXPECT_NE(thrown<IoError>([&] { put(folder_ / "d", "x"); }).find("a directory"),
            std::string::npos);
  EXPECT_NE(thrown<IoError>([&] { put(folder_ / "to null", "x"); }).find("a device"),
            std::string::npos);
  EXPECT_TRUE(fs::is_fifo(fifo));
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
  EXPECT_EQ(n_entries(), 4);
  thrown<IoError>([&] { put(folder_ / "d" / "", "x"); });
  thrown<IoError>([&] { put(folder_ / "new" / "", "x"); });
  thrown<IoError>([&] { put("", "x"); });
}

// A shell's `> file` leaves the descriptor at the old file when another is renamed over it.
TEST_F(OutputFiles, OpenDescriptorsAreNotReplaced) {
  put(folder_ / "f", "old");
  std::ofstream open(folder_ / "f", std::ios::app);
  for (const fs::directory_entry& entry : fs::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    if (fs::read_symlink(entry.path(), gone) != folder_ / "f") continue;
    const std::string text = thrown<IoError>([&] { put(entry.path(), "new"); });
    EXPECT_NE(text.find("open file descriptor"), std::string::npos) << text;
    thrown<IoError>([&] { put(fs::path("/dev/fd") / entry.path().filename(), "new"); });
  }
  EXPECT_EQ(content(folder_ / "f"), "old");
  EXPECT_EQ(n_entries(), 1);
}

TEST_F(OutputFiles, ATargetThatTurnsIntoAPipeIsRefusedAtTheEnd) {
  const fs::path path = folder_ / "f";
  {
    OutputFile file("test", path.string(), Access::kAsUsual);
    file.write(bytes_of("x"));
    ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
    thrown<IoError>([&] { file.commit(); });
  }
  EXPECT_TRUE(fs::is_fifo(path));
  EXPECT_EQ(n_entries(), 1);
}

TEST_F(OutputFiles, WritersOfOneNameDoNotMix) {
  const fs::path path = folder_ / "f";
  const std::string a(100000, 'a');
  const std::string b(70000, 'b');
  const auto many = [&](const std::string& text) {
    for (int i = 0; i < 20; ++i) put(path, text);
  };
  put(path, a);
  std::thread first(many, a);
  std::thread second(many, b);
  for (int i = 0; i < 50; ++i) {
    const std::string seen = content(path);
    EXPECT_TRUE(seen == a || seen == b) << seen.size();
  }
  first.join();
  second.join();
  EXPECT_EQ(n_entries(), 1);
}

TEST_F(OutputFiles, TheLongestNameIsWritten) {
  const fs::path path = folder_ / std::string(255, 'n');
  put(path, "x");
  EXPECT_EQ(content(path), "x");
}

}  // namespace
}  // namespace moesaic
