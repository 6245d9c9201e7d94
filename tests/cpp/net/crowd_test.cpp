// Many at once who hold connections without using them: strangers that never finish a handshake,
// members that take nothing, and links of which one end is gone without a word. All are closed at
// their deadlines, and who behaves is served within a second meanwhile. MOESAIC_CROWD sets how many
// hundredths of the campaign's full numbers come (1,000 / 100 / 100; here 2 of 100).
#include <gtest/gtest.h>

#include <cstdlib>

#include "net/rig.h"

namespace moesaic::net::testing {
namespace {

constexpr milliseconds kServedIn{1000};
constexpr milliseconds kRoomForLoad{4000};  // of a machine that tests share

int hundredths() {
  const char* text = std::getenv("MOESAIC_CROWD");
  return text == nullptr ? 2 : std::atoi(text);
}

class Crowd : public ::testing::Test {
 protected:
  NetThread net;
  ClusterKey key = ClusterKey::random();

  // The deadlines as they are in the product.
  LinkOptions strict() const {
    LinkOptions options;
    options.key = key;
    options.release = "0.1.0-test";
    return options;
  }
  void expect_served(const std::string& address) {
    const auto began = Clock::now();
    LinkOptions good = strict();
    good.self = random_node_id();
    const auto link = dial(net, good, address, kPatience);
    link->close();
    EXPECT_LT(Clock::now() - began, kServedIn + kRoomForLoad);
  }
};

TEST_F(Crowd, SlowStrangersAllAtOnce) {
  Server server(net, strict());
  const int n = 10 * hundredths();
  std::vector<std::unique_ptr<RawPeer>> strangers;
  for (int i = 0; i < n; ++i) {
    strangers.push_back(std::make_unique<RawPeer>(server.address()));
    ASSERT_TRUE(strangers.back()->connected()) << i;
    if (i % 50 == 0) expect_served(server.address());
  }
  // A byte of a TLS record now and then: never its end, never silence.
  const auto began = Clock::now();
  const auto deadline = began + strict().handshake_deadline + kServedIn + kRoomForLoad;
  std::size_t n_open = strangers.size();
  for (int turn = 0; n_open > 0 && Clock::now() < deadline; ++turn) {
    const Bytes drip = turn == 0   ? Bytes{0x16}
                       : turn == 1 ? Bytes{0x03}
                       : turn == 2 ? Bytes{0x01}
                                   : Bytes{0x10};
    n_open = 0;
    for (auto& stranger : strangers) n_open += stranger->send(drip) ? 1 : 0;
    if (turn % 5 == 0) expect_served(server.address());
    std::this_thread::sleep_for(100ms);
  }
  EXPECT_EQ(n_open, 0U) << "are still open after their deadline";
  RecordProperty("slow_strangers", n);
}

TEST_F(Crowd, MembersThatTakeNothing) {
  LinkOptions options = strict();
  options.queue_bytes = std::size_t{8} << 20;  // or a hundred queues fill the machine
  options.send_deadline = kPatience;
  Server server(net, options);
  const int n = hundredths();
  constexpr int kAtOnce = 20;
  for (int done = 0; done < n; done += kAtOnce) {
    const std::size_t first = server.n_sessions();
    std::vector<std::unique_ptr<RawPeer>> readers;
    for (int i = 0; i < std::min(kAtOnce, n - done); ++i) {
      readers.push_back(std::make_unique<RawPeer>(server.address()));
      const wire::NodeId self = random_node_id();
      readers.back()->tls(key, self);
      ASSERT_TRUE(readers.back()->greet(self));
    }
    // More than the kernel's buffers take: the rest waits, and is never taken.
    const auto began = Clock::now();
    for (std::size_t i = 0; i < readers.size(); ++i) {
      const auto session = server.session(first + i);
      for (int k = 0; k < 7; ++k) session->link->send(wire::Blob{1}, Bytes(1U << 20, 1));
    }
    expect_served(server.address());
    for (std::size_t i = 0; i < readers.size(); ++i) {
      EXPECT_TRUE(eventually([&] { return server.is_closed(first + i); })) << done + i;
      const std::string text = server.error_of(first + i);
      EXPECT_NE(text.find("127.0.0.1:"), std::string::npos) << text;
    }
    // Silence alone is noticed after 3 s; a peer that takes nothing after 5.
    EXPECT_LT(Clock::now() - began, options.stalled_after + kServedIn + kRoomForLoad);
  }
  RecordProperty("slow_readers", n);
}

TEST_F(Crowd, LinksOfWhichOneEndIsGone) {
  // Idle ones and ones with work under way; silence in one direction or in both.
  Server server(net, strict(), [](Connection& link, Incoming&& in) {
    if (const auto* request = std::get_if<wire::StatusRequest>(&in.message)) {
      link.send(wire::LoadProgress{request->request, 0, 0, ""});
    }
  });
  const int n = std::max(4, hundredths());
  constexpr int kAtOnce = 20;
  for (int done = 0; done < n; done += kAtOnce) {
    struct Half {
      std::unique_ptr<Proxy> proxy;
      std::shared_ptr<Connection> link;
      std::shared_ptr<std::atomic<std::int64_t>> closed_ms;
      std::shared_ptr<std::string> error;
    };
    std::vector<Half> halves;
    const std::size_t first = server.n_sessions();
    for (int i = 0; i < std::min(kAtOnce, n - done); ++i) {
      Half half;
      half.proxy = std::make_unique<Proxy>(server.address());
      LinkOptions dialling = strict();
      dialling.self = random_node_id();
      half.link = dial(net, dialling, half.proxy->address(), kPatience);
      half.closed_ms = std::make_shared<std::atomic<std::int64_t>>(0);
      half.error = std::make_shared<std::string>();
      half.link->start({.on_message = [](Incoming&&) {},
                        .on_closed =
                            [at = half.closed_ms, error = half.error](std::exception_ptr why) {
                              *error = text_of(why);
                              *at = std::chrono::duration_cast<milliseconds>(
                                        Clock::now().time_since_epoch())
                                        .count();
                            }});
      halves.push_back(std::move(half));
    }
    const auto began = std::chrono::duration_cast<milliseconds>(Clock::now().time_since_epoch());
    for (std::size_t i = 0; i < halves.size(); ++i) {
      if (i % 2 == 1) {
        for (std::uint64_t k = 0; k < 20; ++k) halves[i].link->send(status_request(k));
      }
      halves[i].proxy->silence_to_dialler = true;
      halves[i].proxy->silence_to_listener = i % 4 < 2;
    }
    for (std::size_t i = 0; i < halves.size(); ++i) {
      Half& half = halves[i];
      EXPECT_TRUE(eventually([&] { return half.closed_ms->load() != 0; })) << done + i;
      EXPECT_LT(half.closed_ms->load() - began.count(),
                (strict().dead_after + 2 * strict().ping_every + kRoomForLoad).count());
      EXPECT_NE(half.error->find(half.proxy->address()), std::string::npos) << *half.error;
      half.proxy->stop = true;
      EXPECT_TRUE(half.link->wait_closed(kPatience));
    }
    EXPECT_TRUE(eventually([&] {
      for (std::size_t i = 0; i < halves.size(); ++i) {
        if (!server.is_closed(first + i)) return false;
      }
      return true;
    }));
    expect_served(server.address());
  }
  RecordProperty("half_open", n);
}

}  // namespace
}  // namespace moesaic::net::testing
