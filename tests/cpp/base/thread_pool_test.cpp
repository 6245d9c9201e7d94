// The pool: every member runs every job once, barriers hold, exceptions come out whole, splits
// cover, and pools that share cores go on working.
#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <array>
#include <atomic>
#include <chrono>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>

#include "base/errors.h"

namespace moesaic {
namespace {

using Clock = std::chrono::steady_clock;

TEST(ThreadPool, EveryMemberRunsEveryJobOnce) {
  for (const int n : {1, 2, 3, 8}) {
    ThreadPool pool(n);
    ASSERT_EQ(pool.size(), n);
    std::array<int, 8> counts{};  // one writer each
    for (int job = 0; job < 500; ++job) {
      pool.run([&](int member) { ++counts[static_cast<std::size_t>(member)]; });
    }
    for (int member = 0; member < 8; ++member) {
      EXPECT_EQ(counts[static_cast<std::size_t>(member)], member < n ? 500 : 0);
    }
  }
}

TEST(ThreadPool, MemberZeroIsTheCaller) {
  ThreadPool pool(3);
  std::array<std::thread::id, 3> ids;
  pool.run([&](int member) { ids[static_cast<std::size_t>(member)] = std::this_thread::get_id(); });
  EXPECT_EQ(ids[0], std::this_thread::get_id());
  EXPECT_NE(ids[1], ids[0]);
  EXPECT_NE(ids[2], ids[1]);
}

TEST(ThreadPool, BarrierSeparatesPhases) {
  for (const int n : {1, 2, 3, 5}) {
    ThreadPool pool(n);
    std::vector<int> cells(
        static_cast<std::size_t>(n));  // plain ints: a sanitizer sees a broken barrier
    std::atomic<int> n_wrong{0};
    pool.run([&](int member) {
      for (int phase = 1; phase <= 200; ++phase) {
        cells[static_cast<std::size_t>(member)] = phase;
        pool.barrier();
        if (std::accumulate(cells.begin(), cells.end(), 0) != phase * n) ++n_wrong;
        pool.barrier();
      }
    });
    EXPECT_EQ(n_wrong, 0);
  }
}

TEST(ThreadPool, ExceptionsComeOutOfAnyMember) {
  ThreadPool pool(3);
  for (int thrower = 0; thrower < 3; ++thrower) {
    try {
      pool.run([&](int member) {
        if (member == thrower) throw FormatError("from member " + std::to_string(member));
      });
      FAIL();
    } catch (const FormatError& error) {
      EXPECT_EQ(error.what(), "from member " + std::to_string(thrower));
    }
  }
  std::atomic<int> n{0};
  pool.run([&](int) { ++n; });  // and the pool is as good as new
  EXPECT_EQ(n, 3);
}

TEST(ThreadPool, AnExceptionFreesThoseAtTheBarrier) {
  ThreadPool pool(4);
  for (int round = 0; round < 50; ++round) {
    const int thrower = round % 4;
    EXPECT_THROW(pool.run([&](int member) {
      pool.barrier();
      if (member == thrower) throw std::runtime_error("x");
      pool.barrier();
      pool.barrier();
    }),
                 std::runtime_error);
    std::atomic<int> n{0};
    pool.run([&](int) {
      ++n;
      pool.barrier();
    });
    EXPECT_EQ(n, 4);
  }
}

TEST(ThreadPool, SplitCoversInOrder) {
  for (const int n_threads : {1, 2, 3, 7}) {
    const ThreadPool pool(n_threads);
    for (const std::int64_t n : {0, 1, 5, 16, 100, 1023}) {
      for (const std::int64_t grain : {1, 4, 16}) {
        std::int64_t at = 0;
        for (int member = 0; member < n_threads; ++member) {
          const ThreadPool::Range range = pool.split(n, member, grain);
          ASSERT_EQ(range.begin, at);
          ASSERT_TRUE(range.begin % grain == 0 || range.begin == n);
          at = range.end;
        }
        ASSERT_EQ(at, n);
      }
    }
  }
}

TEST(ThreadPool, RefusesSizesOutOfRange) {
  EXPECT_THROW(ThreadPool(0), ArgumentError);
  EXPECT_THROW(ThreadPool(-1), ArgumentError);
  EXPECT_THROW(ThreadPool(10000), ArgumentError);
}

TEST(ThreadPool, WorkersStayWithinTheAllowedCpus) {
  cpu_set_t allowed;
  ASSERT_EQ(sched_getaffinity(0, sizeof allowed, &allowed), 0);
  ASSERT_GE(available_cpus(), 1);
  ASSERT_LE(available_cpus(), CPU_COUNT(&allowed));
  ThreadPool pool(available_cpus());
  std::vector<cpu_set_t> sets(static_cast<std::size_t>(pool.size()));
  pool.run([&](int member) {
    sched_getaffinity(0, sizeof(cpu_set_t), &sets[static_cast<std::size_t>(member)]);
  });
  EXPECT_TRUE(CPU_EQUAL(sets.data(), &allowed));  // the caller is left alone
  for (std::size_t i = 1; i < sets.size(); ++i) {
    EXPECT_EQ(CPU_COUNT(&sets[i]), 1);
    cpu_set_t both;
    CPU_AND(&both, &sets[i], &allowed);
    EXPECT_EQ(CPU_COUNT(&both), 1);
  }
}

// Several teams on the same cores, each as large as the machine: spinning must not starve those
// that work.
TEST(ThreadPool, PoolsSharingCoresDoNotCollapse) {
  constexpr int kPools = 3;
  constexpr int kJobs = 300;
  const auto start = Clock::now();
  std::vector<std::thread> owners;
  for (int i = 0; i < kPools; ++i) {
    owners.emplace_back([] {
      ThreadPool pool(available_cpus() + 1);
      for (int job = 0; job < kJobs; ++job) {
        pool.run([&](int) {
          for (int phase = 0; phase < 5; ++phase) pool.barrier();
        });
      }
    });
  }
  for (std::thread& owner : owners) owner.join();
  // 4,500 barriers: at the 50 us of a sleep and a wake, and three teams in turn, below a second. A
  // spin until descheduled would cost a time slice of milliseconds each.
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(20));
}

TEST(ThreadPool, SleepersUseNoTime) {
  ThreadPool pool(available_cpus());
  pool.run([](int) {});
  timespec before{};
  timespec after{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
  const double used = static_cast<double>(after.tv_sec - before.tv_sec) +
                      1e-9 * static_cast<double>(after.tv_nsec - before.tv_nsec);
  EXPECT_LT(used, 0.05);
}

}  // namespace
}  // namespace moesaic
