// A link's life: start, the three coroutines, the end. Sending is in link_send.cpp.
#include "net/link.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/crc32c.h"
#include "base/errors.h"
#include "net/handshake.h"
#include "wire/frame.h"

namespace moesaic::net {
namespace {

// A body is received in pieces that grow with what has arrived, so that a claimed length alone
// never costs more than this.
constexpr std::size_t kFirstPieceBytes = std::size_t{4} << 20;
// How often a reader that has been paused looks whether its user has let go of messages.
constexpr milliseconds kPausePoll{5};
// A peer that takes less than this in `stalled_after` is as good as one that takes nothing.
constexpr std::uint64_t kLeastProgressBytes = 4096;

}  // namespace

Link::Link(std::shared_ptr<NetThread::Impl> net, std::unique_ptr<Stream> stream, PeerInfo peer,
           const LinkOptions& options)
    : net_(std::move(net)),
      peer_(std::move(peer)),
      ping_every_(options.ping_every),
      dead_after_(options.dead_after),
      stalled_after_(options.stalled_after),
      send_deadline_(options.send_deadline),
      queue_limit_(options.queue_bytes),
      all_limit_(options.all_queues_bytes),
      stream_(std::move(stream)),
      writer_wake_(net_->io),
      reader_wake_(net_->io),
      watch_wake_(net_->io),
      held_(std::make_shared<std::atomic<std::size_t>>(0)) {}

Link::~Link() = default;

std::shared_ptr<Connection> Link::make(std::shared_ptr<NetThread::Impl> net,
                                       std::unique_ptr<Stream> stream, PeerInfo peer,
                                       const LinkOptions& options) {
  auto link = std::make_shared<Link>(net, std::move(stream), std::move(peer), options);
  if (!net->add(link)) fail<NetError>("[net] ", link->peer().address, ": this process is ending");
  Connection* const raw = link.get();
  return {raw, [link = std::move(link)](Connection*) mutable {
            if (!link->net_->process.is_current()) {  // a forked child: the link is the parent's
              new std::shared_ptr<Link>(std::move(link));
              return;
            }
            try {
              link->close();
            } catch (...) {
              // Out of memory for the goodbye: the peer will see the silence.
            }
            link.reset();
          }};
}

void Link::start(Handlers handlers) {
  {
    const std::lock_guard lock(mutex_);
    if (state_ == State::kNew) state_ = State::kOpen;
  }
  asio::post(net_->io, [self = shared_from_this(), handlers = std::move(handlers)]() mutable {
    self->handlers_ = std::move(handlers);
    if (self->is_over()) return self->finish();
    self->running_ = 3;
    const auto now = Clock::now();
    self->last_heard_ = now;
    self->last_taken_ = now;
    self->ping_sent_ = now - self->ping_every_;
    asio::co_spawn(self->net_->io, run_reader(self), asio::detached);
    asio::co_spawn(self->net_->io, run_writer(self), asio::detached);
    asio::co_spawn(self->net_->io, run_watch(self), asio::detached);
  });
}

// --- reader

asio::awaitable<void> Link::run_reader(std::shared_ptr<Link> self) {
  bool drain = false;
  try {
    co_await self->read_frames();
  } catch (const NetError&) {
    self->shut(self->with_peer(std::current_exception()));
  } catch (const std::exception& error) {
    // The peer, or a handler, has broken a rule: the peer is told before the end.
    drain = self->begin_closing(wire::Reason::kProtocol, error.what(),
                                self->with_peer(std::current_exception()), true);
    if (!drain) self->shut(nullptr);
  } catch (...) {
    self->shut(self->with_peer(std::current_exception()));
  }
  if (drain) {
    try {
      co_await self->stream_->drain();
    } catch (const Error&) {
      // The stream was closed under it, by the deadline of the goodbye.
    }
    self->shut(nullptr);
  }
  self->coroutine_ended();
}

asio::awaitable<void> Link::read_frames() {
  for (;;) {
    wire::HeaderBytes bytes{};
    co_await stream_->read(bytes);
    const wire::FrameHeader header = wire::decode_header(bytes, activation_limit_);
    if (header.sequence != receive_sequence_) {
      fail<ProtocolError>("frame ", header.sequence, " of ", wire::type_name(header.type),
                          " came where ", receive_sequence_, " was due");
    }
    ++receive_sequence_;
    while (*held_ > 0 && (*held_ + header.body_bytes > queue_limit_ ||
                          *net_->held + header.body_bytes > all_limit_)) {
      reading_paused_ = true;
      reader_wake_.expires_after(kPausePoll);
      asio::error_code ignored;
      co_await reader_wake_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
      if (!stream_->socket().is_open()) fail<NetError>("the connection is closed");
    }
    reading_paused_ = false;
    std::uint32_t crc = 0;
    const auto held = std::make_shared<HeldBytes>(held_, net_->held);
    std::vector<std::uint8_t> body = co_await read_body(header.body_bytes, crc, *held);
    wire::check_crc(bytes, crc);
    bool wanted = true;
    {
      const std::lock_guard lock(mutex_);
      const std::uint64_t epoch = epoch_;
      counters_.received[static_cast<std::size_t>(header.type)] +=
          wire::kHeaderBytes + header.body_bytes;
      if (epoch != 0 && header.epoch != epoch && wire::is_epoch_bound(header.type)) {
        ++counters_.dropped_frames;
        wanted = false;
      }
      wanted = wanted && state_ == State::kOpen;  // while closing, frames are read for the end only
    }
    if (wanted) dispatch(header, std::move(body), held);
  }
}

asio::awaitable<std::vector<std::uint8_t>> Link::read_body(std::uint32_t n_bytes,
                                                           std::uint32_t& crc, HeldBytes& held) {
  std::vector<std::uint8_t> body;
  std::size_t n_read = 0;
  while (n_read < n_bytes) {
    const std::size_t size = std::min<std::size_t>(n_bytes, std::max(kFirstPieceBytes, 2 * n_read));
    held.add(size - n_read);
    body.resize(size);
    co_await stream_->read(std::span(body).subspan(n_read));
    crc = crc32c(crc, body.data() + n_read, size - n_read);
    n_read = size;
  }
  co_return body;
}

void Link::dispatch(const wire::FrameHeader& header, std::vector<std::uint8_t> body,
                    const std::shared_ptr<HeldBytes>& held) {
  Incoming incoming;
  incoming.header = header;
  incoming.body = std::move(body);
  wire::Decoded decoded = wire::decode(header.type, incoming.body);
  incoming.message = std::move(decoded.message);
  incoming.payload = decoded.payload;
  if (const auto* ping = std::get_if<wire::Ping>(&incoming.message)) return answer(*ping);
  if (const auto* pong = std::get_if<wire::Pong>(&incoming.message)) return note(*pong);
  if (const auto* reason = std::get_if<wire::GoAway>(&incoming.message)) {
    fail<NetError>("it has closed the link",
                   reason->text.empty() ? std::string() : ": " + printable(reason->text));
  }
  if (header.type == wire::MessageType::kHello || header.type == wire::MessageType::kWelcome) {
    fail<ProtocolError>(wire::type_name(header.type), " came after the handshake");
  }
  held->add(wire::kHeaderBytes);
  incoming.held = held;
  if (handlers_.on_message) handlers_.on_message(std::move(incoming));
}

void Link::answer(const wire::Ping& ping) {
  wire::Pong pong;
  if (handlers_.progress) pong = handlers_.progress();
  pong.nonce = ping.nonce;
  send_unless_closed(pong);
}

template <typename M>
void Link::send_unless_closed(const M& message) {
  try {
    send(message);
  } catch (const Error&) {
    if (!closed()) throw;
  }
}

void Link::note(const wire::Pong& pong) {
  const std::lock_guard lock(mutex_);
  last_pong_ = pong;
  last_pong_.activity = printable(pong.activity);
  if (pong.nonce == ping_nonce_ && !ping_answered_) {
    ping_answered_ = true;
    round_trip_ = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - ping_sent_);
  }
}

