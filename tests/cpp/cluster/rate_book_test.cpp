// Rates are remembered for exactly the machine and build that they were measured on; what is
// damaged, or of another one, is as good as nothing and is replaced.
#include "cluster/measure/rate_book.h"

#include <gtest/gtest.h>

#include <limits>

#include "cluster/weight_rig.h"

namespace moesaic::cluster::testing {
namespace {

const RateKey kKey{"1.2.3", "avx512vnni", "A Processor", 4};
constexpr Rates kRates{.read_bytes_per_s = 38.5e9, .matmul_ops_per_s = 612e9};

class RateBookTest : public ::testing::Test {
 protected:
  RateBook book(const RateKey& key = kKey, FileOps* ops = nullptr) {
    return {folder.str(), key, ops == nullptr ? system : *ops,
            [this](const std::string& event, const std::string& text) {
              log.push_back(event + ": " + text);
            }};
  }
  static void expect_known(const RateBook& book) {
    const std::optional<Rates> found = book.find();
    ASSERT_TRUE(found);
    EXPECT_EQ(found->read_bytes_per_s, kRates.read_bytes_per_s);
    EXPECT_EQ(found->matmul_ops_per_s, kRates.matmul_ops_per_s);
  }

  Folder folder;
  FileOps system;
  std::vector<std::string> log;
};

TEST_F(RateBookTest, TheNextProcessKnows) {
  EXPECT_FALSE(book().find());
  book().add(kRates);
  expect_known(book());
  EXPECT_EQ(folder.names().size(), 1U);  // nothing temporary
  book().add({.read_bytes_per_s = 1e9, .matmul_ops_per_s = 1e9});
  EXPECT_EQ(book().find()->read_bytes_per_s, 1e9);
  EXPECT_EQ(folder.names().size(), 1U);
}

TEST_F(RateBookTest, OfThisBuildAndProcessorOnly) {
  book().add(kRates);
  for (const RateKey& other : {RateKey{"1.2.4", kKey.isa, kKey.processor, kKey.threads},
                               RateKey{kKey.release, "avx2", kKey.processor, kKey.threads},
                               RateKey{kKey.release, kKey.isa, "Another", kKey.threads},
                               RateKey{kKey.release, kKey.isa, kKey.processor, 5},
                               RateKey{"1.2.3\navx512vnni", "A Processor", "", 4}}) {
    EXPECT_FALSE(book(other).find()) << other.release << other.isa << other.processor;
    // Nor when one's file stands where the other's should.
    Folder moved;
    fs::copy_file(book().path(), moved / fs::path(book(other).path()).filename().string());
    EXPECT_FALSE(RateBook(moved.str(), other, system, {}).find());
  }
  expect_known(book());
}

TEST_F(RateBookTest, AnyDamageIsFoundAndReplaced) {
  book().add(kRates);
  const Bytes good = read_file(book().path());
  for (std::size_t i = 0; i < good.size(); ++i) {
    Bytes bytes = good;
    bytes[i] ^= 0x10;
    write_file(book().path(), bytes);
    EXPECT_FALSE(book().find()) << i;
    bytes = good;
    bytes.resize(i);
    write_file(book().path(), bytes);
    EXPECT_FALSE(book().find()) << i;
  }
  Bytes longer = good;
  longer.push_back(0);
  write_file(book().path(), longer);
  EXPECT_FALSE(book().find());
  write_file(book().path(), noise(1 << 20, 3));
  EXPECT_FALSE(book().find());
  book().add(kRates);
  expect_known(book());
}

TEST_F(RateBookTest, RatesThatNoMachineHasAreNotBelieved) {
  for (const double bad : {0.0, -1.0, 1.0, 1e30, std::numeric_limits<double>::infinity(),
                           std::numeric_limits<double>::quiet_NaN()}) {
    book().add({.read_bytes_per_s = bad, .matmul_ops_per_s = 1e9});
    EXPECT_FALSE(book().find()) << bad;
    book().add({.read_bytes_per_s = 1e9, .matmul_ops_per_s = bad});
    EXPECT_FALSE(book().find()) << bad;
  }
}

TEST_F(RateBookTest, AFailingDiskIsOneLineOfTheLog) {
  for (int at = 0; at < 4; ++at) {  // open, write, sync, rename
    FaultyOps ops;
    ops.fail_at = at;
    book(kKey, &ops).add(kRates);
    EXPECT_EQ(log.size(), static_cast<std::size_t>(at + 1));
    EXPECT_EQ(folder.names().size(), 0U);
  }
  RateBook nowhere("", kKey, system, {});
  nowhere.add(kRates);
  EXPECT_FALSE(nowhere.find());
  EXPECT_EQ(nowhere.path(), "");
}

TEST(RateBook, TheProcessorHasAName) { EXPECT_FALSE(processor_model().empty()); }

}  // namespace
}  // namespace moesaic::cluster::testing
