// A link's life: order, bounds, liveness, ends. Everything on loopback; faults come from bare
// sockets and from the rig's proxy.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "net/net_thread.h"
#include "net/rig.h"

namespace moesaic::net::testing {
namespace {

Bytes pattern(std::size_t n, std::uint32_t seed) {
  std::mt19937 random(seed);
  Bytes bytes(n);
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
  return bytes;
}

// The dialler's side of a link, with its log.
struct Client {
  std::shared_ptr<Connection> link;
  std::mutex mutex;
  std::vector<Incoming> messages;
  std::atomic<bool> closed{false};
  std::string error;  // read it once closed

  Client(NetThread& net, const LinkOptions& options, const std::string& address)
      : link(dial(net, options, address, kPatience)) {
    link->set_activation_limit(64U << 20);
    link->start({.on_message =
                     [this](Incoming&& incoming) {
                       const std::lock_guard lock(mutex);
                       messages.push_back(std::move(incoming));
                     },
                 .on_closed =
                     [this](std::exception_ptr why) {
                       error = text_of(why);
                       closed = true;
                     }});
  }
  ~Client() {
    link->close();
    EXPECT_TRUE(link->wait_closed(kPatience));
  }
  std::size_t n_messages() {
    const std::lock_guard lock(mutex);
    return messages.size();
  }
};

class LinkTest : public ::testing::TestWithParam<bool> {
 protected:
  LinkOptions options() const { return patient(GetParam() ? std::optional(key) : std::nullopt); }
  NetThread net;
  ClusterKey key = ClusterKey::random();
};
INSTANTIATE_TEST_SUITE_P(Transport, LinkTest, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Tls" : "Plain"; });

TEST_P(LinkTest, MessagesArriveWholeAndInOrder) {
  Server server(net, options());
  Client client(net, options(), server.address());
  std::vector<std::size_t> sizes = {0,     1,     3,     31,     4096,       14 << 10, 16 << 10,
                                    65535, 65536, 65537, 200000, (4U << 20), 9U << 20, 5};
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    wire::Run run;
    run.step = i;
    client.link->send(run, pattern(sizes[i], static_cast<std::uint32_t>(i)), 77);
    client.link->send(wire::KvOp{.request = i});
  }
  ASSERT_TRUE(eventually([&] { return server.n_messages(0) == 2 * sizes.size(); }));
  const auto session = server.session(0);
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const Incoming& in = session->messages[2 * i];
    ASSERT_TRUE(std::holds_alternative<wire::Run>(in.message));
    EXPECT_EQ(std::get<wire::Run>(in.message).step, i);
    EXPECT_EQ(in.header.epoch, 77U);
    EXPECT_EQ(Bytes(in.payload.begin(), in.payload.end()),
              pattern(sizes[i], static_cast<std::uint32_t>(i)))
        << sizes[i];
    EXPECT_EQ(std::get<wire::KvOp>(session->messages[2 * i + 1].message).request, i);
  }
  // Both ends count the same bytes, by type.
  const Counters sent = client.link->counters();
  const Counters received = session->link->counters();
  const auto run = static_cast<std::size_t>(wire::MessageType::kRun);
  const auto kv = static_cast<std::size_t>(wire::MessageType::kKvOp);
  EXPECT_EQ(sent.sent[run], received.received[run]);
  EXPECT_GT(sent.sent[run], std::size_t{13} << 20);
  EXPECT_EQ(sent.sent[kv], sizes.size() * (wire::kHeaderBytes + 33));
  EXPECT_EQ(sent.sent[kv], received.received[kv]);
  EXPECT_EQ(received.sent[run], 0U);
}

TEST_P(LinkTest, ManyThreadsSendAtOnce) {
  Server server(net, options());
  Client client(net, options(), server.address());
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t i = 0; i < 200; ++i) {
        client.link->send(wire::KvOp{.request = i, .sequence = t});
      }
    });
  }
  for (auto& thread : threads) thread.join();
  ASSERT_TRUE(eventually([&] { return server.n_messages(0) == 800; }));
  std::array<std::uint64_t, 4> next{};
  for (const Incoming& in : server.session(0)->messages) {
    const auto& op = std::get<wire::KvOp>(in.message);
    EXPECT_EQ(op.request, next.at(op.sequence)++);  // each thread's own order is kept
  }
}

