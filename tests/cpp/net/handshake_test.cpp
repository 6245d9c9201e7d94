// Who gets in and who does not: right and wrong keys, other versions of TLS and of ours, replays,
// reflections, servers that show a certificate, and those who only hold a connection open.
#include <gtest/gtest.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include "net/rig.h"

namespace moesaic::net::testing {
namespace {

class Handshake : public ::testing::Test {
 protected:
  NetThread net;
  ClusterKey key = ClusterKey::random();
};

void expect_served(NetThread& net, const LinkOptions& options, Server& server) {
  const auto link = dial(net, options, server.address(), kPatience);
  EXPECT_EQ(link->peer().address, server.address());
  link->close();
}

TEST_F(Handshake, BothSidesLearnWhoTheOtherIs) {
  for (const bool encrypted : {true, false}) {
    LinkOptions listening = patient(encrypted ? std::optional(key) : std::nullopt);
    listening.release = "0.1.0\n2026 forged log line \xC3\x28";
    listening.numerics.fill(3);
    listening.advertise = "shelf-1:9777";
    LinkOptions dialling = patient(listening.key);
    dialling.role = wire::Role::kObserver;
    dialling.numerics.fill(4);
    Server server(net, listening);
    const auto link = dial(net, dialling, server.address(), kPatience);
    EXPECT_EQ(link->peer().node, listening.self);
    EXPECT_EQ(link->peer().release, "0.1.0?2026 forged log line ?(");
    EXPECT_EQ(link->peer().numerics, listening.numerics);
    EXPECT_EQ(link->peer().advertised, "shelf-1:9777");
    EXPECT_EQ(link->peer().encrypted, encrypted);
    const PeerInfo& seen = server.session(0)->link->peer();
    EXPECT_EQ(seen.node, dialling.self);
    EXPECT_EQ(seen.role, wire::Role::kObserver);
    EXPECT_EQ(seen.numerics, dialling.numerics);
    EXPECT_EQ(seen.encrypted, encrypted);
    link->close();
  }
}

TEST_F(Handshake, AnotherKeyIsRefused) {
  Server server(net, patient(key));
  const std::string text =
      thrown<NetError>([&] { dial(net, patient(ClusterKey::random()), server.address()); });
  EXPECT_NE(text.find(server.address()), std::string::npos) << text;
  EXPECT_NE(text.find("same cluster key"), std::string::npos) << text;
  EXPECT_TRUE(eventually([&] {
    return server.refusals_text().find("not in this node's key file") != std::string::npos;
  })) << server.refusals_text();
  EXPECT_EQ(server.n_sessions(), 0U);
  expect_served(net, patient(key), server);
}

// Offers an identity with a secret that is not the key's.
int use_forged(SSL* ssl, const EVP_MD*, const unsigned char** id, std::size_t* n,
               SSL_SESSION** out) {
  const auto* identity = static_cast<const std::vector<std::uint8_t>*>(SSL_get_app_data(ssl));
  const unsigned char suite[] = {0x13, 0x02};
  const Secret wrong{};
  *out = SSL_SESSION_new();
  SSL_SESSION_set1_master_key(*out, wrong.data(), wrong.size());
  SSL_SESSION_set_cipher(*out, SSL_CIPHER_find(ssl, suite));
  SSL_SESSION_set_protocol_version(*out, TLS1_3_VERSION);
  *id = identity->data();
  *n = identity->size();
  return 1;
}

// What a listener answers to a hello of that kind, up to the end.
Bytes answer_to_forged(const Server& server, std::vector<std::uint8_t> identity) {
  RawPeer bare(server.address());
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_client_method()),
                                                                  SSL_CTX_free);
  SSL_CTX_set_ciphersuites(context.get(), "TLS_AES_256_GCM_SHA384");
  SSL_CTX_set_psk_use_session_callback(context.get(), use_forged);
  const std::unique_ptr<SSL, decltype(&SSL_free)> ssl(SSL_new(context.get()), SSL_free);
  SSL_set_app_data(ssl.get(), &identity);
  BIO* in = BIO_new(BIO_s_mem());
  BIO* out = BIO_new(BIO_s_mem());
  SSL_set_bio(ssl.get(), in, out);
  SSL_set_connect_state(ssl.get());
  EXPECT_NE(SSL_do_handshake(ssl.get()), 1);
  char* data = nullptr;
  const long n = BIO_get_mem_data(out, &data);
  EXPECT_GT(n, 0);
  EXPECT_TRUE(bare.send(Bytes(data, data + n)));
  return bare.receive(1 << 16);
}

