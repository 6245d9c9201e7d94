// Twenty kinds of strangers at a listener with a key: every one is refused within five seconds,
// hears nothing but a TLS alert, and costs nobody else anything. MOESAIC_STRANGERS sets how many of
// each kind come (the campaign's number is 500).
#include <gtest/gtest.h>
#include <openssl/ssl.h>

#include <cstdlib>
#include <random>

#include "net/rig.h"

namespace moesaic::net::testing {
namespace {

using SslContext = std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)>;
using Ssl = std::unique_ptr<SSL, decltype(&SSL_free)>;

constexpr std::size_t kAlertBytes = 7;      // a record's head and two bytes
constexpr std::size_t kFlightBytes = 400;   // ServerHello and Finished, without a certificate
constexpr milliseconds kRefusedIn{5000};    // promised
constexpr milliseconds kRoomForLoad{5000};  // of a machine that tests share

int n_of_each() {
  const char* text = std::getenv("MOESAIC_STRANGERS");
  return text == nullptr ? 5 : std::atoi(text);
}

std::uint64_t seed() {
  const char* text = std::getenv("MOESAIC_SEED");
  return text == nullptr ? 0 : std::strtoull(text, nullptr, 10);
}

class Strangers : public ::testing::Test {
 protected:
  Strangers()
      : key(ClusterKey::random()), options(patient(key)), server(net, with_deadline(options)) {}

  static LinkOptions with_deadline(LinkOptions options) {
    options.handshake_deadline = kRefusedIn - milliseconds(500);
    return options;
  }

  // Says these bytes; the answer may be an alert and nothing more, unless told otherwise.
  void expect_deaf(const Bytes& bytes, bool half_closes = false, std::size_t limit = kAlertBytes) {
    RawPeer stranger(server.address());
    ASSERT_TRUE(stranger.connected());
    stranger.send(bytes);
    if (half_closes) {
      stranger.close();
      return;
    }
    const auto began = Clock::now();
    const Bytes answer = stranger.receive(1 << 16, kRefusedIn + kRoomForLoad);
    EXPECT_LE(answer.size(), limit);
    EXPECT_LT(Clock::now() - began, kRefusedIn + kRoomForLoad) << "it was not closed";
  }

  // The first flight of a client with this context; what comes back is as above.
  void expect_no_handshake(const SslContext& context, const std::string& identity = "",
                           SSL_psk_use_session_cb_func psk = nullptr) {
    if (psk != nullptr) SSL_CTX_set_psk_use_session_callback(context.get(), psk);
    const Ssl ssl(SSL_new(context.get()), SSL_free);
    SSL_set_app_data(ssl.get(), const_cast<std::string*>(&identity));
    BIO* in = BIO_new(BIO_s_mem());
    BIO* out = BIO_new(BIO_s_mem());
    SSL_set_bio(ssl.get(), in, out);
    SSL_set_connect_state(ssl.get());
    EXPECT_NE(SSL_do_handshake(ssl.get()), 1);
    char* data = nullptr;
    const long n = BIO_get_mem_data(out, &data);
    ASSERT_GT(n, 0);
    expect_deaf(Bytes(data, data + n));
  }

