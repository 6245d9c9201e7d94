// The dialling side: resolve, connect, shake hands, within one deadline and until cancelled.
#include <future>
#include <utility>

#include "base/errors.h"
#include "net/address.h"
#include "net/failure.h"
#include "net/handshake.h"
#include "net/link.h"

namespace moesaic::net {
namespace {

using Clock = std::chrono::steady_clock;
using Endpoints = std::vector<asio::ip::tcp::endpoint>;

struct Outcome {  // one of both
  std::shared_ptr<Connection> link;
  Failure failure;
};

// One call of dial(): lives on the net thread until its promise is kept.
class Dialling : public Closable, public std::enable_shared_from_this<Dialling> {
 public:
  Dialling(std::shared_ptr<NetThread::Impl> net, const LinkOptions& options, std::string address,
           Endpoints endpoints, Clock::time_point deadline)
      : net_(std::move(net)),
        options_(options),
        address_(std::move(address)),
        endpoints_(std::move(endpoints)),
        deadline_(deadline) {}

  std::future<Outcome> future() { return promise_.get_future(); }

  void start() {
    asio::post(net_->io, [self = shared_from_this()] {
      if (!self->net_->add(self)) {
        const NetError ending(strcat("[net] ", self->address_, ": this process is ending"));
        self->promise_.set_value({nullptr, Failure(std::make_exception_ptr(ending))});
        return;
      }
      asio::co_spawn(self->net_->io, run(self), asio::detached);
    });
  }

  void give_up() {
    asio::post(net_->io, [self = shared_from_this()] { self->net_thread_ends(); });
  }

  void net_thread_ends() override {
    given_up_ = true;
    if (stream_) stream_->close();
  }

 private:
  static asio::awaitable<void> run(std::shared_ptr<Dialling> self) {
    Outcome outcome;
    try {
      outcome.link = co_await self->connect();
    } catch (...) {
      outcome.failure = Failure(std::current_exception());
      self->stream_.reset();  // here, not in whichever thread lets go of us last
    }
    self->promise_.set_value(std::move(outcome));
  }

  asio::awaitable<std::shared_ptr<Connection>> connect() {
    std::string problem = "no address";
    for (std::size_t i = 0; i < endpoints_.size() && !given_up_; ++i) {
      // Names may have several addresses: those that do not answer at all must leave time for the
      // others.
      const auto left = deadline_ - Clock::now();
      const auto share = left / static_cast<int>(endpoints_.size() - i);
      stream_ = std::make_unique<Stream>(asio::ip::tcp::socket(net_->io));
      const Deadline all(*stream_, deadline_);
      asio::error_code error;
      bool timed_out = false;
      {
        const Deadline connecting(*stream_, Clock::now() + share);
        co_await stream_->socket().async_connect(endpoints_[i],
                                                 asio::redirect_error(asio::use_awaitable, error));
        timed_out = connecting.passed();
      }
      if (!error && stream_->socket().is_open()) co_return co_await shake_hands(all);
      problem = timed_out ? "no answer" : error.message();
    }
    if (given_up_ || Clock::now() < deadline_) {
      fail<NetError>("[net] ", address_, ": cannot be reached: ", problem,
                     ": is a worker listening there?");
    }
    fail<DeadlineError>("[net] ", address_, ": cannot be reached in time: ", problem);
  }

  asio::awaitable<std::shared_ptr<Connection>> shake_hands(const Deadline& deadline) {
    const std::string where = strcat("[net] ", address_, ": ");
    // Of a connection that ends without a word.
    const char* const hint = options_.key
                                 ? "; is it still running, and does it have a cluster key at all?"
                                 : "; does it want a cluster key (this side has none)?";
    try {
      stream_->prepare(options_.stalled_after);
      PeerInfo peer = co_await shake_hands_as_dialler(*stream_, options_, address_);
      co_return Link::make(net_, std::move(stream_), std::move(peer), options_);
    } catch (const wire::VersionError& error) {
      throw wire::VersionError(where + error.what());
    } catch (const ProtocolError& error) {
      throw ProtocolError(where + error.what());
    } catch (const NetError& error) {
      if (deadline.passed()) {
        fail<DeadlineError>(where, "it has answered the connection but not the handshake in time",
                            hint);
      }
      const std::string text = error.what();
      throw NetError(where + text + (text.find("cluster key") == std::string::npos ? hint : ""));
    }
  }

  const std::shared_ptr<NetThread::Impl> net_;
  const LinkOptions options_;
  const std::string address_;
  const Endpoints endpoints_;
  const Clock::time_point deadline_;
  std::promise<Outcome> promise_;
  std::unique_ptr<Stream> stream_;
  bool given_up_ = false;
};

}  // namespace

std::shared_ptr<Connection> dial(NetThread& net, const LinkOptions& options,
                                 const std::string& address, milliseconds deadline,
                                 const CancelFlag* cancel) {
  if (net.impl()->is_current()) {
    fail<InternalError>("[net] dial waits, and must not on the net thread");
  }
  if (cancel != nullptr) cancel->check();
  const Clock::time_point end = Clock::now() + deadline;
  Endpoints endpoints = resolve(address, deadline, cancel);
  if (!options.key && !options.plain_beyond_loopback) {
    for (const auto& endpoint : endpoints) {
      if (is_loopback(endpoint.address())) continue;
      fail<ArgumentError>("[net] ", address, ": without a cluster key only this machine may be ",
                          "dialled: make one with `moesaic keygen FILE` and give it to all");
    }
  }
  const auto dialling =
      std::make_shared<Dialling>(net.impl(), options, address, std::move(endpoints), end);
  std::future<Outcome> future = dialling->future();
  dialling->start();
  constexpr milliseconds kSlice{20};
  constexpr milliseconds kGrace{2000};  // for a net thread that is late itself
  while (future.wait_for(kSlice) != std::future_status::ready) {
    const bool cancelled = cancel != nullptr && cancel->is_set();
    if (!cancelled && Clock::now() < end + kGrace) continue;
    dialling->give_up();
    if (cancelled) cancel->check();
    fail<DeadlineError>("[net] ", address, ": no answer within ", deadline.count(), " ms");
  }
  Outcome outcome = future.get();
  if (outcome.failure) outcome.failure.raise();
  return std::move(outcome.link);
}

}  // namespace moesaic::net
