// The first frames of a connection: Hello from the dialler, Welcome from the listener, each naming
// node, versions and numerics; the listener proves that it has the cluster key and is who it says.
// Inside net only.
#pragma once

#include <string>

#include "net/asio.h"
#include "net/connection.h"
#include "net/stream.h"

namespace moesaic::net {

// TLS (when there is a key), then Hello and Welcome. What comes back says who the peer is. The
// caller sets a Deadline. Throws NetError, ProtocolError, wire::VersionError; the listener has told
// the dialler why in a GoAway before.
asio::awaitable<PeerInfo> shake_hands_as_dialler(Stream& stream, const LinkOptions& options,
                                                 std::string address);
asio::awaitable<PeerInfo> shake_hands_as_listener(Stream& stream, const LinkOptions& options,
                                                  std::string advertised, std::string address);

std::string to_text(const asio::ip::tcp::endpoint& endpoint);  // "1.2.3.4:5", "[::1]:5"

}  // namespace moesaic::net
