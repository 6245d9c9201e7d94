// A fixed team of threads for fork-join compute: run(f) calls f(i) on every member at once, the
// caller being member 0. Members spin briefly between jobs, then sleep. Not a task queue: work is
// cut by the caller, in a fixed way, so that results do not depend on timing. Threads are limited
// to (and spread over) the CPUs the process may use.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace moesaic {

// CPUs this process may use: the affinity mask, cut by the cgroup's CPU quota (rounded up). At
// least 1.
int available_cpus();

class ThreadPool {
 public:
  // n_threads >= 1 members, n_threads - 1 of them new threads.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls job(member) for member in [0, size()) and returns when all have ended; rethrows the first
  // exception. Only one thread may call run at a time; a job must not call run.
  void run(const std::function<void(int member)>& job);

  // A barrier for the members of the running job: returns when all have called it. For jobs of
  // several phases.
  void barrier();

  // [begin, end) of n items for `member`, cut at multiples of `grain`; the same for the same (n,
  // size()).
  struct Range {
    std::int64_t begin = 0;
    std::int64_t end = 0;
  };
  Range split(std::int64_t n, int member, std::int64_t grain = 1) const;

 private:
  struct Sync;
  void loop(int member);
  void shut_down() noexcept;
  void record(std::exception_ptr error);

  std::vector<std::thread> workers_;
  std::unique_ptr<Sync> sync_;
};

}  // namespace moesaic
