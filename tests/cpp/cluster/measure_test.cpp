// Rates of this machine are plausible, quickly there, and leave nothing behind. How fast is no
// test's business.
#include "cluster/measure/measure.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>

#include "base/errors.h"

namespace moesaic::cluster {
namespace {

long resident_kb() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word) {
    if (word == "VmRSS:") {
      status >> word;
      return std::stol(word);
    }
  }
  return 0;
}

TEST(Measure, RatesArePlausibleAndTheMemoryIsGivenBack) {
  measure(1);  // what the allocator keeps, it keeps now
  const long before = resident_kb();
  const auto begin = std::chrono::steady_clock::now();
  const Rates rates = measure(1);
  // Under a second on an idle machine; a machine that runs tests is none.
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(20));
  EXPECT_GT(rates.read_bytes_per_s, 1e7);
  EXPECT_LT(rates.read_bytes_per_s, 1e12);
  EXPECT_GT(rates.matmul_ops_per_s, 1e8);
  EXPECT_LT(rates.matmul_ops_per_s, 1e14);
  EXPECT_LT(resident_kb() - before, 20 * 1024);
}

}  // namespace
}  // namespace moesaic::cluster
