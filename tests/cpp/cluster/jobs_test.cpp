// Work that links ask a worker for: in order, bounded for each and for all, whatever it throws.
#include "cluster/worker/jobs.h"

#include <gtest/gtest.h>

#include <atomic>

#include "base/thrown.h"
#include "net/rig.h"

namespace moesaic::cluster {
namespace {

using net::testing::eventually;

TEST(Jobs, AreDoneInOrderWhateverOneThrows) {
  Jobs jobs("test-jobs");
  std::atomic<int> n_done{0};
  jobs.add(&jobs, [] { fail<IoError>("a measurement that fails"); });
  for (int i = 0; i < 5; ++i) {
    jobs.add(&jobs, [&, i] { n_done = n_done == i ? i + 1 : -100; });
  }
  EXPECT_TRUE(eventually([&] { return n_done == 5; }));
}

TEST(Jobs, OneAskerDoesNotFillTheQueue) {
  Jobs jobs("test-jobs");
  std::atomic<bool> let_go{false};
  const int one = 0;
  const int other = 0;
  std::atomic<int> n_done{0};
  std::size_t n_taken = 0;
  const std::string text = moesaic::testing::thrown<OutOfMemoryError>([&] {
    for (; n_taken < 100'000; ++n_taken) {
      jobs.add(&one, [&] { eventually([&] { return let_go.load(); }); });
    }
  });
  EXPECT_EQ(n_taken, Jobs::kMostOfOne);
  EXPECT_NE(text.find("wait for their answers"), std::string::npos) << text;
  EXPECT_NO_THROW(jobs.add(&other, [&] { ++n_done; }));
  let_go = true;
  EXPECT_TRUE(eventually([&] { return n_done == 1; }));
  EXPECT_TRUE(eventually([&] {  // its places are free again
    try {
      jobs.add(&one, [] {});
      return true;
    } catch (const OutOfMemoryError&) {
      return false;
    }
  }));
}

}  // namespace
}  // namespace moesaic::cluster
