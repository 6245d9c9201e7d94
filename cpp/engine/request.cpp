// The hand-over between the engine's thread and waiting callers: everything under the channel's
// mutex.
#include "engine/request.h"

#include <utility>

namespace moesaic::engine {

std::vector<std::size_t> Channel::wait_for(std::chrono::milliseconds timeout) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, timeout, [this] { return !ready_.empty(); });
  std::vector<std::size_t> ready = ready_;  // a copy: the room that was reserved stays
  ready_.clear();
  return ready;
}

void Channel::reserve(std::size_t n_requests) {
  const std::scoped_lock lock(mutex_);
  reserved_ += n_requests;
  ready_.reserve(reserved_);
}

void Request::notify_locked() {
  if (queued_) return;
  queued_ = true;
  channel_->ready_.push_back(index_);
  channel_->changed_.notify_all();
}

Update Request::take() {
  const std::scoped_lock lock(channel_->mutex_);
  queued_ = false;
  Update update = std::move(pending_);
  pending_ = {};
  pending_.prompt_rows_done = update.prompt_rows_done;
  pending_.prompt_rows = update.prompt_rows;
  pending_.finished = update.finished;
  return update;
}

bool Request::finished() const {
  const std::scoped_lock lock(channel_->mutex_);
  return pending_.finished;
}

Outcome Request::take_outcome() {
  const std::scoped_lock lock(channel_->mutex_);
  return std::move(outcome_);
}

void Request::publish_progress(std::int64_t rows_done, std::int64_t rows) {
  const std::scoped_lock lock(channel_->mutex_);
  pending_.prompt_rows_done = rows_done;
  pending_.prompt_rows = rows;
  notify_locked();
}

void Request::publish_token(model::Sampled token) {
  const std::scoped_lock lock(channel_->mutex_);
  pending_.tokens.push_back(std::move(token));
  if (!spec_.generate->at_end) notify_locked();
}

void Request::publish_row(std::vector<float> row) {
  const std::scoped_lock lock(channel_->mutex_);
  pending_.row = std::move(row);
  notify_locked();
}

void Request::publish_end(Outcome outcome) noexcept {
  const std::scoped_lock lock(channel_->mutex_);
  outcome_ = std::move(outcome);
  pending_.finished = true;
  notify_locked();
}

}  // namespace moesaic::engine