TEST_F(Handshake, TheRightIdentityWithAnotherSecretIsRefused) {
  // Has overheard an identity and does not know the key: the binder of TLS fails.
  Server server(net, patient(key));
  const Bytes answer = answer_to_forged(server, key.identity(0, random_node_id()));
  EXPECT_LT(answer.size(), 16U);  // an alert, and the end
  EXPECT_TRUE(eventually([&] { return !server.refusals_text().empty(); }));
  EXPECT_EQ(server.n_sessions(), 0U);
}

TEST_F(Handshake, NothingInTheClearIsTheSameTwice) {
  Server server(net, patient(key));
  LinkOptions dialling = patient(key);
  std::vector<Bytes> hellos;
  for (int i = 0; i < 2; ++i) {
    Proxy proxy(server.address());
    dial(net, dialling, proxy.address())->close();
    Bytes hello = proxy.recorded();
    ASSERT_GT(hello.size(), 150U);
    hellos.push_back(std::move(hello));
  }
  const auto holds = [&](const Bytes& all, std::span<const std::uint8_t> part) {
    return std::search(all.begin(), all.end(), part.begin(), part.end()) != all.end();
  };
  const std::string name = key.key_id(0);
  const Bytes text(name.begin(), name.end());
  for (const Bytes& hello : hellos) {
    EXPECT_FALSE(holds(hello, text));
    EXPECT_FALSE(holds(hello, dialling.self));
  }
  // 8 bytes that are the same in both are the protocol's own, and so are in a hello under another
  // key by another node.
  const ClusterKey other = ClusterKey::random();
  Server elsewhere(net, patient(other));
  Proxy proxy(elsewhere.address());
  dial(net, patient(other), proxy.address())->close();
  const Bytes foreign = proxy.recorded();
  // The hello alone: what follows is encrypted, and the transcript's length may vary.
  const std::size_t n = (std::size_t{hellos[0][3]} << 8 | hellos[0][4]) + 5;
  for (std::size_t at = 0; at + 8 <= n; ++at) {
    const auto part = std::span<const std::uint8_t>(hellos[0]).subspan(at, 8);
    const bool is_of_this_key = holds(hellos[1], part) && !holds(foreign, part);
    EXPECT_FALSE(is_of_this_key) << "at byte " << at;
  }
}

TEST_F(Handshake, AStrangerLearnsNotWhoseIdentityItHasOverheard) {
  Server server(net, patient(key));
  const ClusterKey other = ClusterKey::random();
  const std::vector<std::uint8_t> ours = key.identity(0, random_node_id());
  const std::vector<std::uint8_t> foreign = other.identity(0, random_node_id());
  EXPECT_EQ(answer_to_forged(server, ours), answer_to_forged(server, foreign));
}

TEST_F(Handshake, ASourceOfManyDisplacesItsOwn) {
  LinkOptions few = patient(key);
  few.max_half_open = 8;
  Server server(net, few);
  RawPeer quiet(server.address(), "127.0.0.3");  // came first, and is the oldest
  ASSERT_TRUE(quiet.connected());
  std::vector<std::unique_ptr<RawPeer>> crowd;
  for (int i = 0; i < 40; ++i) {
    crowd.push_back(std::make_unique<RawPeer>(server.address(), "127.0.0.2"));
    ASSERT_TRUE(crowd.back()->connected());
  }
  EXPECT_TRUE(eventually([&] {
    return std::count_if(crowd.begin(), crowd.end(),
                         [](const auto& peer) { return peer->other_side_has_closed(); }) == 33;
  }));
  EXPECT_FALSE(quiet.other_side_has_closed());
}

TEST_F(Handshake, ACancelledDialDoesNotWaitForNames) {
  CancelFlag cancel;
  cancel.set();
  EXPECT_THROW(dial(net, patient(key), "a-name-of-no-machine.invalid:9777", kPatience, &cancel),
               CancelledError);
}

