// Addresses as text, and text as addresses.
#include "net/address.h"

#include <charconv>
#include <future>
#include <memory>
#include <thread>
#include <utility>

#include "base/errors.h"

namespace moesaic::net {
namespace {

using Endpoints = std::vector<asio::ip::tcp::endpoint>;

[[noreturn]] void bad_address(const std::string& address) {
  fail<ArgumentError>("[net] address: got \"", address,
                      "\", need host:port (or [host]:port for IPv6)");
}

// On a thread of its own, because the system's resolver knows neither deadlines nor cancellation;
// nothing of ours is touched by it once the caller has gone.
Endpoints resolve_name(const std::string& host, std::uint16_t port, milliseconds deadline,
                       const CancelFlag* cancel) {
  auto promise = std::make_shared<std::promise<Endpoints>>();
  std::future<Endpoints> future = promise->get_future();
  std::thread([promise, host, port] {
    try {
      asio::io_context io;
      asio::ip::tcp::resolver resolver(io);
      Endpoints found;
      for (const auto& entry : resolver.resolve(host, std::to_string(port))) {
        found.push_back(entry.endpoint());
      }
      promise->set_value(std::move(found));
    } catch (...) {
      promise->set_exception(std::current_exception());
    }
  }).detach();
  const auto end = std::chrono::steady_clock::now() + deadline;
  constexpr milliseconds kSlice{20};
  while (future.wait_for(kSlice) != std::future_status::ready) {
    if (cancel != nullptr) cancel->check();
    if (std::chrono::steady_clock::now() < end) continue;
    fail<DeadlineError>("[net] ", host, ": no answer from the name service within ",
                        deadline.count(), " ms");
  }
  try {
    return future.get();
  } catch (const std::exception& error) {
    fail<NetError>("[net] ", host, ": no such name: ", error.what());
  }
}

}  // namespace

std::pair<std::string, std::uint16_t> split_address(const std::string& address) {
  std::size_t colon = address.rfind(':');
  if (colon == std::string::npos) bad_address(address);
  std::string host = address.substr(0, colon);
  const std::string port_text = address.substr(colon + 1);
  if (host.size() >= 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string::npos) {
    bad_address(address);
  }
  std::uint16_t port = 0;
  const char* end = port_text.data() + port_text.size();
  const auto [at, error] = std::from_chars(port_text.data(), end, port);
  if (host.empty() || port_text.empty() || error != std::errc() || at != end) bad_address(address);
  return {std::move(host), port};
}

Endpoints resolve(const std::string& address, milliseconds deadline, const CancelFlag* cancel) {
  const auto [host, port] = split_address(address);
  asio::error_code not_a_number;
  const asio::ip::address numeric = asio::ip::make_address(host, not_a_number);
  if (!not_a_number) return {{numeric, port}};
  return resolve_name(host, port, deadline, cancel);
}

bool is_loopback(const asio::ip::address& address) {
  if (address.is_v6() && address.to_v6().is_v4_mapped()) {
    return asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6()).is_loopback();
  }
  return address.is_loopback();
}

}  // namespace moesaic::net
