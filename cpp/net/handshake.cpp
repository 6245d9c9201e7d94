// Hello and Welcome.
#include "net/handshake.h"

#include <algorithm>
#include <array>
#include <utility>

#include "base/crc32c.h"
#include "base/errors.h"
#include "wire/frame.h"

namespace moesaic::net {
namespace {

class OwnIdError : public ProtocolError {
 public:
  using ProtocolError::ProtocolError;
};

template <typename M>
asio::awaitable<void> send_frame(Stream& stream, const M& message) {
  const std::vector<std::uint8_t> body = wire::encode(message);
  wire::FrameHeader header;
  header.type = M::kType;
  header.body_bytes = static_cast<std::uint32_t>(body.size());
  const wire::HeaderBytes bytes = wire::encode_header(header, crc32c(0, body.data(), body.size()));
  std::vector<std::uint8_t> frame(bytes.begin(), bytes.end());
  frame.insert(frame.end(), body.begin(), body.end());
  co_await stream.write(frame);
}

// The peer's first frame. Bodies of the handshake are at most 16 KiB (wire::body_limit); others
// are refused before they are read.
asio::awaitable<wire::Message> read_first_frame(Stream& stream, wire::MessageType expected) {
  wire::HeaderBytes bytes{};
  co_await stream.read(bytes);
  const wire::FrameHeader header = wire::decode_header(bytes, 0);
  if ((header.type != expected && header.type != wire::MessageType::kGoAway) ||
      header.body_bytes > wire::body_limit(wire::MessageType::kHello, 0)) {
    fail<ProtocolError>("its first frame is ", wire::type_name(header.type), " of ",
                        header.body_bytes, " bytes, need ", wire::type_name(expected));
  }
  if (header.sequence != 0) fail<ProtocolError>("its first frame has number ", header.sequence);
  std::vector<std::uint8_t> body(header.body_bytes);
  co_await stream.read(body);
  wire::check_crc(bytes, crc32c(0, body.data(), body.size()));
  co_return std::move(wire::decode(header.type, body).message);
}

std::string versions(std::uint8_t major, std::uint8_t minor, const std::string& release) {
  return strcat("Moesaic ", printable(release), " (protocol ", int{major}, ".", int{minor}, ")");
}

void check_version(std::uint8_t major, std::uint8_t minor, const std::string& release,
                   const LinkOptions& options) {
  if (major == wire::kVersionMajor && minor >= wire::kOldestMinor) return;
  fail<wire::VersionError>("it runs ", versions(major, minor, release), ", this side ",
                           versions(wire::kVersionMajor, wire::kVersionMinor, options.release),
                           ", which speaks ", int{wire::kVersionMajor}, ".",
                           int{wire::kOldestMinor}, " to ", int{wire::kVersionMajor}, ".",
                           int{wire::kVersionMinor}, ": install the newer one on both");
}

[[noreturn]] void refused_by_peer(const wire::GoAway& reason) {
  const std::string text = strcat("it refuses: ", printable(reason.text));
  if (reason.reason == wire::Reason::kVersion) throw wire::VersionError(text);
  if (reason.reason == wire::Reason::kBusy || reason.reason == wire::Reason::kShutdown) {
    throw NetError(text);
  }
  throw ProtocolError(text);
}

// What the listener says before it closes; the dialler may be long gone. Closing with bytes unread
// would reset the connection and lose the words, so the rest is read for a moment.
asio::awaitable<void> try_to_say(Stream& stream, wire::GoAway reason) {
  try {
    co_await send_frame(stream, reason);
    stream.finish_sending();
    const Deadline a_moment(stream, std::chrono::steady_clock::now() + milliseconds(250));
    co_await stream.drain();
  } catch (const Error&) {
    co_return;  // the reason that is being told matters more
  }
}

// Waits for the dialler's frame and checks it; throws what goes to the dialler as GoAway too.
asio::awaitable<wire::Hello> receive_hello(Stream& stream, const LinkOptions& options) {
  const wire::Message message = co_await read_first_frame(stream, wire::MessageType::kHello);
  const auto* hello = std::get_if<wire::Hello>(&message);
  if (hello == nullptr) fail<ProtocolError>("it goes away before it has said who it is");
  check_version(hello->version_major, hello->version_minor, hello->release, options);
  if (hello->node == options.self) {
    fail<OwnIdError>("it uses this node's own id: a reflection, or a node that dials itself");
  }
  if (stream.tls() != nullptr && hello->node != stream.tls()->dialler()) {
    fail<ProtocolError>("it says it is ", to_hex(hello->node), ", its key was derived for ",
                        to_hex(stream.tls()->dialler()));
  }
  co_return *hello;
}

}  // namespace

asio::awaitable<PeerInfo> shake_hands_as_dialler(Stream& stream, const LinkOptions& options,
                                                 std::string address) {
  if (options.key) {
    co_await stream.tls_handshake(*options.key, options.self, TlsSession::Side::kDialler);
  }
  wire::Hello hello;
  hello.role = options.role;
  hello.node = options.self;
  hello.release = options.release;
  hello.numerics = options.numerics;
  co_await send_frame(stream, hello);
  const wire::Message message = co_await read_first_frame(stream, wire::MessageType::kWelcome);
  if (const auto* reason = std::get_if<wire::GoAway>(&message)) refused_by_peer(*reason);
  const auto* welcome = std::get_if<wire::Welcome>(&message);
  if (welcome == nullptr) fail<InternalError>("[net] a first frame of another type came through");
  check_version(welcome->version_major, welcome->version_minor, welcome->release, options);
  if (welcome->node == options.self) {
    fail<OwnIdError>("it uses this node's own id: a reflection, or a node that dials itself");
  }
  if (options.key) {
    const TlsSession& tls = *stream.tls();
    const wire::Digest proof =
        options.key->proof(tls.key_epoch(), options.self, welcome->node, tls.exporter());
    if (!equal_constant_time(proof, welcome->proof)) {
      fail<ProtocolError>("it cannot prove that it is ", to_hex(welcome->node));
    }
  }
  PeerInfo peer;
  peer.address = std::move(address);
  peer.node = welcome->node;
  peer.role = wire::Role::kWorker;
  peer.release = printable(welcome->release);
  peer.numerics = welcome->numerics;
  peer.advertised = printable(welcome->address);
  peer.version_minor = std::min(welcome->version_minor, wire::kVersionMinor);
  peer.encrypted = options.key.has_value();
  co_return peer;
}

asio::awaitable<PeerInfo> shake_hands_as_listener(Stream& stream, const LinkOptions& options,
                                                  std::string advertised, std::string address) {
  if (options.key) {
    co_await stream.tls_handshake(*options.key, options.self, TlsSession::Side::kListener);
  }
  wire::Hello hello;
  std::exception_ptr problem;
  wire::GoAway reason{wire::Reason::kProtocol, ""};
  try {
    hello = co_await receive_hello(stream, options);
  } catch (const wire::VersionError& error) {
    problem = std::current_exception();
    reason = {wire::Reason::kVersion, error.what()};
  } catch (const OwnIdError& error) {
    problem = std::current_exception();
    reason = {wire::Reason::kOwnId, error.what()};
  } catch (const ProtocolError& error) {
    problem = std::current_exception();
    reason.text = error.what();
  }
  if (problem) {  // a handler may not co_await
    co_await try_to_say(stream, reason);
    std::rethrow_exception(problem);
  }
  wire::Welcome welcome;
  welcome.node = options.self;
  welcome.release = options.release;
  welcome.numerics = options.numerics;
  welcome.address = std::move(advertised);
  if (options.key) {
    const TlsSession& tls = *stream.tls();
    welcome.proof = options.key->proof(tls.key_epoch(), hello.node, options.self, tls.exporter());
  }
  co_await send_frame(stream, welcome);
  PeerInfo peer;
  peer.address = std::move(address);
  peer.node = hello.node;
  peer.role = hello.role;
  peer.release = printable(hello.release);
  peer.numerics = hello.numerics;
  peer.version_minor = std::min(hello.version_minor, wire::kVersionMinor);
  peer.encrypted = options.key.has_value();
  co_return peer;
}

std::string printable(const std::string& text) {
  constexpr std::size_t kMost = 300;
  std::string shown = text.substr(0, kMost);
  for (char& c : shown) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte > 0x7E) c = '?';
  }
  return shown;
}

std::string to_text(const asio::ip::tcp::endpoint& endpoint) {
  const std::string host = endpoint.address().to_string();
  return endpoint.address().is_v6() ? strcat("[", host, "]:", endpoint.port())
                                    : strcat(host, ":", endpoint.port());
}

}  // namespace moesaic::net