TEST_F(Handshake, KeysChangeInThreeStepsWithoutAPause) {
  const ClusterKey next = ClusterKey::random();
  const ClusterKey told = ClusterKey::parse(key.text() + next.text());   // step 1: known to all
  const ClusterKey moved = ClusterKey::parse(next.text() + key.text());  // step 2: in use
  Server before(net, patient(key));
  Server first(net, patient(told));
  Server second(net, patient(moved));
  Server after(net, patient(next));  // step 3: the old one is gone
  expect_served(net, patient(told), before);
  expect_served(net, patient(key), first);
  expect_served(net, patient(moved), first);
  expect_served(net, patient(told), second);
  expect_served(net, patient(next), second);
  expect_served(net, patient(moved), after);
  EXPECT_THROW(dial(net, patient(key), after.address()), NetError);
  EXPECT_THROW(dial(net, patient(told), after.address()), NetError);
}

TEST_F(Handshake, PlainAndEncryptedDoNotMix) {
  Server with_key(net, patient(key));
  Server plain(net, patient());
  const std::string to_key = thrown<Error>([&] { dial(net, patient(), with_key.address()); });
  EXPECT_NE(to_key.find(with_key.address()), std::string::npos) << to_key;
  const std::string to_plain = thrown<Error>([&] { dial(net, patient(key), plain.address()); });
  EXPECT_NE(to_plain.find("a cluster key at all"), std::string::npos) << to_plain;
  EXPECT_EQ(with_key.n_sessions() + plain.n_sessions(), 0U);
  // Not a byte of ours leaves before the key is proven: what comes back is at most a TLS alert.
  RawPeer bare(with_key.address());
  bare.send(frame_of(wire::Hello{}, 0));
  const Bytes answer = bare.receive(1 << 16);
  EXPECT_LE(answer.size(), 7U);
  RawPeer web(with_key.address());
  web.send({'G', 'E', 'T', ' ', '/', ' ', 'H', 'T', 'T', 'P', '/', '1', '.', '1', '\r', '\n'});
  EXPECT_LE(web.receive(1 << 16).size(), 7U);
}