TEST_P(LinkTest, FramesOfADeadEpochAreDropped) {
  Server server(net, options());
  Client client(net, options(), server.address());
  const auto session = server.session(0);
  session->link->set_epoch(5);
  client.link->send(wire::Tokens{1, 0, {1}}, {}, 4);
  client.link->send(wire::Tokens{2, 0, {1}}, {}, 5);
  client.link->send(wire::Load{}, {}, 6);  // names the next one
  client.link->send(wire::Cancel{9}, {}, 4);
  client.link->send(status_request(3));
  ASSERT_TRUE(eventually([&] { return server.n_messages(0) == 3; }));
  EXPECT_EQ(std::get<wire::Tokens>(session->messages[0].message).step, 2U);
  EXPECT_TRUE(std::holds_alternative<wire::Load>(session->messages[1].message));
  EXPECT_TRUE(std::holds_alternative<wire::StatusRequest>(session->messages[2].message));
  EXPECT_EQ(session->link->counters().dropped_frames, 2U);
}

TEST_P(LinkTest, PingsMeasureAndCarryProgress) {
  LinkOptions quick = options();
  quick.ping_every = 20ms;
  const auto accepted = std::make_shared<std::shared_ptr<Connection>>();
  auto listener = listen(net, options(), "127.0.0.1:0",
                         {.accepted = [accepted](std::shared_ptr<Connection> link) {
                           *accepted = link;
                           link->start({.progress = [] {
                             wire::Pong pong;
                             pong.rows_done = 42;
                             pong.activity = "step 17\x1b[2J";
                             return pong;
                           }});
                         }});
  {
    Client client(net, quick, listener->address());
    EXPECT_TRUE(eventually([&] { return client.link->last_pong().nonce >= 3; }));
    EXPECT_EQ(client.link->last_pong().rows_done, 42U);
    EXPECT_EQ(client.link->last_pong().activity, "step 17?[2J");
    EXPECT_GT(client.link->round_trip().count(), 0);
    EXPECT_EQ(client.n_messages(), 0U);
  }
  EXPECT_TRUE((*accepted)->wait_closed(kPatience));
}

TEST_P(LinkTest, PingsAreAnsweredWhileBulkIsUnderWay) {
  LinkOptions quick = options();
  quick.ping_every = 10ms;
  // Received bulk is let go at once: memory stays bounded by the queues.
  std::atomic<std::size_t> n_received{0};
  Server server(net, options(),
                [&](Connection&, Incoming&& in) { n_received += in.payload.size(); });
  Client client(net, quick, server.address());
  ASSERT_TRUE(eventually([&] { return client.link->last_pong().nonce > 0; }));
  const std::uint64_t before = client.link->last_pong().nonce;
  const std::size_t n_frames = 48;
  for (std::size_t i = 0; i < n_frames; ++i) client.link->send(wire::Blob{i}, Bytes(4U << 20, 7));
  const std::uint64_t during = client.link->last_pong().nonce;
  EXPECT_TRUE(eventually([&] { return n_received == n_frames * (std::size_t{4} << 20); }));
  EXPECT_GT(during, before);
  EXPECT_LE(client.link->queued_bytes(), std::size_t{64} << 20);
}

TEST_P(LinkTest, TheQueueIsBoundedAndTheSenderWaits) {
  LinkOptions small = options();
  small.queue_bytes = 1U << 20;
  small.send_deadline = 200ms;
  Server server(net, options(), {}, /*start=*/false);  // accepts and never reads
  Client client(net, small, server.address());
  std::size_t n_sent = 0;
  const std::string text = thrown<DeadlineError>([&] {
    for (; n_sent < 1000; ++n_sent) client.link->send(wire::Blob{n_sent}, Bytes(300000, 1));
  });
  EXPECT_NE(text.find(server.address()), std::string::npos) << text;
  EXPECT_LE(client.link->queued_bytes(), std::size_t{1} << 20);
  EXPECT_LT(n_sent, 200U);             // the queue and what the kernel holds
  client.link->send(wire::Cancel{1});  // small and urgent: has room always
  // One frame larger than the queue waits for an empty one rather than for ever.
  EXPECT_THROW(client.link->send(wire::Blob{0}, Bytes(3U << 19, 1)), DeadlineError);
}

