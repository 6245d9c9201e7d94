// Split sets: opened from any part; missing, mixed, lying and renamed parts are named.
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "base/errors.h"
#include "gguf/file.h"
#include "gguf/writer.h"

namespace moesaic::gguf {
namespace {

namespace fs = std::filesystem;

struct Part {
  int number = 0;
  int count = 3;
  int n_tensors = 3;  // of the set
  std::vector<std::string> names;
};

class Split : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("moesaic_split_" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string path(int number, int count = 3) const {
    char name[64];
    std::snprintf(name, sizeof name, "m-%05d-of-%05d.gguf", number + 1, count);
    return (folder_ / name).string();
  }

  void write(const Part& part, const std::string& to) const {
    Writer writer;
    if (part.number == 0) writer.add_string("general.architecture", "llama");
    writer.add_uint("split.no", ValueType::kU16, static_cast<std::uint64_t>(part.number));
    writer.add_uint("split.count", ValueType::kU16, static_cast<std::uint64_t>(part.count));
    writer.add_int("split.tensors.count", ValueType::kI32, part.n_tensors);
    for (const std::string& name : part.names) {
      const std::uint64_t ne[] = {4};
      const std::vector<std::uint8_t> bytes(16, static_cast<std::uint8_t>(part.number + 1));
      writer.add_tensor(name, quant::Qtype::kF32, ne, bytes);
    }
    writer.write(to);
  }

  void write_set() const {
    write({0, 3, 3, {"a", "b"}}, path(0));
    write({1, 3, 3, {}}, path(1));
    write({2, 3, 3, {"c"}}, path(2));
  }

  template <typename E = FormatError>
  std::string refusal(const std::string& which) const {
    try {
      File::open(which);
    } catch (const E& error) {
      return error.what();
    }
    return "";
  }

  fs::path folder_;
};

TEST_F(Split, OpensFromAnyPart) {
  write_set();
  for (int number = 0; number < 3; ++number) {
    const auto file = File::open(path(number));
    ASSERT_EQ(file->paths().size(), 3U);
    EXPECT_EQ(file->paths()[2], path(2));
    EXPECT_EQ(file->find("general.architecture")->as_string(), "llama");
    ASSERT_EQ(file->tensors().size(), 3U);
    const TensorInfo* c = file->find_tensor("c");
    ASSERT_NE(c, nullptr);
    EXPECT_EQ(c->file, 2);
    EXPECT_EQ(file->bytes(*c)[0], 3);
    EXPECT_EQ(file->bytes(*file->find_tensor("a"))[0], 1);
  }
}

TEST_F(Split, NamesTheMissingPart) {
  write_set();
  fs::remove(path(1));
  EXPECT_NE(refusal(path(2)).find(path(1)), std::string::npos) << refusal(path(2));
  fs::remove(path(0));
  const std::string message = refusal(path(2));
  EXPECT_NE(message.find(path(0)), std::string::npos) << message;
  EXPECT_NE(message.find(path(1)), std::string::npos) << message;
}

TEST_F(Split, LyingCountIsCheapAndNamed) {
  write({0, 60000, 3, {"a"}}, path(0, 60000));
  const std::string message = refusal(path(0, 60000));
  EXPECT_NE(message.find("part 1 of 60000"), std::string::npos) << message;
  EXPECT_NE(message.find(", ..."), std::string::npos) << message;
}

TEST_F(Split, RenamedPart) {
  write_set();
  const std::string other = (folder_ / "renamed.gguf").string();
  fs::rename(path(0), other);
  EXPECT_NE(refusal(other).find("-00001-of-00003.gguf"), std::string::npos) << refusal(other);
}

TEST_F(Split, MixedParts) {
  write_set();
  write({0, 3, 3, {"c"}}, path(2));  // a first part under the third one's name
  EXPECT_NE(refusal(path(0)).find("need part 3 of 3"), std::string::npos) << refusal(path(0));
  write({2, 4, 3, {"c"}}, path(2));
  EXPECT_NE(refusal(path(0)).find("by its keys it is part 3 of 4"), std::string::npos);
  write({2, 3, 9, {"c"}}, path(2));
  EXPECT_NE(refusal(path(0)).find("split.tensors.count"), std::string::npos);
}

TEST_F(Split, TensorInTwoParts) {
  write_set();
  write({2, 3, 3, {"a"}}, path(2));
  const std::string message = refusal(path(0));
  EXPECT_NE(message.find("tensor \"a\""), std::string::npos) << message;
  EXPECT_NE(message.find(path(2)), std::string::npos) << message;
}

TEST_F(Split, TensorCountIsChecked) {
  write_set();
  write({2, 3, 3, {"c", "d"}}, path(2));
  EXPECT_NE(refusal(path(0)).find("is 3, but the 3 parts hold 4"), std::string::npos)
      << refusal(path(0));
}

TEST_F(Split, DamageInAnotherPartNamesThatPart) {
  write_set();
  fs::resize_file(path(2), fs::file_size(path(2)) - 32);
  const std::string message = refusal(path(0));
  EXPECT_NE(message.find(path(2)), std::string::npos) << message;
  EXPECT_NE(message.find("too early"), std::string::npos) << message;
}

TEST_F(Split, CountOfOneOrZeroIsNotSplit) {
  write({0, 1, 1, {"a"}}, (folder_ / "one.gguf").string());
  write({0, 0, 1, {"a"}}, (folder_ / "merged.gguf").string());
  EXPECT_EQ(File::open((folder_ / "one.gguf").string())->tensors().size(), 1U);
  EXPECT_EQ(File::open((folder_ / "merged.gguf").string())->tensors().size(), 1U);
}

TEST_F(Split, WhatIsNoFileIsAnIoError) {
  write_set();
  EXPECT_NE(refusal<IoError>(folder_.string()).find("m-00001-of-00003.gguf"), std::string::npos);
  EXPECT_NE(refusal<IoError>((folder_ / "absent.gguf").string()).find("No such file"),
            std::string::npos);
  EXPECT_NE(refusal<IoError>("").find("path"), std::string::npos);
  const std::string pipe = (folder_ / "pipe.gguf").string();
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_NE(refusal<IoError>(pipe).find("not a regular file"), std::string::npos);
  std::ofstream((folder_ / "empty.gguf").string());
  EXPECT_NE(refusal((folder_ / "empty.gguf").string()).find("empty"), std::string::npos);
}

}  // namespace
}  // namespace moesaic::gguf
