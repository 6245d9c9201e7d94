// One authenticated link to one peer: frames go out from any thread, messages come in on the net
// thread. A link owns its handshake's result, the send queue, liveness (a ping every half second,
// dead after three of silence), the order, checksum and epoch of frames, and the byte counters.
// After any error it is closed and stays so: whoever holds it dials again. Not for what messages
// mean.
//
// Use:  NetThread net;                                     // one per process, outlives its links
//       LinkOptions options;
//       options.key = ClusterKey::read("cluster.key");
//       auto link = dial(net, options, "10.0.0.2:9777");   // throws NetError, DeadlineError, ...
//       link->start({.on_message = [](Incoming&& in) { ... },           // on the net thread:
//                    .on_closed = [](std::exception_ptr why) { ... }});  // short, never waiting
//       link->send(wire::StatusRequest{.request = 1});     // any thread; waits while the queue is
//       full link.reset();                                      // the last handle gone closes the
//       link
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/cancel.h"
#include "net/key.h"
#include "wire/messages.h"

namespace moesaic::net {

using std::chrono::milliseconds;

// Runs every socket of a process: one thread at a time, its own or that of a NetSeat. Its own
// computes nothing, so that pings are answered while others compute. Its end closes every link and
// listener (their on_closed runs first) and joins; it must not be ended from one of its own
// callbacks, nor while it has seats. Links may outlive it, closed.
//
// "On the net thread" means: on the thread that serves at that moment.
class NetThread {
 public:
  NetThread();
  ~NetThread();
  NetThread(const NetThread&) = delete;
  NetThread& operator=(const NetThread&) = delete;

  struct Impl;
  const std::shared_ptr<Impl>& impl() const { return impl_; }

 private:
  std::shared_ptr<Impl> impl_;
};

// For a thread that computes what comes over links and passes it on. Having nothing to do, it
// serves the sockets itself: what comes wakes one thread on its way, not two, and what is to be
// sent wakes none. To wake a core that sleeps takes some 100 us, most of what a hop of a small row
// costs; so while waits are short (below 20 ms) it waits awake, yielding to whoever has work. Used
// by one thread; the newest to ask has the seat.
class NetSeat {
 public:
  explicit NetSeat(NetThread& net);
  ~NetSeat();
  NetSeat(const NetSeat&) = delete;
  NetSeat& operator=(const NetSeat&) = delete;

  // Serves until ready(), which is asked first and after each event; kick() when it has come true
  // elsewhere. False: another seat is served from, or the net ends: wait in another way. After it
  // the net's own thread stays out of the way for some 20 ms: for less than that nobody may serve.
  bool serve(const std::function<bool()>& ready);
  // What comes next takes long: the net's own thread serves from now on.
  void leave();
  // Sends what has been queued, without waiting; nothing when another thread serves, and does it.
  void flush();
  void kick();  // any thread

 private:
  const std::shared_ptr<NetThread::Impl> net_;
};

struct LinkOptions {
  std::optional<ClusterKey> key;         // none: plain TCP, loopback only
  bool plain_beyond_loopback = false;    // the literal long flag; shown everywhere
  wire::NodeId self = random_node_id();  // one per process: a node refuses links from itself
  wire::Role role = wire::Role::kCoordinator;
  std::string release;
  wire::Digest numerics{};
  std::string advertise;  // listener: how it wants to be dialled; empty: the address it listens on