TEST_P(LinkTest, CancelOvertakesWhatIsQueued) {
  Server server(net, options(), {}, /*start=*/false);
  Client client(net, options(), server.address());
  for (std::uint64_t i = 0; i < 15; ++i) client.link->send(wire::Blob{i}, Bytes(4U << 20, 1));
  client.link->send(wire::Cancel{1});
  const auto session = server.session(0);
  std::mutex mutex;
  std::vector<wire::MessageType> order;
  session->link->start({.on_message = [&](Incoming&& in) {
    const std::lock_guard lock(mutex);
    order.push_back(in.header.type);
  }});
  EXPECT_TRUE(eventually([&] {
    const std::lock_guard lock(mutex);
    return order.size() == 16;
  }));
  const auto cancel = std::find(order.begin(), order.end(), wire::MessageType::kCancel);
  EXPECT_LT(cancel - order.begin(), 15);
  session->link->close();
  EXPECT_TRUE(session->link->wait_closed(kPatience));
}

TEST_P(LinkTest, ReadingPausesWhileTooMuchIsHeld) {
  LinkOptions small = options();
  small.queue_bytes = 1U << 20;
  Server server(net, small);
  Client client(net, options(), server.address());
  for (std::uint64_t i = 0; i < 40; ++i) client.link->send(wire::Blob{i}, Bytes(100000, 1));
  EXPECT_TRUE(eventually([&] { return server.n_messages(0) == 10; }));
  std::this_thread::sleep_for(50ms);
  EXPECT_EQ(server.n_messages(0), 10U);
  std::size_t n_taken = 0;
  EXPECT_TRUE(eventually([&] {
    std::vector<Incoming> taken;
    {
      const std::lock_guard lock(server.mutex);
      taken.swap(server.sessions[0]->messages);
    }
    n_taken += taken.size();
    return n_taken == 40;
  }));
}

// The sum over all links of a net thread: here ten of them, of which each may hold its first frame.
TEST_P(LinkTest, ReadingPausesWhileAllLinksTogetherHoldTooMuch) {
  constexpr std::size_t kLinks = 10;
  constexpr std::size_t kFrames = 20;
  constexpr std::size_t kBytes = 100000;
  LinkOptions bounded = options();
  bounded.all_queues_bytes = 1U << 20;
  NetThread own;  // its counts are the server's only
  std::atomic<bool> let_go{false};
  std::mutex mutex;
  std::vector<Incoming> held;
  std::size_t n_held = 0;
  std::size_t n_most = 0;
  std::size_t n_all = 0;
  {
    Server server(own, bounded, [&](Connection&, Incoming&& in) {
      const std::lock_guard lock(mutex);
      ++n_all;
      if (let_go) return;
      n_most = std::max(n_most, ++n_held);
      held.push_back(std::move(in));
    });
    std::vector<std::unique_ptr<Client>> clients;
    for (std::size_t i = 0; i < kLinks; ++i) {
      clients.push_back(std::make_unique<Client>(net, options(), server.address()));
      for (std::uint64_t k = 0; k < kFrames; ++k) {
        clients.back()->link->send(wire::Blob{k}, Bytes(kBytes, 1));
      }
    }
    EXPECT_TRUE(eventually([&] {
      const std::lock_guard lock(mutex);
      return n_held >= kLinks;
    }));
    std::this_thread::sleep_for(50ms);
    {
      const std::lock_guard lock(mutex);
      EXPECT_LE(n_most, (std::size_t{1} << 20) / kBytes + kLinks);
      let_go = true;
      held.clear();
    }
    EXPECT_TRUE(eventually([&] {
      const std::lock_guard lock(mutex);
      return n_all == kLinks * kFrames;
    }));
  }
  EXPECT_EQ(*own.impl()->held, 0U);
}

TEST_P(LinkTest, SilenceIsFoundAndNamesThePeer) {
  LinkOptions strict = options();
  strict.ping_every = 50ms;
  strict.dead_after = 400ms;
  Server server(net, options());
  Proxy proxy(server.address());
  Client client(net, strict, proxy.address());
  std::this_thread::sleep_for(100ms);
  EXPECT_FALSE(client.closed);
  proxy.silence_to_dialler = true;  // one way: what the client sends still arrives
  EXPECT_TRUE(eventually([&] { return client.closed.load(); }));
  const std::string text = client.error;
  EXPECT_NE(text.find(proxy.address()), std::string::npos) << text;
  EXPECT_NE(text.find("taken for dead"), std::string::npos) << text;
  thrown<NetError>([&] { client.link->send(status_request(1)); });
}

