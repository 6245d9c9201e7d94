// A thread for work that may take long, apart from who asks for it: measurements, probes. Bounded
// for each asker and for all, so that one that asks without end gets an error and the others an
// answer. Thread-safe.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

namespace moesaic::cluster {

class Jobs {
 public:
  static constexpr std::size_t kMostOfOne = 16;
  static constexpr std::size_t kMost = 256;

  explicit Jobs(const char* thread_name);
  ~Jobs();  // end()
  Jobs(const Jobs&) = delete;
  Jobs& operator=(const Jobs&) = delete;

  // Runs it after those before. asker: whose it is, for the bound only. Throws OutOfMemoryError
  // naming the bound when too many wait. What the job throws is dropped.
  void add(const void* asker, std::function<void()> job);
  void end();  // what waits is dropped; returns when what runs is over

 private:
  struct Job {
    const void* asker;
    std::function<void()> work;
  };
  void main(const char* thread_name);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> waiting_;
  std::map<const void*, std::size_t> n_of_;  // waiting or running, by asker
  bool ends_ = false;
  std::thread thread_;  // last
};

}  // namespace moesaic::cluster