TEST_F(Handshake, OlderTlsIsRefused) {
  Server server(net, patient(key));
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {  // 1.3 here: without our key
    const auto [host, port] = split_address(server.address());
    const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(
        SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
    SSL_CTX_set_min_proto_version(context.get(), version);
    SSL_CTX_set_max_proto_version(context.get(), version);
    BIO* bio = BIO_new_ssl_connect(context.get());
    BIO_set_conn_hostname(bio, server.address().c_str());
    EXPECT_LE(BIO_do_connect(bio), 0) << version;
    BIO_free_all(bio);
  }
  EXPECT_EQ(server.n_sessions(), 0U);
}

TEST_F(Handshake, OwnIdIsRefused) {
  for (const bool encrypted : {true, false}) {
    const LinkOptions options = patient(encrypted ? std::optional(key) : std::nullopt);
    Server server(net, options);
    thrown<Error>([&] { dial(net, options, server.address(), kPatience); });
    EXPECT_TRUE(eventually([&] {
      return server.refusals_text().find("own id") != std::string::npos;
    })) << server.refusals_text();
    EXPECT_EQ(server.n_sessions(), 0U);
  }
}

TEST_F(Handshake, ALieAboutTheIdIsRefused) {
  // Has the key, derives it for one id and says another.
  Server server(net, patient(key));
  RawPeer liar(server.address());
  liar.tls(key, random_node_id());
  EXPECT_FALSE(liar.greet(random_node_id()));
  EXPECT_EQ(server.n_sessions(), 0U);
}

// Runs `serve` for the one connection that a bare listening socket gets.
std::string dial_a_server_that(const std::function<void(RawPeer&)>& serve, NetThread& net,
                               const LinkOptions& options) {
  return error_at_a_server_that(
      serve, [&](const std::string& address) { dial(net, options, address, kPatience); });
}

TEST_F(Handshake, AListenerMustProveItsId) {
  const wire::NodeId node = random_node_id();
  const auto answer_with = [&](const std::function<wire::Welcome(const TlsSession&)>& make) {
    return dial_a_server_that(
        [&](RawPeer& peer) {
          peer.tls(key, node, TlsSession::Side::kListener);
          peer.receive_frame();
          peer.send(frame_of(make(peer.session()), 0));
          peer.sees_end();
        },
        net, patient(key));
  };
  EXPECT_NE(answer_with([&](const TlsSession&) {
              wire::Welcome welcome;
              welcome.node = node;
              return welcome;
            }).find("cannot prove"),
            std::string::npos);
  EXPECT_NE(answer_with([&](const TlsSession& tls) {
              wire::Welcome welcome;  // a proof for another id than the one it states
              welcome.node = node;
              welcome.proof = key.proof(0, tls.dialler(), random_node_id(), tls.exporter());
              return welcome;
            }).find("cannot prove"),
            std::string::npos);
}

TEST_F(Handshake, AServerWithACertificateIsRefused) {
  const std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)> pair(
      EVP_PKEY_Q_keygen(nullptr, nullptr, "EC", "P-256"), EVP_PKEY_free);
  const std::unique_ptr<X509, decltype(&X509_free)> certificate(X509_new(), X509_free);
  X509_gmtime_adj(X509_getm_notBefore(certificate.get()), -60);
  X509_gmtime_adj(X509_getm_notAfter(certificate.get()), 3600);
  X509_set_pubkey(certificate.get(), pair.get());
  X509_sign(certificate.get(), pair.get(), EVP_sha256());
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_server_method()),
                                                                  SSL_CTX_free);
  ASSERT_EQ(SSL_CTX_use_certificate(context.get(), certificate.get()), 1);
  ASSERT_EQ(SSL_CTX_use_PrivateKey(context.get(), pair.get()), 1);
  BIO* bio = BIO_new_accept("127.0.0.1:0");
  BIO_set_accept_bios(bio, BIO_new_ssl(context.get(), 0));
  ASSERT_GT(BIO_do_accept(bio), 0);
  const std::string address = strcat("127.0.0.1:", BIO_get_accept_port(bio));
  bool got_in = false;
  std::thread server([&] {
    if (BIO_do_accept(bio) <= 0) return;
    BIO* peer = BIO_pop(bio);
    got_in = BIO_do_handshake(peer) > 0;
    BIO_free_all(peer);
  });
  EXPECT_THROW(dial(net, patient(key), address, kPatience), NetError);
  server.join();
  EXPECT_FALSE(got_in);
  BIO_free_all(bio);
}

TEST_F(Handshake, ReplayedBytesOpenNothing) {
  Server server(net, patient(key));
  Bytes recorded;
  {
    Proxy proxy(server.address());
    const auto link = dial(net, patient(key), proxy.address(), kPatience);
    link->start({});
    link->send(status_request(1));
    EXPECT_TRUE(eventually([&] { return server.n_messages(0) == 1; }));
    recorded = proxy.recorded();
    link->close();
    EXPECT_TRUE(link->wait_closed(kPatience));
  }
  RawPeer replay(server.address());
  replay.send(recorded);
  EXPECT_TRUE(replay.sees_end());
  EXPECT_TRUE(eventually([&] { return !server.refusals_text().empty(); }));
  EXPECT_EQ(server.n_sessions(), 1U);
}

TEST_F(Handshake, AnotherVersionIsToldBothVersions) {
  Server server(net, patient());
  RawPeer other(server.address());
  Bytes hello = frame_of(wire::Hello{}, 0);
  hello[4] = 9;
  other.send(hello);
  const auto frame = other.receive_frame();
  ASSERT_TRUE(frame.has_value());
  const auto* reason = std::get_if<wire::GoAway>(&frame->message);
  ASSERT_NE(reason, nullptr);
  EXPECT_EQ(reason->reason, wire::Reason::kVersion);
  const std::string ours = strcat(int{wire::kVersionMajor}, ".", int{wire::kVersionMinor});
  EXPECT_NE(reason->text.find("9."), std::string::npos) << reason->text;
  EXPECT_NE(reason->text.find(ours), std::string::npos) << reason->text;
  EXPECT_TRUE(other.sees_end());

  const std::string text = dial_a_server_that(
      [](RawPeer& peer) {
        peer.receive_frame();
        wire::Welcome welcome;
        welcome.version_major = 77;
        welcome.version_minor = 0;
        welcome.release = "3.1";
        peer.send(frame_of(welcome, 0));
        peer.sees_end();
      },
      net, patient());
  EXPECT_NE(text.find("Moesaic 3.1 (protocol 77.0)"), std::string::npos) << text;
  EXPECT_NE(text.find("0.1.0-test (protocol " + ours + ")"), std::string::npos) << text;
}