TEST_P(LinkTest, APeerThatStopsReadingIsFound) {
  LinkOptions strict = options();
  strict.stalled_after = 400ms;
  strict.send_deadline = kPatience;
  Server server(net, options(), {}, /*start=*/false);
  Client client(net, strict, server.address());
  const std::string text = thrown<NetError>([&] {
    for (int i = 0; i < 1000; ++i) client.link->send(wire::Blob{1}, Bytes(1U << 20, 1));
  });
  EXPECT_NE(text.find(server.address()), std::string::npos) << text;
  EXPECT_TRUE(eventually([&] { return client.closed.load(); }));
}

TEST_P(LinkTest, ASlowReaderIsNotTakenForDead) {
  LinkOptions strict = options();
  strict.stalled_after = 1200ms;
  strict.send_deadline = 1200ms;  // of the second frame, which waits for the first
  strict.queue_bytes = 2U << 20;
  std::atomic<int> n_arrived{0};
  Server server(net, options(), [&](Connection&, Incoming&&) { ++n_arrived; });
  Proxy proxy(server.address());
  Client client(net, strict, proxy.address());
  proxy.bytes_per_ms = 400;
  client.link->send(wire::Blob{1}, Bytes(3U << 19, 1));
  client.link->send(wire::Blob{2}, Bytes(1U << 20, 2));
  EXPECT_TRUE(eventually([&] { return n_arrived == 2 || client.closed; }));
  EXPECT_FALSE(client.closed) << client.error;
  EXPECT_EQ(n_arrived, 2);
}

TEST_P(LinkTest, ACutIsAnErrorOnBothSidesAtEveryPlace) {
  Server server(net, options());
  // In the handshake, in a header, in fields, in a payload.
  for (const std::size_t cut : {1U, 40U, 150U, 300U, 700U, 1000U, 5000U, 60000U}) {
    Proxy proxy(server.address());
    proxy.cut_after = cut;
    std::shared_ptr<Connection> link;
    try {
      link = dial(net, options(), proxy.address(), kPatience);
    } catch (const NetError&) {
      continue;
    }
    std::atomic<bool> closed{false};
    std::string error;
    link->start({.on_closed = [&](std::exception_ptr why) {
      error = text_of(why);
      closed = true;
    }});
    try {
      link->send(wire::Blob{1}, Bytes(100000, 1));
    } catch (const NetError&) {
      // Cut before that.
    }
    EXPECT_TRUE(eventually([&] { return closed.load(); })) << cut;
    EXPECT_NE(error.find(proxy.address()), std::string::npos) << error;
    EXPECT_TRUE(link->wait_closed(kPatience));
  }
  EXPECT_TRUE(eventually([&] {
    for (std::size_t i = 0; i < server.n_sessions(); ++i) {
      if (!server.is_closed(i)) return false;
    }
    return true;
  }));
  for (std::size_t i = 0; i < server.n_sessions(); ++i) EXPECT_EQ(server.n_messages(i), 0U);
}

TEST_P(LinkTest, AFlippedBitIsNeverAMessage) {
  Server server(net, options());
  for (const std::size_t place : {900U, 1500U, 3000U, 9000U}) {
    Proxy proxy(server.address());
    proxy.flip_at = place;
    const auto link = dial(net, options(), proxy.address(), kPatience);
    std::atomic<bool> closed{false};
    link->start({.on_closed = [&](std::exception_ptr) { closed = true; }});
    try {
      for (int i = 0; i < 100 && !closed; ++i) link->send(wire::Blob{1}, Bytes(1000, 1));
    } catch (const Error&) {
      // The link is already gone: as it should be.
    }
    EXPECT_TRUE(eventually([&] { return closed.load(); })) << place;
    EXPECT_TRUE(link->wait_closed(kPatience));
  }
  for (std::size_t i = 0; i < server.n_sessions(); ++i) {
    const auto session = server.session(i);
    EXPECT_TRUE(eventually([&] { return server.is_closed(i); }));
    for (const Incoming& in : session->messages) {
      EXPECT_EQ(Bytes(in.payload.begin(), in.payload.end()), Bytes(1000, 1));
    }
  }
}

