// Folders in which other users could put their files in the place of ours.
#include "base/private_folder.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

namespace moesaic {
namespace {

namespace fs = std::filesystem;

class PrivateFolder : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "moesaic_folder_XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    top_ = name;
    fs::create_directories(top_ / "a" / "b");
  }
  void TearDown() override { fs::remove_all(top_); }
  static void set_mode(const fs::path& path, mode_t mode) {
    ASSERT_EQ(::chmod(path.c_str(), mode), 0);
  }
  std::string why() const { return replaceable_by_others((top_ / "a" / "b").string()); }

  fs::path top_;
};

TEST_F(PrivateFolder, ModesDecide) {
  for (const mode_t fine : {0700U, 0755U, 01777U, 0500U}) {
    set_mode(top_ / "a" / "b", fine);
    EXPECT_EQ(why(), "") << std::oct << fine;
  }
  for (const mode_t open : {0777U, 0707U, 0702U, 02777U}) {
    set_mode(top_ / "a" / "b", open);
    EXPECT_NE(why().find("chmod go-w"), std::string::npos) << std::oct << open;
  }
}

TEST_F(PrivateFolder, AFolderAboveCountsToo) {
  set_mode(top_ / "a", 0777);
  EXPECT_NE(why().find((top_ / "a").string() + " (mode 777)"), std::string::npos) << why();
  set_mode(top_ / "a", 01777);
  EXPECT_EQ(why(), "");
}

TEST_F(PrivateFolder, LinksAreFollowed) {
  fs::create_symlink(top_ / "a" / "b", top_ / "link");
  set_mode(top_ / "a", 0777);
  EXPECT_NE(replaceable_by_others((top_ / "link").string()), "");
}

TEST_F(PrivateFolder, OnesOwnGroupMayWriteAnotherMayNot) {
  set_mode(top_ / "a" / "b", 0775);
  ASSERT_EQ(::chown((top_ / "a" / "b").c_str(), static_cast<uid_t>(-1), ::getegid()), 0);
  EXPECT_EQ(why(), "");
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give a folder to any group";
  ASSERT_EQ(::chown((top_ / "a" / "b").c_str(), static_cast<uid_t>(-1), 54321), 0);
  set_mode(top_ / "a" / "b", 0775);
  EXPECT_NE(why().find("chmod g-w"), std::string::npos) << why();
}

TEST_F(PrivateFolder, WhatIsNotThereIsNotJudged) {
  EXPECT_EQ(replaceable_by_others((top_ / "none").string()), "");
}

}  // namespace
}  // namespace moesaic
