// What the net tests share: waiting with generous deadlines, a peer made of a bare socket (plain or
// TLS) that can say anything, a proxy that records, cuts and silences, and a listener with a log.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/crc32c.h"
#include "base/errors.h"
#include "base/thrown.h"
#include "net/connection.h"
#include "net/tls.h"
#include "wire/messages.h"

namespace moesaic::net::testing {

using namespace std::chrono_literals;
using moesaic::testing::thrown;
using Bytes = std::vector<std::uint8_t>;
using Clock = std::chrono::steady_clock;

// Tests run on loaded machines: waits end early when they can and late when they must.
inline constexpr milliseconds kPatience{20000};

inline bool eventually(const std::function<bool()>& condition, milliseconds patience = kPatience) {
  const auto end = Clock::now() + patience;
  while (!condition()) {
    if (Clock::now() > end) return false;
    std::this_thread::sleep_for(1ms);
  }
  return true;
}

inline std::string text_of(const std::exception_ptr& error) {
  if (!error) return "";
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  }
}

// Links of tests live through a loaded machine's hiccups; tests of deadlines set their own.
inline LinkOptions patient(std::optional<ClusterKey> key = std::nullopt) {
  LinkOptions options;
  options.key = std::move(key);
  options.release = "0.1.0-test";
  options.dead_after = kPatience;
  options.stalled_after = kPatience;
  options.send_deadline = kPatience;
  options.handshake_deadline = kPatience;
  return options;
}

inline Bytes frame_bytes(wire::MessageType type, const Bytes& body, std::uint64_t sequence,
                         std::uint64_t epoch = 0) {
  wire::FrameHeader header;
  header.type = type;
  header.body_bytes = static_cast<std::uint32_t>(body.size());
  header.sequence = sequence;
  header.epoch = epoch;
  const wire::HeaderBytes bytes = wire::encode_header(header, crc32c(0, body.data(), body.size()));
  Bytes frame(bytes.size() + body.size());
  std::copy(body.begin(), body.end(), std::copy(bytes.begin(), bytes.end(), frame.begin()));
  return frame;
}

template <typename M>
Bytes frame_of(const M& message, std::uint64_t sequence, std::uint64_t epoch = 0) {
  return frame_bytes(M::kType, wire::encode(message), sequence, epoch);
}

inline wire::StatusRequest status_request(std::uint64_t id, bool measure = false) {
  wire::StatusRequest request;
  request.request = id;
  request.measure = measure;
  return request;
}

// A blocking socket with time limits that says what a test wants it to.
class RawPeer : private Socket {
 public:
  // source: the address of this machine to come from; empty: the system's choice.
  explicit RawPeer(const std::string& address, const std::string& source = "") {
    const auto [host, port] = split_address(address);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    inet_pton(AF_INET, host.c_str(), &to.sin_addr);
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (!source.empty()) {
      sockaddr_in from{};
      from.sin_family = AF_INET;
      inet_pton(AF_INET, source.c_str(), &from.sin_addr);
      EXPECT_EQ(bind(fd_, reinterpret_cast<sockaddr*>(&from), sizeof from), 0);
    }
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0;
    const int one = 1;  // or each handshake waits 40 ms for a delayed acknowledgement
    (void)setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  }
  explicit RawPeer(int accepted_fd) : fd_(accepted_fd), connected_(accepted_fd >= 0) {}
  ~RawPeer() override { close(); }
  RawPeer(const RawPeer&) = delete;
  RawPeer& operator=(const RawPeer&) = delete;