TEST_F(Handshake, AnOlderMinorIsRefusedByNameAndANewerOneSpeaksOurs) {
  static_assert(wire::kOldestMinor > 0 && wire::kOldestMinor <= wire::kVersionMinor);
  const auto hello_of = [](std::uint8_t minor) {
    wire::Hello hello;
    hello.version_minor = minor;
    hello.release = "0.0.9";
    return frame_of(hello, 0);
  };
  Server server(net, patient());
  RawPeer older(server.address());
  older.send(hello_of(wire::kOldestMinor - 1));
  const auto frame = older.receive_frame();
  ASSERT_TRUE(frame.has_value());
  const auto* reason = std::get_if<wire::GoAway>(&frame->message);
  ASSERT_NE(reason, nullptr);
  EXPECT_EQ(reason->reason, wire::Reason::kVersion);
  for (const std::string& part :
       {strcat("Moesaic 0.0.9 (protocol ", int{wire::kVersionMajor}, ".", wire::kOldestMinor - 1,
               ")"),
        strcat("which speaks ", int{wire::kVersionMajor}, ".", int{wire::kOldestMinor})}) {
    EXPECT_NE(reason->text.find(part), std::string::npos) << reason->text;
  }
  EXPECT_EQ(server.n_sessions(), 0U);

  RawPeer newer(server.address());
  newer.send(hello_of(wire::kVersionMinor + 5));
  ASSERT_TRUE(eventually([&] { return server.n_sessions() == 1; }));
  EXPECT_EQ(server.session(0)->link->peer().version_minor, wire::kVersionMinor);

  const std::string text = dial_a_server_that(
      [](RawPeer& peer) {
        peer.receive_frame();
        wire::Welcome welcome;
        welcome.version_minor = wire::kOldestMinor - 1;
        welcome.release = "0.0.8";
        peer.send(frame_of(welcome, 0));
        peer.sees_end();
      },
      net, patient());
  EXPECT_NE(text.find("Moesaic 0.0.8"), std::string::npos) << text;
  EXPECT_NE(text.find("install the newer one on both"), std::string::npos) << text;
}

TEST_F(Handshake, WithoutAKeyOnlyThisMachine) {
  EXPECT_THROW(listen(net, patient(), "0.0.0.0:0", {}), ArgumentError);
  EXPECT_THROW(dial(net, patient(), "192.0.2.1:9777"), ArgumentError);
  LinkOptions open = patient();
  open.plain_beyond_loopback = true;
  EXPECT_NO_THROW(listen(net, open, "0.0.0.0:0", {}));
  EXPECT_NO_THROW(listen(net, patient(key), "0.0.0.0:0", {}));
}

TEST_F(Handshake, NobodyThereAndNoAnswer) {
  std::string gone;
  {
    Server server(net, patient());
    gone = server.address();
  }
  EXPECT_NE(thrown<NetError>([&] { dial(net, patient(), gone); }).find(gone), std::string::npos);
  // Connects and says nothing, until the deadline or until the caller has had enough.
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t n = sizeof at;
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&at), n), 0);
  ASSERT_EQ(::listen(fd, 8), 0);
  getsockname(fd, reinterpret_cast<sockaddr*>(&at), &n);
  const std::string mute = strcat("127.0.0.1:", ntohs(at.sin_port));
  EXPECT_THROW(dial(net, patient(key), mute, 200ms), DeadlineError);
  EXPECT_THROW(dial(net, patient(), mute, 200ms), DeadlineError);
  CancelFlag cancel;
  std::thread user([&] {
    std::this_thread::sleep_for(100ms);
    cancel.set();
  });
  EXPECT_THROW(dial(net, patient(key), mute, kPatience, &cancel), CancelledError);
  user.join();
  ::close(fd);
}

