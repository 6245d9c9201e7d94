// Turns at a worker's compute: in order of arrival, lent between layers once a quantum is over, and
// given up by those who are cancelled. Counted in turns, never in seconds.
#include "cluster/worker/turns.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "net/rig.h"

namespace moesaic::cluster {
namespace {

using namespace std::chrono_literals;
using net::testing::eventually;

TEST(Turns, AreGivenInOrderOfArrival) {
  Turns turns;
  std::mutex mutex;
  std::vector<int> order;
  std::vector<std::jthread> threads;
  {
    const Turn mine(turns, nullptr);
    for (int i = 0; i < 5; ++i) {
      threads.emplace_back([&, i] {
        const Turn turn(turns, nullptr);
        const std::scoped_lock lock(mutex);
        order.push_back(i);
      });
      ASSERT_TRUE(eventually([&] { return turns.n_waiting() == static_cast<std::size_t>(i) + 1; }));
    }
  }
  threads.clear();
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4}));
}

// A long prompt of 200 layers beside a user of 50 short turns: each of those waits for one layer.
TEST(Turns, AShortTurnWaitsForOneLayerOfALongOne) {
  Turns turns(0ms);
  std::atomic<int> layer{0};
  std::atomic<bool> began{false};
  std::atomic<int> n_short{0};
  int worst = 0;
  std::jthread other([&] {
    while (!began) std::this_thread::yield();
    while (layer < 200 && n_short < 50) {
      const int before = layer;
      const Turn turn(turns, nullptr);
      worst = std::max(worst, layer - before);
      ++n_short;
    }
  });
  {
    Turn turn(turns, nullptr);
    began = true;
    for (; layer < 200; ++layer) {
      // As a layer does, this takes until the other one asks.
      ASSERT_TRUE(eventually([&] { return turns.n_waiting() == 1 || n_short >= 50; }));
      turn.yield();
      if (n_short >= 50) break;
    }
  }
  other.join();
  EXPECT_EQ(n_short, 50);
  // The layer it came in, and at most one more that began before it was in the queue.
  EXPECT_LE(worst, 2);
}

TEST(Turns, WithinItsQuantumATurnIsKept) {
  Turns turns(1h);
  std::jthread other;
  Turn turn(turns, nullptr);  // goes before `other` is joined
  other = std::jthread([&] { const Turn theirs(turns, nullptr); });
  ASSERT_TRUE(eventually([&] { return turns.n_waiting() == 1; }));
  EXPECT_FALSE(turn.yield());
  EXPECT_EQ(turns.n_yields(), 0U);
  EXPECT_EQ(turns.n_waiting(), 1U);
}

// Somebody who decodes is away between two tokens, and still wants short turns.
TEST(Turns, AreSharedWhileSomebodyWaitsAndAWhileAfter) {
  Turns turns(0ms);
  {
    const Turn mine(turns, nullptr);
    EXPECT_FALSE(turns.is_shared());
  }
  // Anew where the machine was busy elsewhere for the second after.
  EXPECT_TRUE(eventually([&] {
    std::jthread other;
    Turn mine(turns, nullptr);
    other = std::jthread([&] { const Turn theirs(turns, nullptr); });
    EXPECT_TRUE(eventually([&] { return turns.n_waiting() == 1; }));
    EXPECT_TRUE(turns.is_shared());
    mine.yield();
    EXPECT_EQ(turns.n_waiting(), 0U);
    return turns.is_shared();
  }));
  const Turn mine(turns, nullptr);
  EXPECT_TRUE(eventually([&] { return !turns.is_shared(); }));
}

TEST(Turns, AWaiterThatIsCancelledLeavesTheQueue) {
  Turns turns(0ms);
  CancelFlag flag;
  int n_said = 0;
  std::atomic<bool> cancelled{false};
  auto mine = std::make_unique<Turn>(turns, nullptr);
  std::jthread other([&] {
    try {
      const Turn theirs(turns, &flag, [&] { ++n_said; });
    } catch (const CancelledError&) {
      cancelled = true;
    }
  });
  ASSERT_TRUE(eventually([&] { return turns.n_waiting() == 1; }));
  flag.set();
  other.join();
  EXPECT_TRUE(cancelled);
  EXPECT_GE(n_said, 1);
  EXPECT_EQ(turns.n_waiting(), 0U);
  EXPECT_FALSE(mine->yield());  // nobody waits
  mine.reset();
  const Turn again(turns, nullptr);
}

TEST(Turns, AnOwnerThatIsCancelledWhileOthersRunDoesNotOwnTheTurn) {
  Turns turns(0ms);
  CancelFlag flag;
  std::atomic<bool> let_go{false};
  std::jthread other;
  {
    Turn mine(turns, &flag);
    other = std::jthread([&] {
      const Turn theirs(turns, nullptr);
      flag.set();
      eventually([&] { return let_go.load(); });
    });
    ASSERT_TRUE(eventually([&] { return turns.n_waiting() == 1; }));
    EXPECT_THROW(mine.yield(), CancelledError);
  }  // does not give back what is theirs
  std::atomic<bool> third{false};
  std::jthread waits([&] {
    const Turn turn(turns, nullptr);
    third = true;
  });
  ASSERT_TRUE(eventually([&] { return turns.n_waiting() == 1; }));
  EXPECT_FALSE(third);
  let_go = true;
  waits.join();
  EXPECT_TRUE(third);
}

TEST(Turns, ATurnThatStandsStillIsSeen) {
  Turns turns;
  EXPECT_EQ(turns.still_for(), Turns::Clock::duration{});
  {
    Turn turn(turns, nullptr);
    EXPECT_TRUE(eventually([&] { return turns.still_for() > 30ms; }));
    const auto before = turns.still_for();
    turn.yield();  // a layer is done
    EXPECT_LT(turns.still_for(), before + 1h);
    EXPECT_TRUE(eventually([&] { return turns.still_for() > 30ms; }));
  }
  EXPECT_EQ(turns.still_for(), Turns::Clock::duration{});
}

}  // namespace
}  // namespace moesaic::cluster
