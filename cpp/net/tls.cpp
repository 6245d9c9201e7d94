// OpenSSL calls for tls.h. Known trap: with more than one suite offered, an external PSK is not
// found ("no suitable signature algorithm"), so exactly one is.
#include "net/tls.h"

#include <openssl/err.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "base/errors.h"

namespace moesaic::net {
namespace {

constexpr char kSuite[] = "TLS_AES_256_GCM_SHA384";
constexpr unsigned char kSuiteId[] = {0x13, 0x02};
constexpr char kExporterLabel[] = "EXPORTER-moesaic-listener-proof-v1";

// The oldest reason in this thread's queue, which is emptied.
std::string openssl_reason() {
  const unsigned long error = ERR_get_error();
  ERR_clear_error();
  if (error == 0) return "";
  const char* reason = ERR_reason_error_string(error);
  return reason == nullptr ? strcat("OpenSSL error ", error) : reason;
}

// What a failed handshake means to a person, before OpenSSL's own words; "" for other reasons.
std::string_view meaning_of(unsigned long error) {
  switch (ERR_GET_REASON(error)) {
    case SSL_R_SSLV3_ALERT_ILLEGAL_PARAMETER:
    case SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE:
    case SSL_R_TLSV1_ALERT_DECRYPT_ERROR:
    case SSL_R_TLSV1_ALERT_UNKNOWN_PSK_IDENTITY:
      return "it does not accept this cluster key: both sides need the same cluster key";
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_UNEXPECTED_MESSAGE:
      return "it does not speak TLS: does it have a cluster key at all?";
    default:
      return "";
  }
}

}  // namespace

// What OpenSSL calls back: C functions that must not throw.
struct TlsCallbacks {
  static TlsSession& session(const SSL* ssl) {
    return *static_cast<TlsSession*>(SSL_get_app_data(ssl));
  }

  // Dialler: the key to offer. `digest` is set once a suite is being retried.
  static int use_session(SSL* ssl, const EVP_MD* digest, const unsigned char** identity,
                         std::size_t* identity_bytes, SSL_SESSION** out) {
    *out = nullptr;
    if (digest != nullptr && !EVP_MD_is_a(digest, "SHA2-384")) return 0;
    TlsSession& self = session(ssl);
    try {
      *out = self.make_session(ssl, self.key_.psk(0, self.self_));
    } catch (const std::exception&) {
      return 0;
    }
    *identity = reinterpret_cast<const unsigned char*>(self.identity_.data());
    *identity_bytes = self.identity_.size();
    return *out != nullptr ? 1 : 0;
  }

  // Listener: the key that an identity names. Null and 1: none, and without a certificate the
  // handshake fails there.
  static int find_session(SSL* ssl, const unsigned char* identity, std::size_t identity_bytes,
                          SSL_SESSION** out) {
    *out = nullptr;
    TlsSession& self = session(ssl);
    try {
      const auto claim = self.key_.open_identity({identity, identity_bytes});
      if (!claim) {
        self.refusal_ = "its cluster key is not in this node's key file";
      } else if (claim->dialler == self.self_) {
        self.refusal_ = "it uses this node's own id: a reflection, or a node that dials itself";
      }
      if (!self.refusal_.empty()) {
        // With a key that no one has the handshake fails as it does for a right identity without
        // its secret: a stranger does not learn whose identity it has overheard.
        *out = self.make_session(ssl, ClusterKey::random().psk(0, self.self_));
        return 1;
      }
      *out = self.make_session(ssl, self.key_.psk(claim->epoch, claim->dialler));
      self.key_epoch_ = claim->epoch;
      self.dialler_ = claim->dialler;
    } catch (const std::exception&) {
      return 0;
    }
    return 1;
  }

  static TlsSession& owner(BIO* bio) { return *static_cast<TlsSession*>(BIO_get_data(bio)); }

  static int bio_write(BIO* bio, const char* data, int n) {
    TlsSession& self = owner(bio);
    BIO_clear_retry_flags(bio);
    const ssize_t sent =
        ::send(self.socket_.fd(), data, static_cast<std::size_t>(n), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent >= 0) {
      self.bytes_sent_ += static_cast<std::uint64_t>(sent);
      return static_cast<int>(sent);
    }
    if (errno == EAGAIN || errno == EINTR) {
      BIO_set_retry_write(bio);
    } else {
      self.socket_error_ = errno;
    }
    return -1;
  }

