// The listening side: accept, shake hands with a deadline, hand over. Strangers get 16 KiB and
// 5 s; when there are too many of them, the source with the most gives up its oldest.
#include <fcntl.h>

#include <algorithm>
#include <array>
#include <list>
#include <map>
#include <utility>

#include "base/errors.h"
#include "net/address.h"
#include "net/handshake.h"
#include "net/link.h"

namespace moesaic::net {
namespace {

using Clock = std::chrono::steady_clock;
using Tcp = asio::ip::tcp;

Source source_of(const asio::ip::address& address) {
  Source source{};
  if (address.is_v6() && !address.to_v6().is_v4_mapped()) {
    const auto bytes = address.to_v6().to_bytes();
    std::copy_n(bytes.begin(), source.size(), source.begin());
    return source;
  }
  const auto v4 = address.is_v6() ? asio::ip::make_address_v4(asio::ip::v4_mapped, address.to_v6())
                                  : address.to_v4();
  const auto bytes = v4.to_bytes();
  std::copy(bytes.begin(), bytes.end(), source.begin() + 4);  // no global IPv6 prefix begins with 0
  return source;
}

struct HalfOpen {
  Stream* stream = nullptr;
  Source source{};
};

class Acceptor : public Closable, public std::enable_shared_from_this<Acceptor> {
 public:
  Acceptor(std::shared_ptr<NetThread::Impl> net, const LinkOptions& options,
           Listener::Handlers handlers)
      : net_(std::move(net)),
        options_(options),
        handlers_(std::move(handlers)),
        acceptor_(net_->io),
        pause_(net_->io) {}

  // Returns the address with its real port. Throws NetError.
  std::string open(const std::string& address, const Tcp::endpoint& endpoint) {
    asio::error_code error;
    acceptor_.open(endpoint.protocol(), error);
    if (!error) acceptor_.set_option(Tcp::acceptor::reuse_address(true), error);
    if (!error) acceptor_.bind(endpoint, error);
    if (!error) acceptor_.listen(Tcp::acceptor::max_listen_connections, error);
    if (!error) acceptor_.non_blocking(true, error);
    if (error) fail<NetError>("[net] ", address, ": cannot be listened on: ", error.message());
    (void)fcntl(acceptor_.native_handle(), F_SETFD, FD_CLOEXEC);
    address_ = to_text(acceptor_.local_endpoint(error));
    if (options_.advertise.empty()) options_.advertise = address_;
    return address_;
  }

  // False: the net thread is ending.
  bool start() {
    bool started = false;
    net_->run_and_wait([&] {
      started = net_->add(shared_from_this());
      if (started) asio::co_spawn(net_->io, run_accept(shared_from_this()), asio::detached);
    });
    return started;
  }

  void close() {
    net_->run_and_wait([this] { net_thread_ends(); });
  }

  void net_thread_ends() override {
    if (std::exchange(closed_, true)) return;
    asio::error_code ignored;
    acceptor_.close(ignored);
    pause_.cancel();
    for (const HalfOpen& each : half_open_) each.stream->close();
    // A handler that closes its own listener is still running: what it is made of goes later.
    asio::post(net_->io, [handlers = std::exchange(handlers_, {})] {});
  }

 private:
  static asio::awaitable<void> run_accept(std::shared_ptr<Acceptor> self) {
    try {
      co_await self->accept();
    } catch (const std::exception& error) {
      self->refuse(strcat("[net] ", self->address_, ": stops listening: ", error.what()));
    }
  }

  asio::awaitable<void> accept() {
    while (!closed_) {
      Tcp::socket socket(net_->io);
      asio::error_code error;
      co_await acceptor_.async_accept(socket, asio::redirect_error(asio::use_awaitable, error));
      if (closed_) co_return;
      if (error) {
        // No descriptors left, or a connection that went away in the queue: not the end of us.
        refuse(strcat("[net] ", address_, ": accept: ", error.message()));
        pause_.expires_after(milliseconds(50));
        co_await pause_.async_wait(asio::redirect_error(asio::use_awaitable, error));
        continue;
      }
      if (half_open_.size() >= std::max<std::size_t>(1, options_.max_half_open)) make_room();
      asio::co_spawn(net_->io, run_greet(shared_from_this(), std::move(socket)), asio::detached);
    }
  }