  bool connected() const { return connected_; }
  bool other_side_has_closed() const {
    char byte = 0;
    return ::recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
  }
  void close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }

  // Throws what TlsSession throws; NetError when it takes too long.
  void tls(const ClusterKey& key, const wire::NodeId& self,
           TlsSession::Side side = TlsSession::Side::kDialler) {
    tls_ =
        std::make_unique<TlsSession>(key, self, side, static_cast<const Socket&>(*this), 16U << 10);
    const auto end = Clock::now() + kPatience;
    for (;;) {
      const TlsSession::Want want = tls_->handshake();
      if (want == TlsSession::Want::kNothing) return;
      wait(want, end);
    }
  }
  const TlsSession& session() const { return *tls_; }

  // False when the other side has closed.
  bool send(const Bytes& bytes) {
    std::size_t at = 0;
    const auto end = Clock::now() + kPatience;
    while (at < bytes.size()) {
      std::size_t n = 0;
      TlsSession::Want want = TlsSession::Want::kWrite;
      if (tls_) {
        try {
          want = tls_->write(bytes.data() + at, bytes.size() - at, n);
        } catch (const NetError&) {
          return false;
        }
      } else {
        const ssize_t sent =
            ::send(fd_, bytes.data() + at, bytes.size() - at, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN) return false;
        n = sent > 0 ? static_cast<std::size_t>(sent) : 0;
      }
      at += n;
      if (n == 0) wait(want, end);
    }
    return true;
  }

  // Up to n bytes; fewer when the other side has closed or `patience` is over.
  Bytes receive(std::size_t n, milliseconds patience = kPatience) {
    Bytes bytes(n);
    std::size_t at = 0;
    const auto end = Clock::now() + patience;
    while (at < n) {
      std::size_t got = 0;
      TlsSession::Want want = TlsSession::Want::kRead;
      if (tls_) {
        try {
          want = tls_->read(bytes.data() + at, n - at, got);
        } catch (const NetError&) {
          break;
        }
        if (want == TlsSession::Want::kNothing && got == 0) break;
      } else {
        const ssize_t received = ::recv(fd_, bytes.data() + at, n - at, MSG_DONTWAIT);
        if (received == 0 || (received < 0 && errno != EAGAIN)) break;
        got = received > 0 ? static_cast<std::size_t>(received) : 0;
      }
      at += got;
      if (got == 0) {
        try {
          wait(want, end);
        } catch (const NetError&) {
          break;
        }
      }
    }
    bytes.resize(at);
    return bytes;
  }
  // The other side closes without another byte.
  bool sees_end(milliseconds patience = kPatience) {
    const auto end = Clock::now() + patience;
    while (Clock::now() < end) {
      if (receive(1 << 16, 10ms).empty() && is_at_end()) return true;
    }
    return false;
  }

  // The next frame; nullopt at the end.
  struct Frame {
    wire::FrameHeader header;
    wire::Message message;
    Bytes payload;
  };
  std::optional<Frame> receive_frame(std::uint32_t activation_limit = 1U << 30) {
    const Bytes bytes = receive(wire::kHeaderBytes);
    if (bytes.size() < wire::kHeaderBytes) return std::nullopt;
    const wire::FrameHeader header = wire::decode_header(
        std::span<const std::uint8_t, wire::kHeaderBytes>(bytes.data(), wire::kHeaderBytes),
        activation_limit);
    const Bytes body = receive(header.body_bytes);
    if (body.size() < header.body_bytes) return std::nullopt;
    wire::Decoded decoded = wire::decode(header.type, body);
    return Frame{header, std::move(decoded.message),
                 Bytes(decoded.payload.begin(), decoded.payload.end())};
  }
  // Hello said and Welcome heard.
  bool greet(const wire::NodeId& self) {
    wire::Hello hello;
    hello.node = self;
    if (!send(frame_of(hello, 0))) return false;
    const auto frame = receive_frame();
    return frame && frame->header.type == wire::MessageType::kWelcome;
  }

 private:
  int fd() const override { return fd_; }
  bool is_at_end() const {
    char byte = 0;
    const ssize_t n = ::recv(fd_, &byte, 1, MSG_DONTWAIT | MSG_PEEK);
    return n == 0 || (n < 0 && errno != EAGAIN);
  }
  void wait(TlsSession::Want want, Clock::time_point end) const {
    pollfd entry{fd_, static_cast<short>(want == TlsSession::Want::kRead ? POLLIN : POLLOUT), 0};
    const auto left = std::chrono::duration_cast<milliseconds>(end - Clock::now()).count();
    if (left <= 0 || poll(&entry, 1, static_cast<int>(left)) <= 0) fail<NetError>("raw peer: time");
  }

  int fd_ = -1;
  bool connected_ = false;
  std::unique_ptr<TlsSession> tls_;
};