  milliseconds handshake_deadline{5000};  // listener: from accept to Hello checked
  // Twice a second: a peer that stands still for two seconds is then never silent for three.
  milliseconds ping_every{500};
  milliseconds dead_after{3000};      // of silence
  milliseconds stalled_after{5000};   // no byte taken by the peer while some wait to be sent
  milliseconds send_deadline{10000};  // a send that waits for room in the queue
  std::size_t queue_bytes = std::size_t{64} << 20;  // each way: queued to send; received and held
  // Received and held by all links of a NetThread together. Beyond it a link that holds something
  // reads no more; one that holds nothing may still take a frame, or work that waits for it would
  // wait for ever.
  std::size_t all_queues_bytes = std::size_t{512} << 20;
  std::size_t max_half_open = 64;  // listener: the oldest gives way to a newcomer
};

// Where a connection comes from, as far as one machine cannot choose: an IPv4 address, or the first
// 64 bits of an IPv6 address.
using Source = std::array<std::uint8_t, 8>;

// What a peer said of itself. Text from the wire has its control characters replaced.
struct PeerInfo {
  std::string address;  // "host:port" as it was dialled, or the socket's address
  wire::NodeId node{};
  wire::Role role = wire::Role::kWorker;
  std::string release;
  wire::Digest numerics{};
  std::string advertised;          // listeners only
  Source source{};                 // of one that has dialled this side
  std::uint8_t version_minor = 0;  // the lower of both sides: what may be spoken
  bool encrypted = false;
};

// A message and what it owns. While it lives, its body counts against the link's queue_bytes: when
// that many are held, the link stops reading until some are let go (and a peer that is not read for
// 5 s takes the link for dead: limit what is under way, this is the last resort).
struct Incoming {
  Incoming() = default;
  Incoming(Incoming&&) = default;
  Incoming& operator=(Incoming&&) = default;
  wire::FrameHeader header;
  wire::Message message;
  std::vector<std::uint8_t> body;         // owns what payload looks at
  std::span<const std::uint8_t> payload;  // (bytes after the fields), not aligned: memcpy from it
  std::shared_ptr<void> held;
};

struct Counters {  // bytes of frames, headers included, by message type
  std::array<std::uint64_t, 32> sent{};
  std::array<std::uint64_t, 32> received{};
  std::uint64_t dropped_frames = 0;  // of another epoch
};

class Connection {
 public:
  // All run on the net thread, one at a time; exceptions they throw close the link with that error.
  struct Handlers {
    std::function<void(Incoming&&)> on_message{};  // Ping, Pong and GoAway never get here
    // Once, the last call of all; null after close() on this side, else an Error that names the
    // peer.
    std::function<void(std::exception_ptr)> on_closed{};
    std::function<wire::Pong()> progress{};  // what a ping is answered with; may be empty
  };
  virtual ~Connection() = default;
  virtual const PeerInfo& peer() const = 0;
  // Begins to read, to ping and to watch; frames that came before wait in the socket. Once.
  virtual void start(Handlers handlers) = 0;
  // Bodies of Run, Result, Capture, KvRows may have a payload of this many bytes from now on
  // (wire::body_limit); 0 at first: none of them are accepted. Call it before the peer is told to
  // send any.
  virtual void set_activation_limit(std::uint32_t n_bytes) = 0;
  // Frames that belong to a deployment (wire::is_epoch_bound) and carry another epoch are dropped
  // on arrival; 0, as at first: every epoch passes.
  virtual void set_epoch(std::uint64_t epoch) = 0;
  // Queues a frame, in order; Cancel, Ping and Pong overtake the others. Waits up to send_deadline
  // while the queue is full (a frame larger than the queue waits for an empty one). Throws NetError
  // or what closed the link, DeadlineError; ArgumentError for a body above its type's limit (for
  // activations only the peer knows it: a body above that closes the link there). On the net thread
  // it never waits: there a full queue closes the link.
  virtual void send_frame(wire::MessageType type, std::vector<std::uint8_t> fields,
                          std::vector<std::uint8_t> payload, std::uint64_t epoch) = 0;
  template <typename M>
  void send(const M& message, std::vector<std::uint8_t> payload = {}, std::uint64_t epoch = 0) {
    send_frame(wire::message_type<M>(), wire::encode(message), std::move(payload), epoch);
  }
  // Sends what is queued, then GoAway with this reason, for at most a second; later sends throw.
  // Returns at once, may be called twice. Never waits for handlers: see wait_closed.
  void close() { go_away(wire::Reason::kShutdown, ""); }
  virtual void go_away(wire::Reason reason, const std::string& text) = 0;
  // True when the link is closed and no handler runs any more; not on the net thread.
  virtual bool wait_closed(milliseconds deadline) = 0;
  virtual bool closed() const = 0;  // by either side; sends throw
  virtual Counters counters() const = 0;
  virtual std::size_t queued_bytes() const = 0;
  virtual std::chrono::microseconds round_trip() const = 0;  // of the last ping; 0: none yet
  virtual wire::Pong last_pong() const = 0;
};

// Resolves, connects and shakes hands, all within `deadline`. Throws NetError (cannot be reached,
// or refuses: another key, a plain peer), ProtocolError (another version, its own id, no proof),
// DeadlineError, CancelledError, ArgumentError (no key and not loopback). Not on the net thread.
std::shared_ptr<Connection> dial(NetThread& net, const LinkOptions& options,
                                 const std::string& address,
                                 milliseconds deadline = milliseconds(5000),
                                 const CancelFlag* cancel = nullptr);

class Listener {
 public:
  // Both on the net thread. accepted: for each peer that has authenticated; start() the link there
  // or within a second (it is not read before). refused: a line for the log, at most 10 a second.
  struct Handlers {
    std::function<void(std::shared_ptr<Connection>)> accepted{};
    std::function<void(const std::string& why)> refused{};
  };
  virtual ~Listener() = default;                   // close()
  virtual const std::string& address() const = 0;  // with the real port when 0 was asked for
  // No handler runs after it has returned (on the net thread: after the callback that calls it).
  virtual void close() = 0;
};
// address: "host:port", port 0 for any. Throws ArgumentError (no key and not loopback), NetError.
std::unique_ptr<Listener> listen(NetThread& net, const LinkOptions& options,
                                 const std::string& address, Listener::Handlers handlers);

// Text of a peer as it may be logged and thrown: printable ASCII (others become '?'), at most 300
// characters.
std::string printable(const std::string& text);

// "host:port" or "[v6]:port" -> host, port. Throws ArgumentError.
std::pair<std::string, std::uint16_t> split_address(const std::string& address);

}  // namespace moesaic::net