  static int bio_read(BIO* bio, char* out, int n) {
    TlsSession& self = owner(bio);
    BIO_clear_retry_flags(bio);
    std::size_t room = static_cast<std::size_t>(n);
    if (!self.established_) {
      const std::uint64_t left =
          self.handshake_limit_ -
          std::min<std::uint64_t>(self.handshake_limit_, self.bytes_received_);
      if (left == 0) {
        self.refusal_ = strcat("its handshake is longer than ", self.handshake_limit_, " bytes");
        return -1;
      }
      room = std::min<std::size_t>(room, left);
    }
    const ssize_t received = ::recv(self.socket_.fd(), out, room, MSG_DONTWAIT);
    if (received > 0) {
      self.bytes_received_ += static_cast<std::uint64_t>(received);
    } else if (received < 0) {
      if (errno == EAGAIN || errno == EINTR) {
        BIO_set_retry_read(bio);
      } else {
        self.socket_error_ = errno;
      }
    }
    return static_cast<int>(received);
  }

  static long bio_ctrl(BIO*, int command, long, void*) { return command == BIO_CTRL_FLUSH ? 1 : 0; }

  static BIO_METHOD* bio_method() {
    static BIO_METHOD* const method = [] {  // never freed: a net thread may live to the very end
      BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "moesaic socket");
      BIO_meth_set_write(made, bio_write);
      BIO_meth_set_read(made, bio_read);
      BIO_meth_set_ctrl(made, bio_ctrl);
      return made;
    }();
    return method;
  }

  static SSL_CTX* context(TlsSession::Side side) {
    using Context = std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)>;
    const auto make = [side](const SSL_METHOD* method) {
      Context context(SSL_CTX_new(method), SSL_CTX_free);
      SSL_CTX* raw = context.get();
      const bool made = raw != nullptr && SSL_CTX_set_min_proto_version(raw, TLS1_3_VERSION) == 1 &&
                        SSL_CTX_set_max_proto_version(raw, TLS1_3_VERSION) == 1 &&
                        SSL_CTX_set_ciphersuites(raw, kSuite) == 1 &&
                        SSL_CTX_set1_groups_list(raw, "X25519:P-256") == 1 &&
                        SSL_CTX_set_num_tickets(raw, 0) == 1 &&
                        SSL_CTX_set_max_early_data(raw, 0) == 1;
      if (!made) fail<InternalError>("[net] TLS 1.3 cannot be set up: ", openssl_reason());
      // psk_dhe_ke is the only PSK mode unless SSL_OP_ALLOW_NO_DHE_KEX is set.
      SSL_CTX_set_options(raw, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION | SSL_OP_NO_RENEGOTIATION);
      SSL_CTX_set_session_cache_mode(raw, SSL_SESS_CACHE_OFF);
      SSL_CTX_set_mode(raw, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                SSL_MODE_RELEASE_BUFFERS);
      SSL_CTX_set_read_ahead(raw, 1);
      SSL_CTX_set_default_read_buffer_len(raw, 64U << 10);
      // A server that shows a certificate is trusted by nothing (a listener must not ask for one:
      // OpenSSL then wants sessions with a context of their own).
      if (side == TlsSession::Side::kDialler) SSL_CTX_set_verify(raw, SSL_VERIFY_PEER, nullptr);
      SSL_CTX_set_psk_use_session_callback(raw, use_session);
      SSL_CTX_set_psk_find_session_callback(raw, find_session);
      return context.release();
    };
    if (side == TlsSession::Side::kDialler) {
      static SSL_CTX* const dialler = make(TLS_client_method());
      return dialler;
    }
    static SSL_CTX* const listener = make(TLS_server_method());
    return listener;
  }
};

TlsSession::TlsSession(const ClusterKey& key, const wire::NodeId& self, Side side,
                       const Socket& socket, std::size_t handshake_limit)
    : key_(key),
      self_(self),
      side_(side),
      socket_(socket),
      handshake_limit_(handshake_limit),
      ssl_(SSL_new(TlsCallbacks::context(side)), SSL_free) {
  BIO* bio = BIO_new(TlsCallbacks::bio_method());
  if (!ssl_ || bio == nullptr) {
    BIO_free(bio);
    fail<InternalError>("[net] no TLS session could be made: ", openssl_reason());
  }
  BIO_set_data(bio, this);
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl_.get(), bio, bio);
  SSL_set_app_data(ssl_.get(), this);
  if (side == Side::kDialler) {
    dialler_ = self;
    key_epoch_ = 0;
    identity_ = key_.identity(0, self);
    SSL_set_connect_state(ssl_.get());
  } else {
    SSL_set_accept_state(ssl_.get());
  }
}

TlsSession::~TlsSession() = default;