// What `dial` throws when one connection is accepted and served so.
inline std::string error_at_a_server_that(
    const std::function<void(RawPeer&)>& serve,
    const std::function<void(const std::string& address)>& dial) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t n = sizeof at;
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&at), n), 0);
  EXPECT_EQ(::listen(fd, 1), 0);
  getsockname(fd, reinterpret_cast<sockaddr*>(&at), &n);
  std::thread server([&] {
    RawPeer peer(accept(fd, nullptr, nullptr));
    try {
      serve(peer);
    } catch (const Error&) {
      return;  // the dialler has had enough
    }
  });
  const std::string text =
      moesaic::testing::thrown<Error>([&] { dial(strcat("127.0.0.1:", ntohs(at.sin_port))); });
  server.join();
  ::close(fd);
  return text;
}

// What a listener has seen, and the links it has accepted, each started with a log of messages.
struct Server {
  struct Session {
    std::shared_ptr<Connection> link;
    std::vector<Incoming> messages;
    bool closed = false;
    std::string error;
  };
  std::mutex mutex;
  std::vector<std::shared_ptr<Session>> sessions;
  std::vector<std::string> refusals;
  // Set before the listener is made: what to do with a message instead of keeping it.
  std::function<void(Connection&, Incoming&&)> on_message;
  bool starts_links = true;
  std::unique_ptr<Listener> listener;

  Server(NetThread& net, const LinkOptions& options,
         std::function<void(Connection&, Incoming&&)> handler = {}, bool start = true)
      : on_message(std::move(handler)), starts_links(start) {
    listener = listen(net, options, "127.0.0.1:0",
                      {.accepted = [this](std::shared_ptr<Connection> link) { accept(link); },
                       .refused =
                           [this](const std::string& why) {
                             const std::lock_guard lock(mutex);
                             refusals.push_back(why);
                           }});
  }
  ~Server() {
    listener->close();
    std::vector<std::shared_ptr<Session>> all;
    {
      const std::lock_guard lock(mutex);
      all = sessions;
    }
    for (const auto& session : all) {
      session->link->close();
      if (starts_links) {
        EXPECT_TRUE(session->link->wait_closed(kPatience));
      }
    }
  }
  const std::string& address() const { return listener->address(); }

  void accept(const std::shared_ptr<Connection>& link) {
    auto session = std::make_shared<Session>();
    session->link = link;
    link->set_activation_limit(64U << 20);
    {
      const std::lock_guard lock(mutex);
      sessions.push_back(session);
    }
    if (!starts_links) return;
    Connection* const raw = link.get();
    link->start({.on_message =
                     [this, session, raw](Incoming&& incoming) {
                       if (on_message) return on_message(*raw, std::move(incoming));
                       const std::lock_guard lock(mutex);
                       session->messages.push_back(std::move(incoming));
                     },
                 .on_closed =
                     [this, session](std::exception_ptr error) {
                       const std::lock_guard lock(mutex);
                       session->closed = true;
                       session->error = text_of(error);
                     }});
  }

  std::size_t n_sessions() {
    const std::lock_guard lock(mutex);
    return sessions.size();
  }
  std::shared_ptr<Session> session(std::size_t i) {
    EXPECT_TRUE(eventually([&] { return n_sessions() > i; }));
    const std::lock_guard lock(mutex);
    return sessions.at(i);
  }
  std::size_t n_messages(std::size_t i) {
    const std::lock_guard lock(mutex);
    return i < sessions.size() ? sessions[i]->messages.size() : 0;
  }
  bool is_closed(std::size_t i) {
    const std::lock_guard lock(mutex);
    return i < sessions.size() && sessions[i]->closed;
  }
  std::string error_of(std::size_t i) {
    const std::lock_guard lock(mutex);
    return sessions.at(i)->error;
  }
  std::string refusals_text() {
    const std::lock_guard lock(mutex);
    std::string all;
    for (const std::string& line : refusals) all += line + "\n";
    return all;
  }
};