TEST_P(LinkTest, CloseDeliversWhatWasQueued) {
  Server server(net, options());
  {
    Client client(net, options(), server.address());
    for (std::uint64_t i = 0; i < 50; ++i) client.link->send(wire::Blob{i}, Bytes(20000, 1));
    client.link->go_away(wire::Reason::kBusy, "too many sessions");
    EXPECT_THROW(client.link->send(status_request(1)), NetError);
    EXPECT_TRUE(client.link->wait_closed(kPatience));
    EXPECT_EQ(client.error, "");  // its own wish is no error
  }
  EXPECT_TRUE(eventually([&] { return server.is_closed(0); }));
  EXPECT_EQ(server.n_messages(0), 50U);
  EXPECT_NE(server.error_of(0).find("too many sessions"), std::string::npos) << server.error_of(0);
}

TEST_P(LinkTest, TheLastHandleClosesTheLink) {
  Server server(net, options());
  auto started = dial(net, options(), server.address(), kPatience);
  started->start({});
  auto idle = dial(net, options(), server.address(), kPatience);
  ASSERT_TRUE(eventually([&] { return server.n_sessions() == 2; }));
  started.reset();
  idle.reset();  // never started
  EXPECT_TRUE(eventually([&] { return server.is_closed(0) && server.is_closed(1); }));
}

TEST_P(LinkTest, AHandlerThatThrowsClosesItsLinkOnly) {
  Server server(net, options(), [](Connection&, Incoming&& in) {
    if (std::holds_alternative<wire::Join>(in.message)) fail<ProtocolError>("no such stage");
    throw std::runtime_error("a bug");
  });
  for (const bool join : {true, false}) {
    Client client(net, options(), server.address());
    if (join) {
      client.link->send(wire::Join{});
    } else {
      client.link->send(status_request(1));
    }
    EXPECT_TRUE(eventually([&] { return client.closed.load(); }));
    EXPECT_NE(client.error.find(join ? "no such stage" : "a bug"), std::string::npos)
        << client.error;
  }
  EXPECT_TRUE(eventually([&] { return server.is_closed(0) && server.is_closed(1); }));
  EXPECT_NE(server.error_of(0).find("no such stage"), std::string::npos);
}

TEST_P(LinkTest, AnEchoMayBeSentFromTheNetThread) {
  Server server(net, options(), [](Connection& link, Incoming&& in) {
    link.send(wire::Blob{1}, Bytes(in.payload.begin(), in.payload.end()));
  });
  Client client(net, options(), server.address());
  for (std::uint32_t i = 0; i < 20; ++i) client.link->send(wire::Blob{i}, pattern(14336, i));
  ASSERT_TRUE(eventually([&] { return client.n_messages() == 20; }));
  for (std::uint32_t i = 0; i < 20; ++i) {
    const auto payload = client.messages[i].payload;
    EXPECT_EQ(Bytes(payload.begin(), payload.end()), pattern(14336, i));
  }
}

TEST_P(LinkTest, TooLongABodyIsNotSent) {
  Server server(net, options());
  Client client(net, options(), server.address());
  EXPECT_THROW(client.link->send(wire::Blob{1}, Bytes(5U << 20, 1)), ArgumentError);
  client.link->send(status_request(1));
  EXPECT_TRUE(eventually([&] { return server.n_messages(0) == 1; }));
}

TEST_P(LinkTest, TheEndOfTheNetThreadClosesAll) {
  std::shared_ptr<Connection> link;
  std::shared_ptr<Connection> never_started;
  std::unique_ptr<Listener> listener;
  std::atomic<int> n_closed{0};
  {
    NetThread short_lived;
    listener = listen(
        short_lived, options(), "127.0.0.1:0",
        {.accepted = [&](std::shared_ptr<Connection> accepted) {
          accepted->start({.on_closed = [&n_closed, accepted](std::exception_ptr) { ++n_closed; }});
        }});
    link = dial(short_lived, options(), listener->address(), kPatience);
    link->start({.on_closed = [&](std::exception_ptr) { ++n_closed; }});
    never_started = dial(net, options(), listener->address(), kPatience);
  }
  EXPECT_TRUE(link->closed());
  EXPECT_GE(n_closed, 2);
  EXPECT_THROW(link->send(status_request(1)), NetError);
  listener->close();  // nothing is left to close, and that is fine
  EXPECT_THROW(dial(net, options(), listener->address(), 2000ms), Error);
}

}  // namespace
}  // namespace moesaic::net::testing
