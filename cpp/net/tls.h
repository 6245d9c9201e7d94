// TLS 1.3 with an external pre-shared key, over OpenSSL: one suite, forward secrecy, no
// certificates, tickets, early data or earlier versions. A session reads and writes a non-blocking
// socket through a BIO of ours, which counts bytes and never raises SIGPIPE. Not for waiting:
// stream.h does that.
#pragma once

#include <openssl/ssl.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "net/key.h"

namespace moesaic::net {

// What a session reads and writes: the socket, whose number is -1 once it is closed.
class Socket {
 public:
  virtual ~Socket() = default;
  virtual int fd() const = 0;
};

class TlsSession {
 public:
  enum class Side { kDialler, kListener };
  // socket must outlive the session. Before the handshake has ended at most `handshake_limit`
  // bytes are taken from it.
  TlsSession(const ClusterKey& key, const wire::NodeId& self, Side side, const Socket& socket,
             std::size_t handshake_limit);
  ~TlsSession();
  TlsSession(const TlsSession&) = delete;
  TlsSession& operator=(const TlsSession&) = delete;

  enum class Want { kNothing, kRead, kWrite };  // what to wait for before the same call again
  // Each does what it can at once. Throw NetError with OpenSSL's reason.
  Want handshake();
  Want read(std::uint8_t* out, std::size_t n_bytes, std::size_t& n_read);  // n_read 0: the end
  Want write(const std::uint8_t* data, std::size_t n_bytes, std::size_t& n_written);
  void send_close();  // best effort

  // After the handshake: which key of the file it was, and (listener) who dialled.
  int key_epoch() const { return key_epoch_; }
  const wire::NodeId& dialler() const { return dialler_; }
  Secret exporter() const;
  std::uint64_t bytes_received() const { return bytes_received_; }
  std::uint64_t bytes_sent() const { return bytes_sent_; }
  std::uint64_t key_updates() const { return key_updates_; }
  // Traffic keys are renewed after so many records sent: AES-GCM is good for 2^24.5 (RFC 8446 5.5).
  void set_records_per_key(std::uint64_t n) { records_per_key_ = n; }

 private:
  friend struct TlsCallbacks;
  Want what_next(int result, const char* what, bool& ended);
  SSL_SESSION* make_session(SSL* ssl, Secret psk) const;  // wipes its copy

  const ClusterKey key_;
  const wire::NodeId self_;
  const Side side_;
  const Socket& socket_;
  const std::size_t handshake_limit_;
  std::vector<std::uint8_t> identity_;  // dialler
  wire::NodeId dialler_{};
  int key_epoch_ = -1;
  bool established_ = false;
  std::string refusal_;  // why the listener's callback did not find a key
  int socket_error_ = 0;
  std::uint64_t bytes_received_ = 0;
  std::uint64_t bytes_sent_ = 0;
  std::uint64_t records_sent_ = 0;
  std::uint64_t records_per_key_ = std::uint64_t{1} << 23;
  std::uint64_t key_updates_ = 0;
  std::unique_ptr<SSL, decltype(&SSL_free)> ssl_;
};

}  // namespace moesaic::net