// Between a dialler and a listener: forwards, and does as it is told.
class Proxy {
 public:
  explicit Proxy(std::string to) : to_(std::move(to)) {
    listen_fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t n = sizeof at;
    const bool ready = bind(listen_fd_, reinterpret_cast<sockaddr*>(&at), n) == 0 &&
                       ::listen(listen_fd_, 16) == 0 &&
                       getsockname(listen_fd_, reinterpret_cast<sockaddr*>(&at), &n) == 0;
    EXPECT_TRUE(ready);
    address_ = strcat("127.0.0.1:", ntohs(at.sin_port));
    thread_ = std::thread([this] { run(); });
  }
  ~Proxy() {
    stop = true;
    thread_.join();
    ::close(listen_fd_);
  }
  const std::string& address() const { return address_; }
  Bytes recorded() {  // from the dialler
    const std::lock_guard lock(mutex_);
    return recorded_;
  }

  std::atomic<bool> stop{false};
  std::atomic<bool> silence_to_dialler{false};  // bytes are read and dropped
  std::atomic<bool> silence_to_listener{false};
  std::atomic<std::size_t> cut_after{SIZE_MAX};  // bytes from the dialler, then both are closed
  std::atomic<std::size_t> flip_at{SIZE_MAX};    // this byte from the dialler arrives wrong
  std::atomic<int> bytes_per_ms{0};              // that are taken from the dialler; 0: no limit

 private:
  void run() {
    while (!stop) {
      pollfd entry{listen_fd_, POLLIN, 0};
      if (poll(&entry, 1, 5) <= 0) continue;
      const int dialler = accept4(listen_fd_, nullptr, nullptr, SOCK_CLOEXEC);
      if (dialler >= 0) forward(dialler);
    }
  }
  void forward(int dialler) {
    const auto [host, port] = split_address(to_);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    inet_pton(AF_INET, host.c_str(), &to.sin_addr);
    const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(listener, reinterpret_cast<sockaddr*>(&to), sizeof to) == 0) {
      std::size_t n_from_dialler = 0;
      std::vector<std::uint8_t> buffer(1U << 16);
      for (bool open = true; open && !stop;) {
        pollfd entries[2] = {{dialler, POLLIN, 0}, {listener, POLLIN, 0}};
        if (poll(entries, 2, 5) <= 0) continue;
        if ((entries[0].revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
          const int rate = bytes_per_ms;
          const std::size_t most = rate > 0 ? static_cast<std::size_t>(20 * rate) : buffer.size();
          const ssize_t n = ::recv(dialler, buffer.data(), std::min(most, buffer.size()), 0);
          if (rate > 0) std::this_thread::sleep_for(20ms);
          open = n > 0;
          if (n > 0) open = pass_on(listener, buffer, static_cast<std::size_t>(n), n_from_dialler);
        }
        if (open && (entries[1].revents & (POLLIN | POLLHUP | POLLERR)) != 0) {
          const ssize_t n = ::recv(listener, buffer.data(), buffer.size(), 0);
          open = n > 0;
          if (n > 0 && !silence_to_dialler) {
            open = send_all(dialler, buffer.data(), static_cast<std::size_t>(n));
          }
        }
      }
    }
    ::close(listener);
    ::close(dialler);
  }
  bool pass_on(int to, std::vector<std::uint8_t>& buffer, std::size_t n, std::size_t& passed) {
    {
      const std::lock_guard lock(mutex_);
      recorded_.insert(recorded_.end(), buffer.begin(),
                       buffer.begin() + static_cast<std::ptrdiff_t>(n));
    }
    if (flip_at >= passed && flip_at < passed + n) buffer[flip_at - passed] ^= 0x10;
    const std::size_t allowed = std::min(n, cut_after - std::min<std::size_t>(cut_after, passed));
    passed += n;
    if (!silence_to_listener && !send_all(to, buffer.data(), allowed)) return false;
    return allowed == n;
  }
  static bool send_all(int to, const std::uint8_t* data, std::size_t n) {
    while (n > 0) {
      const ssize_t sent = ::send(to, data, n, MSG_NOSIGNAL);
      if (sent <= 0) return false;
      data += sent;
      n -= static_cast<std::size_t>(sent);
    }
    return true;
  }

  const std::string to_;
  std::string address_;
  int listen_fd_ = -1;
  std::mutex mutex_;
  Bytes recorded_;
  std::thread thread_;
};

}  // namespace moesaic::net::testing