// --- watch

asio::awaitable<void> Link::run_watch(std::shared_ptr<Link> self) {
  try {
    co_await self->watch();
  } catch (...) {
    self->shut(self->with_peer(std::current_exception()));
  }
  self->coroutine_ended();
}

asio::awaitable<void> Link::watch() {
  const milliseconds tick =
      std::clamp(std::min(ping_every_, dead_after_) / 4, milliseconds(1), milliseconds(250));
  Clock::time_point previous = Clock::now();
  for (;;) {
    Clock::time_point closing_deadline;
    bool is_closing = false;
    {
      const std::lock_guard lock(mutex_);
      if (state_ == State::kClosed) co_return;
      is_closing = state_ == State::kClosing;
      closing_deadline = closing_deadline_;
    }
    const Clock::time_point now = Clock::now();
    // When this thread itself has slept (SIGSTOP, a machine without a core to spare), the silence
    // was its own: what the peer sent may be waiting in the socket.
    const auto slept = now - previous;
    if (slept > 2 * tick) {
      last_heard_ += slept - tick;
      last_taken_ += slept - tick;
    }
    previous = now;
    if (is_closing && now >= closing_deadline) {
      shut(nullptr);
      co_return;
    }
    if (!is_closing) {
      check_silence(now);
      if (now - ping_sent_ >= ping_every_) ping();
    }
    watch_wake_.expires_after(tick);
    asio::error_code ignored;
    co_await watch_wake_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
}

void Link::ping() {
  ping_sent_ = Clock::now();
  ping_answered_ = false;
  send_unless_closed(wire::Ping{++ping_nonce_});
}

void Link::check_silence(Clock::time_point now) {
  const auto seconds = [](auto time) {
    return static_cast<double>(std::chrono::duration_cast<milliseconds>(time).count()) / 1000.0;
  };
  const std::uint64_t heard = stream_->bytes_received();
  if (heard != heard_bytes_ || reading_paused_) last_heard_ = now;
  heard_bytes_ = heard;
  if (now - last_heard_ > dead_after_) {
    fail<NetError>("not a byte for ", seconds(now - last_heard_),
                   " s (pings are sent twice a second): taken for dead");
  }
  // What the peer has acknowledged, not what this side's kernel has taken: its buffer of megabytes
  // opens in large steps, which a slow link needs longer for than a dead one is waited for.
  const std::uint64_t taken = stream_->bytes_acknowledged();
  if (taken >= taken_bytes_ + kLeastProgressBytes || !writing_) {
    if (writing_) {
      const std::lock_guard lock(mutex_);
      last_progress_ = now;
    }
    last_taken_ = now;
    taken_bytes_ = taken;
  }
  if (now - last_taken_ > stalled_after_) {
    fail<NetError>("it has taken nothing of what waits to be sent for ", seconds(now - last_taken_),
                   " s: taken for dead");
  }
}

// --- the end

bool Link::is_over() const {
  const std::lock_guard lock(mutex_);
  return state_ == State::kClosed;
}

void Link::shut(std::exception_ptr error) {
  {
    const std::lock_guard lock(mutex_);
    if (state_ == State::kClosed) return;
    if (state_ != State::kClosing) {
      failure_ = Failure(error);
      error_ = std::move(error);
    }
    state_ = State::kClosed;
    urgent_.clear();
    bulk_.clear();
    urgent_bytes_ = 0;
    queued_bytes_ = 0;
  }
  changed_.notify_all();
  stream_->close();
  writer_wake_.cancel();
  reader_wake_.cancel();
  watch_wake_.cancel();
  if (running_ == 0) finish();
}

void Link::coroutine_ended() {
  if (--running_ == 0) finish();
}

void Link::finish() {
  Handlers handlers = std::exchange(handlers_, {});
  std::exception_ptr error;
  {
    const std::lock_guard lock(mutex_);
    error = std::exchange(error_, nullptr);
  }
  try {
    if (handlers.on_closed) handlers.on_closed(error);
  } catch (...) {
    // Nobody is left to be told.
  }
  handlers = {};  // what they hold goes before anybody hears that it has
  {
    const std::lock_guard lock(mutex_);
    finished_ = true;
  }
  changed_.notify_all();
}

void Link::net_thread_ends() {
  try {
    go_away(wire::Reason::kShutdown, "the process ends");
  } catch (...) {
    shut(nullptr);
  }
}

std::exception_ptr Link::with_peer(std::exception_ptr error) const {
  const std::string where = strcat("[net] ", peer_.address, ": ");
  try {
    std::rethrow_exception(error);
  } catch (const Error& e) {
    if (std::string_view(e.what()).starts_with(where)) return error;
  } catch (...) {
    // Named below.
  }
  try {
    std::rethrow_exception(std::move(error));
  } catch (const NetError& e) {
    return std::make_exception_ptr(NetError(where + e.what()));
  } catch (const ProtocolError& e) {
    return std::make_exception_ptr(ProtocolError(where + e.what()));
  } catch (const DeadlineError& e) {
    return std::make_exception_ptr(DeadlineError(where + e.what()));
  } catch (const Error&) {
    return std::current_exception();  // a handler's own
  } catch (const std::exception& e) {
    return std::make_exception_ptr(InternalError(where + e.what()));
  } catch (...) {
    return std::make_exception_ptr(InternalError(where + "unknown error"));
  }
}

}  // namespace moesaic::net