  static SslContext client(int version, const char* suites) {
    SslContext context(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
    SSL_CTX_set_security_level(context.get(), 0);
    SSL_CTX_set_min_proto_version(context.get(), version);
    SSL_CTX_set_max_proto_version(context.get(), version);
    if (suites != nullptr) SSL_CTX_set_ciphersuites(context.get(), suites);
    return context;
  }

  // A pre-shared key that is all zeros, under the identity that SSL's app data names.
  template <int kSuite>
  static int wrong_secret(SSL* ssl, const EVP_MD*, const unsigned char** id, std::size_t* n,
                          SSL_SESSION** out) {
    const auto* identity = static_cast<const std::string*>(SSL_get_app_data(ssl));
    const unsigned char suite[] = {0x13, kSuite};
    const Secret wrong{};
    *out = SSL_SESSION_new();
    SSL_SESSION_set1_master_key(*out, wrong.data(), wrong.size());
    SSL_SESSION_set_cipher(*out, SSL_CIPHER_find(ssl, suite));
    SSL_SESSION_set_protocol_version(*out, TLS1_3_VERSION);
    *id = reinterpret_cast<const unsigned char*>(identity->data());
    *n = identity->size();
    return 1;
  }

  void expect_dial_fails(const LinkOptions& dialling) {
    const auto began = Clock::now();
    EXPECT_THROW(dial(net, dialling, server.address(), kPatience), Error);
    EXPECT_LT(Clock::now() - began, kRefusedIn + kRoomForLoad);
  }

  Bytes noise(std::size_t n) {
    Bytes bytes(n);
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
    return bytes;
  }

  // What a dialler with the right key says, up to its first request.
  Bytes recording() {
    Proxy proxy(server.address());
    const auto link = dial(net, patient(key), proxy.address(), kPatience);
    link->start({});
    link->send(status_request(1));
    const std::size_t i = server.n_sessions() - 1;
    EXPECT_TRUE(eventually([&] { return server.n_messages(i) == 1; }));
    Bytes bytes = proxy.recorded();
    link->close();
    EXPECT_TRUE(link->wait_closed(kPatience));
    return bytes;
  }

  NetThread net;
  std::mt19937_64 random{7 + seed()};
  ClusterKey key;
  LinkOptions options;
  Server server;
};

Bytes text_bytes(const std::string& text) { return {text.begin(), text.end()}; }

TEST_F(Strangers, AreRefusedAllOfThem) {
  const Bytes recorded = recording();
  const ClusterKey other = ClusterKey::random();
  const std::vector<std::uint8_t> bytes = key.identity(0, random_node_id());
  const std::string identity(bytes.begin(), bytes.end());
  // A key that was in use once: the file has moved on by two epochs.
  const ClusterKey forgotten = ClusterKey::parse(ClusterKey::random().text() + other.text());
  constexpr int kSha384 = 0x02;
  constexpr int kSha256 = 0x01;
  const std::vector<std::pair<const char*, std::function<void()>>> kinds = {
      {"wrong key", [&] { expect_dial_fails(patient(other)); }},
      {"old epoch", [&] { expect_dial_fails(patient(forgotten)); }},
      {"own id", [&] { expect_dial_fails(options); }},
      {"no key", [&] { expect_dial_fails(patient()); }},
      {"plain hello", [&] { expect_deaf(frame_of(wire::Hello{}, 0)); }},
      {"plain noise", [&] { expect_deaf(noise(random() % 4000 + 600)); }},
      // What proves the key in it is genuine: the listener says its half of the handshake, under
      // keys that the stranger does not have, and no more.
      {"replay", [&] { expect_deaf(recorded, false, kFlightBytes); }},
      {"replay of a part",
       [&] {
         Bytes part = recorded;
         part.resize(random() % recorded.size());
         expect_deaf(part, /*half_closes=*/true);
       }},
      {"replay, harmed",
       [&] {
         Bytes harmed = recorded;
         harmed[random() % std::min<std::size_t>(harmed.size(), 250)] ^= 0x20;
         harmed.insert(harmed.end(), 4096, 0);  // so that a longer claim is not waited for
         expect_deaf(harmed, false, kFlightBytes);
       }},
      {"TLS 1.0", [&] { expect_no_handshake(client(TLS1_VERSION, nullptr)); }},
      {"TLS 1.1", [&] { expect_no_handshake(client(TLS1_1_VERSION, nullptr)); }},
      {"TLS 1.2", [&] { expect_no_handshake(client(TLS1_2_VERSION, nullptr)); }},
      {"TLS 1.3 without a key", [&] { expect_no_handshake(client(TLS1_3_VERSION, nullptr)); }},
      {"right identity, wrong secret",
       [&] {
         expect_no_handshake(client(TLS1_3_VERSION, "TLS_AES_256_GCM_SHA384"), identity,
                             wrong_secret<kSha384>);
       }},
      {"another suite",
       [&] {
         expect_no_handshake(client(TLS1_3_VERSION, "TLS_AES_128_GCM_SHA256"), identity,
                             wrong_secret<kSha256>);
       }},
      {"an identity that is none",
       [&] {
         const Bytes bytes = noise(100);
         expect_no_handshake(client(TLS1_3_VERSION, "TLS_AES_256_GCM_SHA384"),
                             std::string(bytes.begin(), bytes.end()), wrong_secret<kSha384>);
       }},
      {"a lie about the id",
       [&] {
         RawPeer liar(server.address());
         liar.tls(key, random_node_id());
         EXPECT_FALSE(liar.greet(random_node_id()));
       }},
      {"a web browser", [&] { expect_deaf(text_bytes("GET / HTTP/1.1\r\nHost: worker\r\n\r\n")); }},
      {"ssh", [&] { expect_deaf(text_bytes("SSH-2.0-OpenSSH_9.2p1\r\n")); }},
      {"a handshake without end",
       [&] {
         Bytes stream;
         for (int i = 0; i < 32; ++i) {
           stream.insert(stream.end(), {0x16, 0x03, 0x01, 0x04, 0x00});
           Bytes record(1024, 0);
           if (i == 0) std::memcpy(record.data(), "\x01\x01\xFF\xFF\x03\x03", 6);
           stream.insert(stream.end(), record.begin(), record.end());
         }
         expect_deaf(stream);
       }},
  };
  ASSERT_EQ(kinds.size(), 20U);
  const std::size_t n_sessions = server.n_sessions();
  const int n = n_of_each();
  for (const auto& [name, come] : kinds) {
    SCOPED_TRACE(name);
    for (int i = 0; i < n && !HasFailure(); ++i) come();
    // Nobody got in, and who may is served at once.
    const auto began = Clock::now();
    ASSERT_EQ(server.n_sessions(), n_sessions);
    RawPeer friendly(server.address());
    friendly.tls(key, random_node_id());
    EXPECT_LT(Clock::now() - began, kRefusedIn);
  }
  RecordProperty("strangers", static_cast<int>(kinds.size()) * n);
}

}  // namespace
}  // namespace moesaic::net::testing