// OpenSSL asks the calendar whether a session is too old. This one is made for one handshake, in
// which a calendar that jumps must not matter.
constexpr long kNever = 1L << 30;  // s

SSL_SESSION* TlsSession::make_session(SSL* ssl, Secret psk) const {
  SSL_SESSION* session = SSL_SESSION_new();
  const SSL_CIPHER* cipher = SSL_CIPHER_find(ssl, kSuiteId);
  const bool made = session != nullptr && cipher != nullptr &&
                    SSL_SESSION_set1_master_key(session, psk.data(), psk.size()) == 1 &&
                    SSL_SESSION_set_timeout(session, kNever) == 1 &&
                    SSL_SESSION_set_cipher(session, cipher) == 1 &&
                    SSL_SESSION_set_protocol_version(session, TLS1_3_VERSION) == 1;
  OPENSSL_cleanse(psk.data(), psk.size());
  if (made) return session;
  SSL_SESSION_free(session);
  return nullptr;
}

// Turns OpenSSL's answer into what to wait for. Ended: the peer closed, orderly or not.
TlsSession::Want TlsSession::what_next(int result, const char* what, bool& ended) {
  ended = false;
  switch (SSL_get_error(ssl_.get(), result)) {
    case SSL_ERROR_WANT_READ:
      return Want::kRead;
    case SSL_ERROR_WANT_WRITE:
      return Want::kWrite;
    case SSL_ERROR_ZERO_RETURN:
      ERR_clear_error();
      ended = true;
      return Want::kNothing;
    default:
      break;
  }
  const bool unexpected_end =
      ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING;
  const std::string_view meaning = established_ ? "" : meaning_of(ERR_peek_error());
  const std::string reason = openssl_reason();
  if (!refusal_.empty()) fail<NetError>(what, " refused: ", refusal_);
  if (socket_error_ != 0) fail<NetError>(what, ": ", std::strerror(socket_error_));
  if (unexpected_end || reason.empty()) {
    ended = true;
    return Want::kNothing;
  }
  if (!meaning.empty()) fail<NetError>(meaning, " (", what, ": ", reason, ")");
  fail<NetError>(what, ": ", reason);
}

TlsSession::Want TlsSession::handshake() {
  ERR_clear_error();
  const int result = SSL_do_handshake(ssl_.get());
  if (result != 1) {
    bool ended = false;
    const Want want = what_next(result, "TLS handshake", ended);
    if (ended) fail<NetError>("TLS handshake: the other side closed the connection");
    return want;
  }
  // "Resumed" is OpenSSL's word for a handshake that rests on a pre-shared key. Anything else would
  // rest on a certificate.
  if (SSL_session_reused(ssl_.get()) != 1 || SSL_version(ssl_.get()) != TLS1_3_VERSION ||
      key_epoch_ < 0) {
    fail<NetError>("TLS handshake: it did not use the cluster key");
  }
  established_ = true;
  return Want::kNothing;
}

TlsSession::Want TlsSession::read(std::uint8_t* out, std::size_t n_bytes, std::size_t& n_read) {
  ERR_clear_error();
  n_read = 0;
  const int result = SSL_read_ex(ssl_.get(), out, n_bytes, &n_read);
  if (result == 1) return Want::kNothing;
  bool ended = false;
  return what_next(result, "TLS read", ended);
}

TlsSession::Want TlsSession::write(const std::uint8_t* data, std::size_t n_bytes,
                                   std::size_t& n_written) {
  ERR_clear_error();
  n_written = 0;
  const int result = SSL_write_ex(ssl_.get(), data, n_bytes, &n_written);
  if (result == 1) {
    if (++records_sent_ >= records_per_key_) {
      if (SSL_key_update(ssl_.get(), SSL_KEY_UPDATE_NOT_REQUESTED) != 1) {
        fail<InternalError>("[net] TLS key update: ", openssl_reason());
      }
      records_sent_ = 0;
      ++key_updates_;
    }
    return Want::kNothing;
  }
  bool ended = false;
  const Want want = what_next(result, "TLS write", ended);
  if (ended) fail<NetError>("the other side closed the connection");
  return want;
}

void TlsSession::send_close() {
  if (established_) SSL_shutdown(ssl_.get());
  ERR_clear_error();
}

Secret TlsSession::exporter() const {
  Secret out{};
  if (SSL_export_keying_material(ssl_.get(), out.data(), out.size(), kExporterLabel,
                                 sizeof kExporterLabel - 1, nullptr, 0, 0) != 1) {
    fail<InternalError>("[net] TLS exporter: ", openssl_reason());
  }
  return out;
}

}  // namespace moesaic::net
