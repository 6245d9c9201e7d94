// Non-blocking calls first, a wait on the socket only when they have nothing to do.
#include "net/stream.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/errors.h"

namespace moesaic::net {
namespace {

constexpr std::size_t kHandshakeLimit = 16U << 10;
// Bytes that may wait in the kernel without being under way: what is queued there can no longer be
// overtaken by a ping or a cancel. Does not limit what is under way.
constexpr int kUnsentBytes = 512 << 10;

// After so many bytes without a wait, others on the net thread have their turn.
bool turn_is_over(std::size_t n_bytes, std::size_t& since_turn) {
  constexpr std::size_t kTurnBytes = 1U << 20;
  since_turn += n_bytes;
  if (since_turn < kTurnBytes) return false;
  since_turn = 0;
  return true;
}

}  // namespace

Stream::Stream(asio::ip::tcp::socket socket) : socket_(std::move(socket)) {}

int Stream::fd() const {
  // native_handle() is not const in asio, though it changes nothing.
  return const_cast<asio::ip::tcp::socket&>(socket_).native_handle();
}

void Stream::prepare(milliseconds stalled_after) {
  asio::error_code ignored;
  socket_.non_blocking(true, ignored);
  (void)fcntl(fd(), F_SETFD, FD_CLOEXEC);  // asio leaves sockets to child processes
  socket_.set_option(asio::ip::tcp::no_delay(true), ignored);
  const auto timeout = static_cast<unsigned int>(stalled_after.count());
  // Where the system does not know it, the link's own clock finds the same.
  (void)setsockopt(fd(), IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof timeout);
  (void)setsockopt(fd(), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &kUnsentBytes, sizeof kUnsentBytes);
}

std::uint64_t Stream::bytes_acknowledged() const {
  const std::uint64_t sent = tls_ ? tls_->bytes_sent() : bytes_written_;
  int waiting = 0;  // sent and not acknowledged, or not sent
  if (!socket_.is_open() || ioctl(fd(), SIOCOUTQ, &waiting) != 0 || waiting < 0) return sent;
  return sent - std::min<std::uint64_t>(sent, static_cast<std::uint64_t>(waiting));
}

asio::awaitable<void> Stream::tls_handshake(const ClusterKey& key, const wire::NodeId& self,
                                            TlsSession::Side side) {
  tls_ = std::make_unique<TlsSession>(key, self, side, static_cast<const Socket&>(*this),
                                      kHandshakeLimit);
  for (;;) {
    const TlsSession::Want want = tls_->handshake();
    if (want == TlsSession::Want::kNothing) co_return;
    co_await wait(want);
  }
}

TlsSession::Want Stream::read_now(std::span<std::uint8_t> out, std::size_t& n_read) {
  if (!socket_.is_open()) fail<NetError>("the connection is closed");
  if (tls_) {
    const TlsSession::Want want = tls_->read(out.data(), out.size(), n_read);
    if (want == TlsSession::Want::kNothing && n_read == 0) {
      fail<NetError>("the other side closed the connection");
    }
    return want;
  }
  const ssize_t n = ::recv(fd(), out.data(), out.size(), MSG_DONTWAIT);
  n_read = n > 0 ? static_cast<std::size_t>(n) : 0;
  bytes_received_ += n_read;
  if (n > 0) return TlsSession::Want::kNothing;
  if (n == 0) fail<NetError>("the other side closed the connection");
  if (errno != EAGAIN && errno != EINTR) fail<NetError>("read: ", std::strerror(errno));
  return TlsSession::Want::kRead;
}

TlsSession::Want Stream::write_now(std::span<const std::uint8_t> bytes, std::size_t& n_written) {
  if (!socket_.is_open()) fail<NetError>("the connection is closed");
  if (tls_) return tls_->write(bytes.data(), bytes.size(), n_written);
  const ssize_t n = ::send(fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  n_written = n > 0 ? static_cast<std::size_t>(n) : 0;
  if (n >= 0) return TlsSession::Want::kNothing;
  if (errno != EAGAIN && errno != EINTR) fail<NetError>("write: ", std::strerror(errno));
  return TlsSession::Want::kWrite;
}

asio::awaitable<void> Stream::wait(TlsSession::Want want) {
  if (!socket_.is_open()) fail<NetError>("the connection is closed");
  asio::error_code error;
  const auto kind = want == TlsSession::Want::kRead ? asio::ip::tcp::socket::wait_read
                                                    : asio::ip::tcp::socket::wait_write;
  co_await socket_.async_wait(kind, asio::redirect_error(asio::use_awaitable, error));
  if (error) fail<NetError>("the connection is closed");
}

asio::awaitable<void> Stream::turn() {
  co_await asio::post(socket_.get_executor(), asio::use_awaitable);
}

asio::awaitable<void> Stream::read(std::span<std::uint8_t> out) {
  while (!out.empty()) {
    std::size_t n_read = 0;
    const TlsSession::Want want = read_now(out, n_read);
    out = out.subspan(n_read);
    if (want != TlsSession::Want::kNothing) {
      read_since_turn_ = 0;
      co_await wait(want);
    } else if (turn_is_over(n_read, read_since_turn_)) {
      co_await turn();
    }
  }
}

asio::awaitable<void> Stream::write(std::span<const std::uint8_t> bytes) {
  while (!bytes.empty()) {
    std::size_t n_written = 0;
    const TlsSession::Want want = write_now(bytes, n_written);
    bytes = bytes.subspan(n_written);
    bytes_written_ += n_written;
    if (want != TlsSession::Want::kNothing) {
      written_since_turn_ = 0;
      co_await wait(want);
    } else if (turn_is_over(n_written, written_since_turn_)) {
      co_await turn();
    }
  }
}

asio::awaitable<void> Stream::drain() {
  std::array<std::uint8_t, 4096> sink;
  for (;;) {
    std::size_t n_read = 0;
    TlsSession::Want want = TlsSession::Want::kNothing;
    try {
      want = read_now(sink, n_read);
    } catch (const NetError&) {
      co_return;  // the end, in whatever way
    }
    if (want != TlsSession::Want::kNothing) {
      co_await wait(want);
    } else if (turn_is_over(n_read, read_since_turn_)) {
      co_await turn();
    }
  }
}

void Stream::finish_sending() {
  if (!socket_.is_open()) return;
  if (tls_) tls_->send_close();
  asio::error_code ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
}

void Stream::close() {
  asio::error_code ignored;
  socket_.close(ignored);
}

Deadline::Deadline(Stream& stream, std::chrono::steady_clock::time_point at)
    : state_(std::make_shared<State>(State{&stream})), timer_(stream.socket().get_executor()) {
  timer_.expires_at(at);
  timer_.async_wait([state = state_](asio::error_code error) {
    if (error || state->stream == nullptr) return;
    state->passed = true;
    state->stream->close();
  });
}

Deadline::~Deadline() {
  state_->stream = nullptr;
  timer_.cancel();
}

}  // namespace moesaic::net
