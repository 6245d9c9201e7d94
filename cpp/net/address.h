// Names and numbers of peers. Inside net only.
#pragma once

#include <string>
#include <vector>

#include "net/asio.h"
#include "net/connection.h"

namespace moesaic::net {

// "host:port" -> what the system knows under that name. Throws ArgumentError, NetError,
// DeadlineError, CancelledError.
std::vector<asio::ip::tcp::endpoint> resolve(const std::string& address, milliseconds deadline,
                                             const CancelFlag* cancel = nullptr);

bool is_loopback(const asio::ip::address& address);  // also ::ffff:127.0.0.1

}  // namespace moesaic::net
