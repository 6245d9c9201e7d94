// See jobs.h.
#include "cluster/worker/jobs.h"

#include <exception>
#include <utility>

#include "base/errors.h"
#include "base/thread_name.h"

namespace moesaic::cluster {

Jobs::Jobs(const char* thread_name) : thread_([this, thread_name] { main(thread_name); }) {}

Jobs::~Jobs() { end(); }

void Jobs::add(const void* asker, std::function<void()> job) {
  {
    const std::scoped_lock lock(mutex_);
    const auto of_one = n_of_.find(asker);
    const std::size_t n = of_one == n_of_.end() ? 0 : of_one->second;
    if (n >= kMostOfOne || waiting_.size() >= kMost) {
      throw OutOfMemoryError(strcat("[cluster] ", n, " requests of this link and ", waiting_.size(),
                                    " of all links wait already, the most are ", kMostOfOne,
                                    " and ", kMost, "; wait for their answers"),
                             0, 0);
    }
    waiting_.push_back({asker, std::move(job)});
    ++n_of_[asker];
  }
  changed_.notify_one();
}

void Jobs::end() {
  {
    const std::scoped_lock lock(mutex_);
    ends_ = true;
    waiting_.clear();
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Jobs::main(const char* thread_name) {
  name_this_thread(thread_name);
  while (true) {
    Job job;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return ends_ || !waiting_.empty(); });
      if (ends_) return;
      job = std::move(waiting_.front());
      waiting_.pop_front();
    }
    try {
      job.work();
    } catch (const std::exception&) {  // its asker has been told, or is gone
    }
    job.work = nullptr;  // what it holds goes before the next one may come
    const std::scoped_lock lock(mutex_);
    const auto of_one = n_of_.find(job.asker);
    if (of_one != n_of_.end() && --of_one->second == 0) n_of_.erase(of_one);
  }
}

}  // namespace moesaic::cluster