  static asio::awaitable<void> run_greet(std::shared_ptr<Acceptor> self, Tcp::socket socket) {
    asio::error_code error;
    const Tcp::endpoint remote = socket.remote_endpoint(error);
    const std::string from = error ? "(gone)" : to_text(remote);
    auto stream = std::make_unique<Stream>(std::move(socket));
    Stream* const key = stream.get();
    self->half_open_.push_back({key, source_of(remote.address())});
    try {
      if (!self->options_.key && !self->options_.plain_beyond_loopback &&
          !is_loopback(remote.address())) {
        fail<NetError>("not from this machine, and there is no cluster key");
      }
      co_await self->greet(stream, from, source_of(remote.address()));
    } catch (const std::exception& e) {
      self->refuse(strcat("[net] ", from, ": ", e.what()));
    } catch (...) {
      self->refuse(strcat("[net] ", from, ": unknown error"));
    }
    self->forget(key);
  }

  // stream: taken when the peer has authenticated.
  asio::awaitable<void> greet(std::unique_ptr<Stream>& stream, const std::string& from,
                              const Source& source) {
    stream->prepare(options_.stalled_after);
    PeerInfo peer;
    {
      const Deadline deadline(*stream, Clock::now() + options_.handshake_deadline);
      try {
        peer = co_await shake_hands_as_listener(*stream, options_, options_.advertise, from);
      } catch (const NetError& error) {
        if (!deadline.passed()) throw;
        fail<NetError>("has not finished its handshake within ",
                       options_.handshake_deadline.count(), " ms");
      }
    }
    peer.source = source;
    forget(stream.get());
    if (closed_) co_return;
    const std::shared_ptr<Connection> link =
        Link::make(net_, std::move(stream), std::move(peer), options_);
    if (handlers_.accepted) handlers_.accepted(link);
  }

  // A source that fills the table with connections that go nowhere displaces its own, not those of
  // others.
  void make_room() {
    std::map<Source, std::size_t> n_of;
    for (const HalfOpen& each : half_open_) ++n_of[each.source];
    const auto most = std::max_element(
        n_of.begin(), n_of.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
    const auto oldest =
        std::find_if(half_open_.begin(), half_open_.end(),
                     [&](const HalfOpen& each) { return each.source == most->first; });
    oldest->stream->close();
    half_open_.erase(oldest);
  }

  void forget(const Stream* stream) {
    half_open_.remove_if([stream](const HalfOpen& each) { return each.stream == stream; });
  }

  void refuse(const std::string& why) {
    // The log must not be a stranger's to fill.
    constexpr int kLinesPerSecond = 10;
    const Clock::time_point now = Clock::now();
    if (now - second_began_ >= std::chrono::seconds(1)) {
      second_began_ = now;
      lines_ = 0;
    }
    if (closed_ || ++lines_ > kLinesPerSecond || !handlers_.refused) return;
    try {
      handlers_.refused(why);
    } catch (...) {
      // A log that fails is no reason to stop listening.
    }
  }

  const std::shared_ptr<NetThread::Impl> net_;
  LinkOptions options_;
  Listener::Handlers handlers_;
  Tcp::acceptor acceptor_;
  asio::steady_timer pause_;
  std::string address_;
  std::list<HalfOpen> half_open_;  // oldest first; each stream belongs to a run_greet
  Clock::time_point second_began_;
  int lines_ = 0;
  bool closed_ = false;
};

class ListenerHandle : public Listener {
 public:
  ListenerHandle(std::shared_ptr<Acceptor> acceptor, std::string address)
      : acceptor_(std::move(acceptor)), address_(std::move(address)) {}
  ~ListenerHandle() override { acceptor_->close(); }
  const std::string& address() const override { return address_; }
  void close() override { acceptor_->close(); }

 private:
  const std::shared_ptr<Acceptor> acceptor_;
  const std::string address_;
};

}  // namespace

std::unique_ptr<Listener> listen(NetThread& net, const LinkOptions& options,
                                 const std::string& address, Listener::Handlers handlers) {
  const std::vector<Tcp::endpoint> endpoints = resolve(address, milliseconds(5000));
  if (endpoints.empty()) fail<NetError>("[net] ", address, ": no such name");
  const Tcp::endpoint& endpoint = endpoints.front();
  if (!options.key && !options.plain_beyond_loopback && !is_loopback(endpoint.address())) {
    fail<ArgumentError>("[net] ", address, ": without a cluster key only loopback is listened on: ",
                        "make a key with `moesaic keygen FILE`");
  }
  auto acceptor = std::make_shared<Acceptor>(net.impl(), options, std::move(handlers));
  std::string real_address = acceptor->open(address, endpoint);
  if (!acceptor->start()) fail<NetError>("[net] ", address, ": this process is ending");
  return std::make_unique<ListenerHandle>(std::move(acceptor), std::move(real_address));
}

}  // namespace moesaic::net