TEST_F(Handshake, SlowStrangersAreClosedAtTheDeadline) {
  LinkOptions strict = patient(key);
  strict.handshake_deadline = 300ms;
  Server server(net, strict);
  std::vector<std::unique_ptr<RawPeer>> strangers;
  for (int i = 0; i < 20; ++i) strangers.push_back(std::make_unique<RawPeer>(server.address()));
  // The beginning of a TLS record, a byte at a time, never its end.
  const auto began = Clock::now();
  std::size_t n_open = strangers.size();
  for (int i = 0; i < 200 && n_open > 0; ++i) {
    const Bytes drip = i == 0   ? Bytes{0x16}
                       : i == 1 ? Bytes{0x03}
                       : i == 2 ? Bytes{0x01}
                                : Bytes{0x10};
    n_open = 0;
    for (auto& stranger : strangers) n_open += stranger->send(drip) ? 1 : 0;
    std::this_thread::sleep_for(20ms);
  }
  EXPECT_EQ(n_open, 0U) << "still open after "
                        << std::chrono::duration_cast<milliseconds>(Clock::now() - began).count();
  expect_served(net, patient(key), server);
}

TEST_F(Handshake, TheOldestHalfOpenGivesWay) {
  LinkOptions narrow = patient(key);
  narrow.max_half_open = 4;
  Server server(net, narrow);
  std::vector<std::unique_ptr<RawPeer>> idle;
  for (int i = 0; i < 10; ++i) {
    idle.push_back(std::make_unique<RawPeer>(server.address()));
    ASSERT_TRUE(idle.back()->connected());
  }
  EXPECT_TRUE(idle.front()->sees_end());
  EXPECT_TRUE(idle[5]->sees_end());
  EXPECT_FALSE(idle.back()->sees_end(50ms));
  expect_served(net, patient(key), server);
}

TEST_F(Handshake, AHandshakeIsAtMost16KiB) {
  Server server(net, patient(key));
  RawPeer big(server.address());
  // A ClientHello that goes on for ever: records of 1 KiB of one handshake message of 128 KiB.
  Bytes stream;
  for (int i = 0; i < 64; ++i) {
    stream.insert(stream.end(), {0x16, 0x03, 0x01, 0x04, 0x00});
    Bytes record(1024, 0);
    if (i == 0) std::memcpy(record.data(), "\x01\x01\xFF\xFF\x03\x03", 6);
    stream.insert(stream.end(), record.begin(), record.end());
  }
  big.send(stream);
  EXPECT_TRUE(big.sees_end());
  EXPECT_TRUE(eventually([&] { return !server.refusals_text().empty(); }));
  expect_served(net, patient(key), server);
}

TEST_F(Handshake, TrafficKeysAreRenewed) {
  int ends[2];
  ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 0);
  struct End : Socket {
    int number = -1;
    int fd() const override { return number; }
  } a, b;
  a.number = ends[0];
  b.number = ends[1];
  TlsSession dialler(key, random_node_id(), TlsSession::Side::kDialler, a, 16U << 10);
  TlsSession listener(key, random_node_id(), TlsSession::Side::kListener, b, 16U << 10);
  bool done = false;
  for (int i = 0; i < 20 && !done; ++i) {
    const bool first = dialler.handshake() == TlsSession::Want::kNothing;
    done = listener.handshake() == TlsSession::Want::kNothing && first;
  }
  ASSERT_TRUE(done);
  EXPECT_EQ(dialler.exporter(), listener.exporter());
  dialler.set_records_per_key(3);
  listener.set_records_per_key(5);
  Bytes got(100);
  for (std::uint8_t i = 0; i < 100; ++i) {
    for (const auto& [from, to] :
         {std::pair{&dialler, &listener}, std::pair{&listener, &dialler}}) {
      const Bytes sent(100, i);
      std::size_t n = 0;
      ASSERT_EQ(from->write(sent.data(), sent.size(), n), TlsSession::Want::kNothing);
      ASSERT_EQ(n, sent.size());
      std::fill(got.begin(), got.end(), std::uint8_t{0xFF});
      ASSERT_EQ(to->read(got.data(), got.size(), n), TlsSession::Want::kNothing);
      ASSERT_EQ(n, sent.size());
      ASSERT_EQ(got, sent);
    }
  }
  EXPECT_EQ(dialler.key_updates(), 33U);
  EXPECT_EQ(listener.key_updates(), 20U);
  ::close(ends[0]);
  ::close(ends[1]);
}

}  // namespace
}  // namespace moesaic::net::testing
