// The implementation of Connection: three coroutines on the net thread (reader, writer, watch) and
// a queue that any thread fills. Inside net only.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "net/connection.h"
#include "net/failure.h"
#include "net/net_thread.h"
#include "net/stream.h"

namespace moesaic::net {

// The bytes of one received frame, counted for its link and for all links of the net thread.
class HeldBytes {
 public:
  using Count = std::shared_ptr<std::atomic<std::size_t>>;
  HeldBytes(Count own, Count all) : own_(std::move(own)), all_(std::move(all)) {}
  ~HeldBytes() {
    *own_ -= n_bytes_;
    *all_ -= n_bytes_;
  }
  HeldBytes(const HeldBytes&) = delete;
  HeldBytes& operator=(const HeldBytes&) = delete;
  void add(std::size_t n_bytes) {
    n_bytes_ += n_bytes;
    *own_ += n_bytes;
    *all_ += n_bytes;
  }

 private:
  const Count own_;
  const Count all_;
  std::size_t n_bytes_ = 0;
};

class Link : public Connection, public Closable, public std::enable_shared_from_this<Link> {
 public:
  Link(std::shared_ptr<NetThread::Impl> net, std::unique_ptr<Stream> stream, PeerInfo peer,
       const LinkOptions& options);
  ~Link() override;
  // For users: closes the link when the last copy goes. On the net thread.
  static std::shared_ptr<Connection> make(std::shared_ptr<NetThread::Impl> net,
                                          std::unique_ptr<Stream> stream, PeerInfo peer,
                                          const LinkOptions& options);

  const PeerInfo& peer() const override { return peer_; }
  void start(Handlers handlers) override;
  void set_activation_limit(std::uint32_t n_bytes) override { activation_limit_ = n_bytes; }
  void set_epoch(std::uint64_t epoch) override { epoch_ = epoch; }
  void send_frame(wire::MessageType type, std::vector<std::uint8_t> fields,
                  std::vector<std::uint8_t> payload, std::uint64_t epoch) override;
  void go_away(wire::Reason reason, const std::string& text) override;
  bool wait_closed(milliseconds deadline) override;
  bool closed() const override;
  Counters counters() const override;
  std::size_t queued_bytes() const override;
  std::chrono::microseconds round_trip() const override;
  wire::Pong last_pong() const override;
  void net_thread_ends() override;

 private:
  using Clock = std::chrono::steady_clock;
  enum class State { kNew, kOpen, kClosing, kClosed };  // only forwards
  struct Frame {
    wire::MessageType type;
    std::uint64_t epoch;
    std::vector<std::uint8_t> fields;
    std::vector<std::uint8_t> payload;
    std::uint32_t body_crc;
    std::size_t n_bytes() const { return wire::kHeaderBytes + fields.size() + payload.size(); }
  };
  static asio::awaitable<void> run_reader(std::shared_ptr<Link> self);
  static asio::awaitable<void> run_writer(std::shared_ptr<Link> self);
  static asio::awaitable<void> run_watch(std::shared_ptr<Link> self);
  asio::awaitable<void> read_frames();
  asio::awaitable<std::vector<std::uint8_t>> read_body(std::uint32_t n_bytes, std::uint32_t& crc,
                                                       HeldBytes& held);
  asio::awaitable<void> write_frames();
  asio::awaitable<void> watch();

  void dispatch(const wire::FrameHeader& header, std::vector<std::uint8_t> body,
                const std::shared_ptr<HeldBytes>& held);
  void answer(const wire::Ping& ping);
  void note(const wire::Pong& pong);
  void ping();
  template <typename M>
  void send_unless_closed(const M& message);
  void check_silence(Clock::time_point now);  // throws NetError

  void enqueue(Frame frame);  // under mutex_
  void wake_writer();         // any thread
  enum class Taken { kFrames, kNothingYet, kNoMore };
  // Appends what is to be written next. Nothing yet: the next send wakes the writer.
  Taken take_frames(std::vector<std::uint8_t>& staging, std::vector<std::uint8_t>& large,
                    std::size_t& n_taken);
  Frame make_frame(wire::MessageType type, std::vector<std::uint8_t> fields,
                   std::vector<std::uint8_t> payload, std::uint64_t epoch) const;
  [[noreturn]] void throw_closed() const;  // under mutex_
  // On the net thread: ends all coroutines; the first error (or none) is the link's.
  void shut(std::exception_ptr error);
  // Any thread: what is queued (unless dropped), then GoAway, then the end. False: it was closing.
  bool begin_closing(wire::Reason reason, const std::string& text, std::exception_ptr error,
                     bool drop_queue);
  bool is_over() const;
  void coroutine_ended();
  void finish();
  std::exception_ptr with_peer(std::exception_ptr error) const;

  const std::shared_ptr<NetThread::Impl> net_;
  const PeerInfo peer_;
  const milliseconds ping_every_;
  const milliseconds dead_after_;
  const milliseconds stalled_after_;
  const milliseconds send_deadline_;
  const std::size_t queue_limit_;
  const std::size_t all_limit_;
  std::atomic<std::uint32_t> activation_limit_{0};
  std::atomic<std::uint64_t> epoch_{0};

  mutable std::mutex mutex_;
  std::condition_variable changed_;  // room in the queue, or the state
  State state_ = State::kNew;
  bool finished_ = false;     // no handler runs any more
  std::exception_ptr error_;  // until on_closed has it
  Failure failure_;           // the same, for senders
  std::deque<Frame> urgent_;
  std::deque<Frame> bulk_;
  std::size_t urgent_bytes_ = 0;
  std::size_t queued_bytes_ = 0;  // with what is being written
  bool writer_waits_ = false;
  Clock::time_point closing_deadline_;
  Clock::time_point last_progress_;  // the peer took some of what waits
  Counters counters_;
  wire::Pong last_pong_;
  std::chrono::microseconds round_trip_{0};

  // Net thread only.
  std::unique_ptr<Stream> stream_;
  Handlers handlers_;
  asio::steady_timer writer_wake_;
  asio::steady_timer reader_wake_;
  asio::steady_timer watch_wake_;
  // Bytes of received bodies that users still hold; outlives the link.
  const std::shared_ptr<std::atomic<std::size_t>> held_;
  std::uint64_t send_sequence_ = 0;
  std::uint64_t receive_sequence_ = 0;
  std::uint64_t ping_nonce_ = 0;
  Clock::time_point ping_sent_;
  bool ping_answered_ = true;
  Clock::time_point last_heard_;
  Clock::time_point last_taken_;
  std::uint64_t heard_bytes_ = 0;
  std::uint64_t taken_bytes_ = 0;  // by the peer, when last_taken_ was set
  bool reading_paused_ = false;
  bool writing_ = false;
  int running_ = 0;
};

}  // namespace moesaic::net
