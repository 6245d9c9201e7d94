// Thousands of wrong frames at a live listener, before and after the handshake, plain and under
// TLS: each costs its sender the connection and nobody else anything. MOESAIC_MALFORMED sets
// another number (the campaign's is 1,000,000, in parts: MOESAIC_SEED makes each another).
#include <gtest/gtest.h>
#include <malloc.h>

#include <cstdlib>
#include <fstream>
#include <random>

#include "net/rig.h"
#include "wire/filler.h"

namespace moesaic::net::testing {
namespace {

// What is in use: memory that was freed and is kept by the allocator for later goes back first. How
// much of that there is depends on the tests that ran before and is no drift.
std::size_t rss_bytes() {
  malloc_trim(0);
  std::ifstream file("/proc/self/statm");
  std::size_t total = 0;
  std::size_t resident = 0;
  file >> total >> resident;
  return resident * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

int n_frames() {
  const char* text = std::getenv("MOESAIC_MALFORMED");
  return text == nullptr ? 2000 : std::atoi(text);
}

std::uint64_t seed() {
  const char* text = std::getenv("MOESAIC_SEED");
  return text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
}

// A valid frame with something wrong about it; its checksum is right more often than not, so that
// what lies behind is reached.
Bytes wrong_frame(std::mt19937_64& random, std::uint64_t sequence) {
  std::vector<std::pair<wire::MessageType, Bytes>> all;
  wire::testing::for_each_message(random(), [&](const auto& message) {
    all.emplace_back(message.kType, wire::encode(message));
  });
  auto [type, body] = all[random() % all.size()];
  Bytes frame;
  switch (random() % 8) {
    case 0:  // noise
      frame.resize(random() % 200 + 1);
      for (auto& byte : frame) byte = static_cast<std::uint8_t>(random());
      return frame;
    case 1:  // a type that does not exist
      return frame_bytes(static_cast<wire::MessageType>(24 + random() % 60000), body, sequence);
    case 2:  // another place in the sequence
      return frame_bytes(type, body, sequence + 1 + random() % 1000);
    case 3:  // a body that lies
      for (std::uint64_t n = random() % 4 + 1; n > 0 && !body.empty(); --n) {
        body[random() % body.size()] = static_cast<std::uint8_t>(random());
      }
      body.resize(body.size() - std::min<std::size_t>(body.size(), random() % 5));
      return frame_bytes(type, body, sequence);
    case 4: {  // a header that lies, its sum made good again where it can be
      frame = frame_bytes(type, body, sequence);
      frame[random() % wire::kHeaderBytes] ^= static_cast<std::uint8_t>(1U << random() % 8);
      return frame;
    }
    case 5: {  // a claimed length with nothing behind it
      wire::FrameHeader header;
      header.type = type;
      header.body_bytes = static_cast<std::uint32_t>(random());
      header.sequence = sequence;
      const wire::HeaderBytes bytes = wire::encode_header(header, 0);
      return Bytes(bytes.begin(), bytes.end());
    }
    case 6:  // cut short
      frame = frame_bytes(type, body, sequence);
      frame.resize(random() % frame.size());
      return frame;
    default:  // a flipped bit under the checksum
      frame = frame_bytes(type, body, sequence);
      frame[random() % frame.size()] ^= static_cast<std::uint8_t>(1U << random() % 8);
      return frame;
  }
}

class Malformed : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Transport, Malformed, ::testing::Bool(),
                         [](const auto& info) { return info.param ? "Tls" : "Plain"; });

TEST_P(Malformed, FramesCostTheirSenderTheConnectionAndNobodyElseAnything) {
  const ClusterKey key = ClusterKey::random();
  const LinkOptions options = patient(GetParam() ? std::optional(key) : std::nullopt);
  NetThread net;
  std::atomic<std::uint64_t> n_good{0};
  std::mutex mutex;
  std::vector<std::shared_ptr<Connection>> open;  // let go when they close
  const auto listener = listen(
      net, options, "127.0.0.1:0", {.accepted = [&](std::shared_ptr<Connection> link) {
        link->set_activation_limit(1U << 20);
        Connection* const raw = link.get();
        link->start({.on_message =
                         [&, raw](Incoming&& in) {
                           const auto* request = std::get_if<wire::StatusRequest>(&in.message);
                           if (request == nullptr || !request->measure) return;
                           ++n_good;
                           raw->send(wire::LoadProgress{request->request, 0, 0, ""});
                         },
                     .on_closed =
                         [&, raw](std::exception_ptr) {
                           const std::lock_guard lock(mutex);
                           std::erase_if(open,
                                         [raw](const auto& each) { return each.get() == raw; });
                         }});
        const std::lock_guard lock(mutex);
        open.push_back(std::move(link));
      }});
  LinkOptions dialling = options;
  dialling.self = random_node_id();
  const auto good = dial(net, dialling, listener->address(), kPatience);
  std::atomic<std::uint64_t> n_answers{0};
  good->start({.on_message = [&](Incoming&&) { ++n_answers; }});

  const auto only_good_is_left = [&] {
    const std::lock_guard lock(mutex);
    return open.size() == 1;
  };

  std::mt19937_64 random((GetParam() ? 11 : 12) + 2 * seed());
  std::size_t rss_after_warm_up = 0;
  // A handshake under TLS costs more than a frame; the frames behind it meet the same code.
  const int total = GetParam() ? n_frames() / 2 : n_frames();
  for (int i = 0; i < total; ++i) {
    RawPeer stranger(listener->address());
    ASSERT_TRUE(stranger.connected());
    const bool greets = random() % 4 != 0;
    if (GetParam() && random() % 16 != 0) stranger.tls(key, random_node_id());
    if (greets) stranger.greet(random_node_id());
    stranger.send(wrong_frame(random, 0));
    stranger.close();
    if (i % 100 == 0) {  // the good client is served all along
      const std::uint64_t before = n_answers;
      good->send(status_request(before + 1, true));
      ASSERT_TRUE(eventually([&] { return n_answers > before; })) << i;
    }
    if (i == total / 4) {
      EXPECT_TRUE(eventually(only_good_is_left));
      rss_after_warm_up = rss_bytes();
    }
  }
  EXPECT_TRUE(eventually(only_good_is_left));
  const std::size_t rss = rss_bytes();
  EXPECT_LE(rss, rss_after_warm_up + (std::size_t{16} << 20));
  RecordProperty("rss_drift_bytes", static_cast<int>(rss) - static_cast<int>(rss_after_warm_up));
  EXPECT_GE(n_good, n_answers);
  listener->close();
  good->close();
  EXPECT_TRUE(good->wait_closed(kPatience));
}

}  // namespace
}  // namespace moesaic::net::testing
