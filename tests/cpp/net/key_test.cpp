// Key files, derivations (against values made with Python's hmac), and addresses as text.
#include "net/key.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/errors.h"
#include "base/thrown.h"
#include "net/connection.h"

namespace moesaic::net {
namespace {

namespace fs = std::filesystem;
using moesaic::testing::thrown;

class KeyFile : public ::testing::Test {
 protected:
  KeyFile() : folder(fs::temp_directory_path() / ("moesaic-key-" + std::to_string(getpid()))) {
    fs::create_directories(folder);
  }
  ~KeyFile() override { fs::remove_all(folder); }
  std::string path(const char* name) const { return (folder / name).string(); }
  fs::path folder;
};

const std::string kCounting = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";
const std::string kOther = "ff0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

wire::NodeId node_from(std::uint8_t first) {
  wire::NodeId id{};
  for (std::size_t i = 0; i < id.size(); ++i) id[i] = static_cast<std::uint8_t>(first + i);
  return id;
}

template <std::size_t N>
std::string hex(const std::array<std::uint8_t, N>& bytes) {
  std::string text;
  for (const std::uint8_t byte : bytes) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

TEST_F(KeyFile, GeneratedOnceAndPrivate) {
  const std::string file = path("cluster.key");
  const mode_t before = umask(0);
  ClusterKey::generate(file);
  umask(before);
  struct stat status {};
  ASSERT_EQ(stat(file.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777U, 0600U);
  EXPECT_EQ(status.st_size, 65);
  const ClusterKey key = ClusterKey::read(file);
  EXPECT_EQ(key.n_keys(), 1);
  EXPECT_NE(key.text(), ClusterKey::random().text());
  EXPECT_THROW(ClusterKey::generate(file), IoError);  // never over an existing one
  EXPECT_EQ(ClusterKey::read(file).text(), key.text());
}

TEST_F(KeyFile, OthersMayNotReadIt) {
  const std::string file = path("cluster.key");
  ClusterKey::generate(file);
  for (const mode_t mode : {0640, 0604, 0660, 0644, 0601, 0610}) {
    chmod(file.c_str(), mode);
    EXPECT_THROW(ClusterKey::read(file), IoError) << std::oct << mode;
  }
  chmod(file.c_str(), 0400);
  EXPECT_NO_THROW(ClusterKey::read(file));
  EXPECT_THROW(ClusterKey::read(path("missing")), IoError);
}

TEST_F(KeyFile, WhatIsNoKeyIsNamed) {
  const std::string file = path("cluster.key");
  for (const std::string& bad :
       {std::string(), std::string("abc\n"), kCounting + kCounting, std::string(5000, '#')}) {
    std::ofstream(file) << bad;
    chmod(file.c_str(), 0600);
    const std::string text = thrown<ArgumentError>([&] { ClusterKey::read(file); });
    EXPECT_NE(text.find(file), std::string::npos) << text;
    EXPECT_NE(text.find("moesaic keygen"), std::string::npos) << text;
    EXPECT_EQ(text.find(kCounting.substr(5, 10)), std::string::npos) << text;
  }
  std::ofstream(file) << "# " << std::string(3000, 'a') << "\n" << kCounting << "\n";
  EXPECT_EQ(ClusterKey::read(file).n_keys(), 1);
}

TEST(Key, TextThatIsNoKeyIsRefusedAndNotShown) {
  EXPECT_EQ(ClusterKey::parse(kCounting).n_keys(), 1);
  EXPECT_EQ(
      ClusterKey::parse("# current, then previous\n" + kCounting + "\r\n\n" + kOther).n_keys(), 2);
  for (const std::string& bad :
       {std::string(), std::string("# only words\n"), std::string("correct horse battery staple"),
        kCounting.substr(1), kCounting + "0", "g" + kCounting.substr(1),
        kCounting + "\n" + kOther + "\n" + kCounting}) {
    try {
      ClusterKey::parse(bad);
      FAIL() << bad;
    } catch (const ArgumentError& error) {
      if (bad.size() > 20) {
        EXPECT_EQ(std::string(error.what()).find(bad.substr(5, 10)), std::string::npos);
      }
    }
  }
}

TEST(Key, DerivationsAreFixed) {
  const ClusterKey key = ClusterKey::parse(kCounting);
  EXPECT_EQ(key.key_id(0), "dd12cfd81900afb6");
  EXPECT_EQ(hex(key.psk(0, node_from(0))),
            "8745c321822f3542e9b23746a51c820867e5bd15537f304b95b838b0d319750e");
  Secret exporter{};
  for (std::size_t i = 0; i < 32; ++i) exporter[i] = static_cast<std::uint8_t>(32 + i);
  EXPECT_EQ(hex(key.proof(0, node_from(0), node_from(16), exporter)),
            "ea6de37d67b957459db08ae4e99443d47d036dd8ce7e47fa7f2d6e6a32460163");
  // Another dialler, key, end or connection: another value.
  const ClusterKey both = ClusterKey::parse(kOther + "\n" + kCounting);
  EXPECT_NE(key.psk(0, node_from(0)), key.psk(0, node_from(1)));
  EXPECT_NE(both.psk(0, node_from(0)), both.psk(1, node_from(0)));
  EXPECT_EQ(both.psk(1, node_from(0)), key.psk(0, node_from(0)));
  EXPECT_NE(key.proof(0, node_from(0), node_from(16), exporter),
            key.proof(0, node_from(16), node_from(0), exporter));
  EXPECT_NE(key.proof(0, node_from(0), node_from(16), exporter),
            key.proof(0, node_from(0), node_from(16), Secret{}));
}

TEST(Key, IdentitiesAreOpenedByTheirKeyAlone) {
  const ClusterKey key = ClusterKey::parse(kCounting);
  const ClusterKey both = ClusterKey::parse(kOther + "\n" + kCounting);
  const std::vector<std::uint8_t> identity = key.identity(0, node_from(7));
  ASSERT_EQ(identity.size(), ClusterKey::kIdentityBytes);
  const auto claim = both.open_identity(identity);
  ASSERT_TRUE(claim);
  EXPECT_EQ(claim->epoch, 1);
  EXPECT_EQ(claim->dialler, node_from(7));
  EXPECT_FALSE(key.open_identity(both.identity(0, node_from(7))));
  EXPECT_NE(identity, key.identity(0, node_from(7)));
  for (std::size_t i = 0; i < identity.size(); ++i) {
    std::vector<std::uint8_t> changed = identity;
    changed[i] ^= 1;
    EXPECT_FALSE(key.open_identity(changed)) << i;
  }
  for (const std::size_t n : {0, 1, 47, 49}) {
    std::vector<std::uint8_t> cut = identity;
    cut.resize(n);
    EXPECT_FALSE(key.open_identity(cut)) << n;
  }
}

TEST(Address, HostAndPort) {
  using Pair = std::pair<std::string, std::uint16_t>;
  EXPECT_EQ(split_address("10.0.0.2:9777"), (Pair{"10.0.0.2", 9777}));
  EXPECT_EQ(split_address("shelf-3:0"), (Pair{"shelf-3", 0}));
  EXPECT_EQ(split_address("[::1]:65535"), (Pair{"::1", 65535}));
  for (const char* bad : {"", "host", ":9777", "host:", "host:65536", "host:-1", "host:+1",
                          "host:9777x", "::1:9777", "host: 1", "[::1]"}) {
    EXPECT_THROW(split_address(bad), ArgumentError) << bad;
  }
}

}  // namespace
}  // namespace moesaic::net
