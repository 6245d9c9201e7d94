// Bytes to and from one peer: a TCP socket, under TLS or plain. Reads and writes are coroutines on
// the net thread and may run side by side; whoever closes the stream (a deadline, an error) makes
// both end with an error. Not for frames.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "net/asio.h"
#include "net/connection.h"
#include "net/tls.h"

namespace moesaic::net {

class Stream : private Socket {
 public:
  explicit Stream(asio::ip::tcp::socket socket);

  asio::ip::tcp::socket& socket() { return socket_; }
  // After the socket is connected: no delay, no blocking, an end to unacknowledged bytes.
  void prepare(milliseconds stalled_after);
  asio::awaitable<void> tls_handshake(const ClusterKey& key, const wire::NodeId& self,
                                      TlsSession::Side side);
  const TlsSession* tls() const { return tls_.get(); }

  // Exactly these bytes. Throws NetError, also when the peer closes before them.
  asio::awaitable<void> read(std::span<std::uint8_t> out);
  asio::awaitable<void> write(std::span<const std::uint8_t> bytes);
  asio::awaitable<void> drain();  // reads and discards until the peer closes
  void finish_sending();          // the peer reads the end after what was written
  void close();                   // at once; idempotent

  // From the socket, TLS's own included: signs of life.
  std::uint64_t bytes_received() const { return tls_ ? tls_->bytes_received() : bytes_received_; }
  // Of what was written, on the wire (TLS's own included), that the peer's kernel has confirmed.
  std::uint64_t bytes_acknowledged() const;

 private:
  int fd() const override;
  // At once, what there is room or data for; Want says what to wait for when there was none.
  TlsSession::Want read_now(std::span<std::uint8_t> out, std::size_t& n_read);
  TlsSession::Want write_now(std::span<const std::uint8_t> bytes, std::size_t& n_written);
  asio::awaitable<void> wait(TlsSession::Want want);
  asio::awaitable<void> turn();  // lets others on the net thread go first

  asio::ip::tcp::socket socket_;
  std::unique_ptr<TlsSession> tls_;
  std::uint64_t bytes_received_ = 0;
  std::uint64_t bytes_written_ = 0;
  std::size_t read_since_turn_ = 0;
  std::size_t written_since_turn_ = 0;
};

// Closes a stream when its time has passed, unless it is gone by then.
class Deadline {
 public:
  Deadline(Stream& stream, std::chrono::steady_clock::time_point at);
  ~Deadline();
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;
  bool passed() const { return state_->passed; }

 private:
  struct State {
    Stream* stream;
    bool passed = false;
  };
  std::shared_ptr<State> state_;
  asio::steady_timer timer_;
};

}  // namespace moesaic::net
