// A link's queue and the coroutine that empties it. Small frames are written together; a large
// payload is written from where it lies.
#include <algorithm>
#include <utility>

#include "base/crc32c.h"
#include "base/errors.h"
#include "net/handshake.h"
#include "net/link.h"
#include "wire/frame.h"

namespace moesaic::net {
namespace {

constexpr std::size_t kStagingBytes = 64U << 10;
constexpr std::size_t kUrgentLimit = 1U << 20;
constexpr std::chrono::seconds kGoodbye{1};

bool is_urgent(wire::MessageType type) {
  return type == wire::MessageType::kPing || type == wire::MessageType::kPong ||
         type == wire::MessageType::kCancel;
}

}  // namespace

Link::Frame Link::make_frame(wire::MessageType type, std::vector<std::uint8_t> fields,
                             std::vector<std::uint8_t> payload, std::uint64_t epoch) const {
  const std::size_t n_bytes = fields.size() + payload.size();
  // The peer's limit for activations is its own; the others are the same on both sides.
  const std::uint32_t limit = wire::body_limit(type, UINT32_MAX);
  if (n_bytes > limit) {
    fail<ArgumentError>("[net] ", peer_.address, ": a body of ", n_bytes, " bytes for ",
                        wire::type_name(type), ", at most ", limit, " can be sent");
  }
  std::uint32_t crc = crc32c(0, fields.data(), fields.size());
  crc = crc32c(crc, payload.data(), payload.size());
  return {type, epoch, std::move(fields), std::move(payload), crc};
}

void Link::send_frame(wire::MessageType type, std::vector<std::uint8_t> fields,
                      std::vector<std::uint8_t> payload, std::uint64_t epoch) {
  Frame frame = make_frame(type, std::move(fields), std::move(payload), epoch);
  std::unique_lock lock(mutex_);
  if (state_ > State::kOpen) throw_closed();
  if (!is_urgent(type)) {
    const auto has_room = [&] {
      return state_ > State::kOpen || queued_bytes_ == 0 ||
             queued_bytes_ + frame.n_bytes() <= queue_limit_;
    };
    if (!has_room() && net_->is_current()) {
      const std::string text = strcat("[net] ", peer_.address, ": ", queued_bytes_,
                                      " bytes wait to be sent: it does not keep up");
      lock.unlock();
      shut(std::make_exception_ptr(NetError(text)));
      throw NetError(text);
    }
    // A slow link is not a dead one: the deadline runs from the last bytes that the peer took.
    Clock::time_point deadline = Clock::now() + send_deadline_;
    while (!changed_.wait_until(lock, deadline, has_room)) {
      if (last_progress_ + send_deadline_ > deadline) {
        deadline = last_progress_ + send_deadline_;
        continue;
      }
      fail<DeadlineError>("[net] ", peer_.address, ": no room to send ", frame.n_bytes(),
                          " bytes within ", send_deadline_.count(), " ms, ", queued_bytes_,
                          " bytes wait before them");
    }
    if (state_ > State::kOpen) throw_closed();
  } else if (urgent_bytes_ + frame.n_bytes() > kUrgentLimit) {
    fail<NetError>("[net] ", peer_.address, ": it asks and does not listen to the answers");
  }
  enqueue(std::move(frame));
  const bool wake = std::exchange(writer_waits_, false);
  lock.unlock();
  if (wake) wake_writer();
}

void Link::enqueue(Frame frame) {
  queued_bytes_ += frame.n_bytes();
  if (is_urgent(frame.type)) {
    urgent_bytes_ += frame.n_bytes();
    urgent_.push_back(std::move(frame));
  } else {
    bulk_.push_back(std::move(frame));
  }
}

void Link::wake_writer() {
  asio::post(net_->io, [self = shared_from_this()] { self->writer_wake_.cancel(); });
}

void Link::throw_closed() const {
  if (failure_) failure_.raise();
  fail<NetError>("[net] ", peer_.address, ": the link has been closed");
}

bool Link::begin_closing(wire::Reason reason, const std::string& text, std::exception_ptr error,
                         bool drop_queue) {
  Frame goodbye = make_frame(wire::MessageType::kGoAway,
                             wire::encode(wire::GoAway{reason, printable(text)}), {}, 0);
  {
    const std::lock_guard lock(mutex_);
    if (state_ > State::kOpen) return false;
    failure_ = Failure(error);
    error_ = std::move(error);
    if (state_ == State::kNew) {
      // Nothing runs yet: the socket's end says it all.
      state_ = State::kClosing;
      asio::post(net_->io, [self = shared_from_this()] {
        if (self->running_ == 0) self->shut(nullptr);
      });
      return true;
    }
    state_ = State::kClosing;
    closing_deadline_ = Clock::now() + kGoodbye;
    if (drop_queue) {
      for (const Frame& frame : bulk_) queued_bytes_ -= frame.n_bytes();
      bulk_.clear();
    }
    enqueue(std::move(goodbye));
    writer_waits_ = false;
  }
  changed_.notify_all();
  wake_writer();
  return true;
}

void Link::go_away(wire::Reason reason, const std::string& text) {
  begin_closing(reason, text, nullptr, false);
}

asio::awaitable<void> Link::run_writer(std::shared_ptr<Link> self) {
  try {
    co_await self->write_frames();
  } catch (...) {
    self->shut(self->with_peer(std::current_exception()));
  }
  self->coroutine_ended();
}

asio::awaitable<void> Link::write_frames() {
  std::vector<std::uint8_t> staging;
  std::vector<std::uint8_t> large;
  staging.reserve(2 * kStagingBytes);
  for (;;) {
    staging.clear();
    large.clear();
    std::size_t n_taken = 0;
    const Taken taken = take_frames(staging, large, n_taken);
    if (taken == Taken::kNoMore) {
      stream_->finish_sending();  // the reader waits for the peer's end, the watch for the clock
      co_return;
    }
    if (taken == Taken::kNothingYet) {
      writer_wake_.expires_at(Clock::time_point::max());
      asio::error_code ignored;
      co_await writer_wake_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
      continue;
    }
    writing_ = true;
    co_await stream_->write(staging);
    co_await stream_->write(large);
    writing_ = false;
    large = {};
    {
      const std::lock_guard lock(mutex_);
      queued_bytes_ -= std::min(queued_bytes_, n_taken);  // shut() may have set it to 0
    }
    changed_.notify_all();
  }
}

Link::Taken Link::take_frames(std::vector<std::uint8_t>& staging, std::vector<std::uint8_t>& large,
                              std::size_t& n_taken) {
  const std::lock_guard lock(mutex_);
  while (staging.size() < kStagingBytes && large.empty()) {
    std::deque<Frame>& queue = urgent_.empty() ? bulk_ : urgent_;
    if (queue.empty()) break;
    Frame frame = std::move(queue.front());
    queue.pop_front();
    const std::size_t n_bytes = frame.n_bytes();
    if (is_urgent(frame.type)) urgent_bytes_ -= n_bytes;
    wire::FrameHeader header;
    header.type = frame.type;
    header.epoch = frame.epoch;
    header.sequence = send_sequence_++;
    header.body_bytes = static_cast<std::uint32_t>(n_bytes - wire::kHeaderBytes);
    const wire::HeaderBytes bytes = wire::encode_header(header, frame.body_crc);
    staging.insert(staging.end(), bytes.begin(), bytes.end());
    staging.insert(staging.end(), frame.fields.begin(), frame.fields.end());
    if (frame.payload.size() <= kStagingBytes) {
      staging.insert(staging.end(), frame.payload.begin(), frame.payload.end());
    } else {
      large = std::move(frame.payload);
    }
    counters_.sent[static_cast<std::size_t>(frame.type)] += n_bytes;
    n_taken += n_bytes;
  }
  if (n_taken > 0) return Taken::kFrames;
  // Asked under the same lock as the queue, or a goodbye queued in between would be forgotten.
  if (state_ > State::kOpen) return Taken::kNoMore;
  writer_waits_ = true;
  return Taken::kNothingYet;
}

bool Link::wait_closed(milliseconds deadline) {
  std::unique_lock lock(mutex_);
  if (net_->is_current()) return finished_;
  return changed_.wait_for(lock, deadline, [this] { return finished_; });
}

bool Link::closed() const {
  const std::lock_guard lock(mutex_);
  return state_ > State::kOpen;
}

Counters Link::counters() const {
  const std::lock_guard lock(mutex_);
  return counters_;
}

std::size_t Link::queued_bytes() const {
  const std::lock_guard lock(mutex_);
  return queued_bytes_;
}

std::chrono::microseconds Link::round_trip() const {
  const std::lock_guard lock(mutex_);
  return round_trip_;
}

wire::Pong Link::last_pong() const {
  const std::lock_guard lock(mutex_);
  return last_pong_;
}

}  // namespace moesaic::net
