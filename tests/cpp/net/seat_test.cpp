// Who serves the sockets: the net's own thread, or a thread that waits for work in its seat.
#include <gtest/gtest.h>

#include <random>

#include "net/rig.h"

namespace moesaic::net::testing {
namespace {

// A node of its own: what it has received, and on which threads.
struct Node {
  NetThread net;
  std::mutex mutex;
  std::vector<std::uint64_t> requests;
  std::vector<std::thread::id> threads;
  std::unique_ptr<Server> server;

  explicit Node(const LinkOptions& options)
      : server(std::make_unique<Server>(net, options, [this](Connection&, Incoming&& in) {
          const std::lock_guard lock(mutex);
          requests.push_back(std::get<wire::KvOp>(in.message).request);
          threads.push_back(std::this_thread::get_id());
        })) {}
  std::size_t n_received() {
    const std::lock_guard lock(mutex);
    return requests.size();
  }
  std::thread::id last_thread() {
    const std::lock_guard lock(mutex);
    return threads.back();
  }
};

// Somebody else's end of a link to it, on a net of its own.
struct Peer {
  NetThread net;
  std::shared_ptr<Connection> link;
  std::atomic<std::uint64_t> n_received{0};

  Peer(LinkOptions options, const std::string& address) {
    options.self = random_node_id();
    link = dial(net, options, address, kPatience);
    link->start({.on_message = [this](Incoming&&) { ++n_received; }});
  }
  ~Peer() {
    link->close();
    EXPECT_TRUE(link->wait_closed(kPatience));
  }
  void send(std::uint64_t request) const { link->send(wire::KvOp{.request = request}); }
};

std::uint64_t kv_bytes_sent(const Connection& link) {
  return link.counters().sent[static_cast<std::size_t>(wire::MessageType::kKvOp)];
}

class SeatTest : public ::testing::Test {
 protected:
  const LinkOptions options = [] {
    LinkOptions each;
    each.key = ClusterKey::random();
    return each;
  }();
};

TEST_F(SeatTest, WhatComesIsHandledByTheThreadThatWaits) {
  Node node(options);
  const Peer peer(options, node.server->address());
  NetSeat seat(node.net);
  // On a loaded machine the own thread may have come back between two waits.
  int n_here = 0;
  for (std::uint64_t i = 0; i < 1000 && n_here < 50; ++i) {
    std::thread sender([&] { peer.send(i); });
    EXPECT_TRUE(seat.serve([&] { return node.n_received() > i; }));
    sender.join();
    n_here += node.last_thread() == std::this_thread::get_id() ? 1 : 0;
  }
  EXPECT_EQ(n_here, 50);
}

TEST_F(SeatTest, ReadyIsAskedBeforeAnythingIsWaitedFor) {
  NetThread net;
  NetSeat seat(net);
  EXPECT_TRUE(seat.serve([] { return true; }));
}

TEST_F(SeatTest, AKickEndsTheWait) {
  NetThread net;
  NetSeat seat(net);
  for (int i = 0; i < 50; ++i) {
    std::atomic<bool> ready{false};
    std::thread other([&] {
      if (i % 2 == 0) std::this_thread::sleep_for(milliseconds(1));
      ready = true;
      seat.kick();
    });
    EXPECT_TRUE(seat.serve([&] { return ready.load(); }));
    other.join();
  }
}

TEST_F(SeatTest, TheNetsOwnThreadServesWhoeverComputesLong) {
  Node node(options);
  const Peer peer(options, node.server->address());
  NetSeat seat(node.net);
  peer.send(1);
  ASSERT_TRUE(seat.serve([&] { return node.n_received() == 1; }));
  peer.send(2);  // nobody says that it takes long: the own thread finds that out
  EXPECT_TRUE(eventually([&] { return node.n_received() == 2; }));
  EXPECT_NE(node.last_thread(), std::this_thread::get_id());

  peer.send(3);
  ASSERT_TRUE(seat.serve([&] { return node.n_received() == 3; }));
  seat.leave();
  peer.send(4);
  EXPECT_TRUE(eventually([&] { return node.n_received() == 4; }));
  EXPECT_NE(node.last_thread(), std::this_thread::get_id());
}

// After a second without work the own thread sleeps until it is told: it must be told.
TEST_F(SeatTest, TheOwnThreadIsThereAfterALongWaitToo) {
  Node node(options);
  const Peer peer(options, node.server->address());
  NetSeat seat(node.net);
  peer.send(1);
  ASSERT_TRUE(seat.serve([&] { return node.n_received() == 1; }));
  std::thread sender([&] {
    std::this_thread::sleep_for(milliseconds(1300));
    peer.send(2);
  });
  ASSERT_TRUE(seat.serve([&] { return node.n_received() == 2; }));
  sender.join();
  peer.send(3);
  EXPECT_TRUE(eventually([&] { return node.n_received() == 3; }));
  EXPECT_NE(node.last_thread(), std::this_thread::get_id());
}

TEST_F(SeatTest, AFlushSendsAtOnce) {
  Node node(options);
  const Peer peer(options, node.server->address());
  const std::shared_ptr<Connection> back = node.server->session(0)->link;
  NetSeat seat(node.net);
  // On a loaded machine the own thread may have come back meanwhile: then it is the one to send.
  bool at_once = false;
  for (std::uint64_t i = 1; i <= 100 && !at_once; ++i) {
    peer.send(i);
    ASSERT_TRUE(seat.serve([&] { return node.n_received() == i; }));
    const std::uint64_t before = kv_bytes_sent(*back);
    back->send(wire::KvOp{.request = i});
    const bool was_sent = kv_bytes_sent(*back) != before;
    seat.flush();
    at_once = !was_sent && kv_bytes_sent(*back) != before;
  }
  EXPECT_TRUE(at_once);
}

TEST_F(SeatTest, TheNewestToAskHasTheSeat) {
  Node node(options);
  const Peer peer(options, node.server->address());
  NetSeat first(node.net);
  NetSeat second(node.net);
  std::atomic<bool> given_way{false};
  std::atomic<bool> serves{false};
  std::thread one([&] {
    EXPECT_FALSE(first.serve([&] {
      serves = true;
      return false;
    }));
    given_way = true;
  });
  EXPECT_TRUE(eventually([&] { return serves.load(); }));
  std::thread sender([&] {
    EXPECT_TRUE(eventually([&] { return given_way.load(); }));
    peer.send(1);
  });
  EXPECT_TRUE(second.serve([&] { return node.n_received() == 1; }));
  EXPECT_EQ(node.last_thread(), std::this_thread::get_id());
  sender.join();
  one.join();
  peer.send(2);
  EXPECT_TRUE(first.serve([&] { return node.n_received() == 2; }));  // again
}

// Everything at once, for the sanitizers: nothing is lost, doubled or out of order.
TEST_F(SeatTest, SeatsComeAndGoUnderTraffic) {
  constexpr std::uint64_t kMessages = 3000;
  Node node(options);
  const Peer peer(options, node.server->address());
  const std::shared_ptr<Connection> back = node.server->session(0)->link;
  std::thread sender([&] {
    for (std::uint64_t i = 0; i < kMessages; ++i) {
      peer.send(i);
      if (i % 64 == 0) std::this_thread::sleep_for(milliseconds(1));
    }
  });
  std::atomic<std::uint64_t> n_sent{0};
  std::vector<std::thread> workers;
  for (unsigned t = 0; t < 3; ++t) {
    workers.emplace_back([&, t] {
      std::mt19937 random(t);
      NetSeat seat(node.net);
      while (node.n_received() < kMessages) {
        const std::size_t before = node.n_received();
        if (!seat.serve([&] { return node.n_received() > before; })) std::this_thread::yield();
        if (random() % 4 == 0) seat.leave();
        if (random() % 2 == 0) {
          back->send(wire::KvOp{.request = 1});
          ++n_sent;
        }
        seat.flush();
      }
    });
  }
  // Nobody waits for what has come already.
  while (node.n_received() < kMessages) std::this_thread::sleep_for(milliseconds(1));
  sender.join();
  std::atomic<bool> over{false};
  std::thread waker([&] {
    while (!over) {
      back->send(wire::KvOp{.request = 2});
      ++n_sent;
      peer.send(kMessages);
      std::this_thread::sleep_for(milliseconds(1));
    }
  });
  for (auto& each : workers) each.join();
  over = true;
  waker.join();
  EXPECT_TRUE(eventually([&] { return peer.n_received == n_sent; }));
  const std::lock_guard lock(node.mutex);
  for (std::uint64_t i = 0; i < kMessages; ++i) ASSERT_EQ(node.requests[i], i);
}

TEST_F(SeatTest, TheNetEndsAfterItsSeats) {
  for (int i = 0; i < 20; ++i) {
    auto node = std::make_unique<Node>(options);
    auto peer = std::make_unique<Peer>(options, node->server->address());
    {
      NetSeat seat(node->net);
      peer->send(1);
      EXPECT_TRUE(seat.serve([&] { return node->n_received() == 1; }));
      if (i % 2 == 0) seat.leave();
    }
    peer.reset();
    node.reset();
  }
}

}  // namespace
}  // namespace moesaic::net::testing
