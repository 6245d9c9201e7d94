// News of deployed models on their way to Python: written by the threads that drive the models,
// taken by one thread of Python's. Bounded: of what is not taken the newest counts.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <utility>

#include "cluster/coordinator/coordinator.h"

namespace moesaic::bindings {

class NewsBoard {
 public:
  using Item = std::pair<std::int64_t, cluster::News>;  // of which model

  void put(std::int64_t model, const cluster::News& news) {
    {
      const std::scoped_lock lock(mutex_);
      if (closed_) return;
      const bool same = !items_.empty() && items_.back().first == model && news.text.empty() &&
                        items_.back().second.text.empty() &&
                        items_.back().second.what == news.what &&
                        items_.back().second.address == news.address;
      if (same) items_.pop_back();
      if (items_.size() == kMost) items_.pop_front();
      items_.emplace_back(model, news);
    }
    changed_.notify_one();
  }
  // Nothing when the time is up, or when it is closed and empty.
  std::optional<Item> next(std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, timeout, [this] { return closed_ || !items_.empty(); });
    if (items_.empty()) return std::nullopt;
    Item item = std::move(items_.front());
    items_.pop_front();
    return item;
  }
  void close() {
    {
      const std::scoped_lock lock(mutex_);
      closed_ = true;
    }
    changed_.notify_all();
  }
  bool closed() const {
    const std::scoped_lock lock(mutex_);
    return closed_;
  }

 private:
  static constexpr std::size_t kMost = 256;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Item> items_;
  bool closed_ = false;
};

}  // namespace moesaic::bindings
