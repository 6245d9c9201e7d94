// The team's hand-over: one futex word per direction (a job's number going out, a count of members
// coming back), each spun on for some microseconds, then slept on. Spinning is short because a
// spinner takes the core from whoever does the work when pools or processes share cores.
#include "base/thread_pool.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <utility>

#include "base/cgroup.h"
#include "base/errors.h"
#include "base/thread_name.h"

namespace moesaic {
namespace {

using FutexWord = std::atomic<std::uint32_t>;
static_assert(sizeof(FutexWord) == 4 && FutexWord::is_always_lock_free);

void futex_sleep(FutexWord& word, std::uint32_t while_value) {
  // Returns at once when the word has changed; spurious returns are the caller's loop's business.
  syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAIT_PRIVATE, while_value,
          nullptr, nullptr, 0);
}

void futex_wake_all(FutexWord& word) {
  syscall(SYS_futex, reinterpret_cast<std::uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr,
          nullptr, 0);
}

void cpu_relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A word that several threads wait on. The waker's syscall is saved when nobody sleeps: a sleeper
// announces itself before it looks at the word for the last time, a waker changes the word before
// it looks for sleepers (both seq_cst).
struct alignas(64) Signal {
  FutexWord word{0};
  std::atomic<int> sleepers{0};

  void wait_while(std::uint32_t value, std::chrono::microseconds spin) {
    if (word.load(std::memory_order_acquire) != value) return;
    if (spin.count() > 0) {
      const auto end = std::chrono::steady_clock::now() + spin;
      do {
        for (int i = 0; i < 32; ++i) {
          if (word.load(std::memory_order_acquire) != value) return;
          cpu_relax();
        }
      } while (std::chrono::steady_clock::now() < end);
    }
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    while (word.load(std::memory_order_seq_cst) == value) futex_sleep(word, value);
    sleepers.fetch_sub(1, std::memory_order_relaxed);
  }
  void wake() {
    if (sleepers.load(std::memory_order_seq_cst) > 0) futex_wake_all(word);
  }
  void advance() {
    word.fetch_add(1, std::memory_order_seq_cst);
    wake();
  }
};

// Thrown out of barrier() when another member has failed; never the first exception, so nobody sees
// it.
struct BarrierBroken {};

cpu_set_t allowed_set() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0 || CPU_COUNT(&set) == 0) {
    CPU_ZERO(&set);
    for (long cpu = 0; cpu < std::min(sysconf(_SC_NPROCESSORS_ONLN), long{CPU_SETSIZE}); ++cpu) {
      CPU_SET(static_cast<std::size_t>(cpu), &set);
    }
  }
  return set;
}

// How many pool threads of this process sit on each CPU, so that several pools spread instead of
// piling up.
class CpuRegistry {
 public:
  static CpuRegistry& instance() {
    static CpuRegistry registry;
    return registry;
  }
  // The least used CPU of `allowed`; among equals, not the one in `avoid`, then the lowest. It
  // counts as used from now on.
  int take(const cpu_set_t& allowed, int avoid) {
    const std::lock_guard<std::mutex> lock(mutex_);
    int best = -1;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (!CPU_ISSET(static_cast<std::size_t>(cpu), &allowed)) continue;
      if (best < 0 || cost(cpu, avoid) < cost(best, avoid)) best = cpu;
    }
    ++used_[static_cast<std::size_t>(best)];
    return best;
  }
  void give_back(int cpu) {
    const std::lock_guard<std::mutex> lock(mutex_);
    --used_[static_cast<std::size_t>(cpu)];
  }

 private:
  int cost(int cpu, int avoid) const {
    return 2 * used_[static_cast<std::size_t>(cpu)] + (cpu == avoid ? 1 : 0);
  }
  std::mutex mutex_;
  std::vector<int> used_ = std::vector<int>(CPU_SETSIZE, 0);
};

}  // namespace

int available_cpus() {
  const cpu_set_t set = allowed_set();
  const int by_affinity = CPU_COUNT(&set);
  const double quota = cgroup_limits().cpus;
  int n_cpus = by_affinity;
  if (quota > 0 && quota < by_affinity) {
    n_cpus = static_cast<int>(quota);
    if (n_cpus < quota) ++n_cpus;
  }
  return std::max(1, n_cpus);
}

struct ThreadPool::Sync {
  Signal job_number;    // advances when a job starts (or the pool ends)
  Signal n_running;     // workers still inside the job; the caller waits for 0
  Signal barrier_turn;  // advances when all members have arrived
  alignas(64) std::atomic<int> n_arrived{0};
  std::atomic<bool> broken{false};
  std::atomic<bool> stop{false};
  const std::function<void(int)>* job = nullptr;  // published by job_number
  int n_members = 1;
  std::chrono::microseconds spin{0};
  std::mutex error_mutex;
  std::exception_ptr error;
  std::vector<int> cpus;  // one per worker when pinned, else empty
};

ThreadPool::ThreadPool(int n_threads) : sync_(std::make_unique<Sync>()) {
  if (n_threads < 1 || n_threads > 4096) {
    fail<ArgumentError>("[ThreadPool] n_threads: got ", n_threads,
                        ", need 1 to 4096; this process may use ", available_cpus(), " CPUs");
  }
  sync_->n_members = n_threads;
  const int n_cpus = available_cpus();
  // With more members than CPUs whoever spins keeps somebody from working: sleep at once.
  sync_->spin = std::chrono::microseconds(n_threads <= n_cpus ? 30 : 0);

  const cpu_set_t allowed = allowed_set();
  const bool pin = n_threads > 1 && n_threads <= n_cpus;
  try {
    if (pin) {
      const int here =
          sched_getcpu();  // the caller runs here: leave it the place when others are as free
      for (int i = 1; i < n_threads; ++i) {
        sync_->cpus.push_back(CpuRegistry::instance().take(allowed, here));
      }
    }
    for (int member = 1; member < n_threads; ++member) {
      workers_.emplace_back([this, member] {
        name_this_thread("moesaic-pool");
        loop(member);
      });
      if (!pin) continue;
      cpu_set_t one;
      CPU_ZERO(&one);
      CPU_SET(static_cast<std::size_t>(sync_->cpus[static_cast<std::size_t>(member - 1)]), &one);
      // Refused only where the mask has changed meanwhile; the thread then runs where the system
      // puts it.
      pthread_setaffinity_np(workers_.back().native_handle(), sizeof one, &one);
    }
  } catch (const std::exception& error) {
    shut_down();
    fail<BackendError>("[ThreadPool] the system refused a team of ", n_threads,
                       " threads: ", error.what(), "; ask for fewer threads");
  }
}

ThreadPool::~ThreadPool() { shut_down(); }

void ThreadPool::shut_down() noexcept {
  sync_->stop.store(true, std::memory_order_relaxed);
  sync_->job_number.advance();
  for (std::thread& worker : workers_) worker.join();
  for (const int cpu : sync_->cpus) CpuRegistry::instance().give_back(cpu);
}

void ThreadPool::record(std::exception_ptr error) {
  {
    const std::lock_guard<std::mutex> lock(sync_->error_mutex);
    if (!sync_->error) sync_->error = std::move(error);
  }
  // Members that wait for this one at a barrier would wait for ever: let them go, with an exception
  // of their own.
  sync_->broken.store(true, std::memory_order_seq_cst);
  sync_->barrier_turn.advance();
}

void ThreadPool::loop(int member) {
  Sync& sync = *sync_;
  std::uint32_t seen =
      0;  // job_number starts at 0, and no job is missed: run() waits for every member
  while (true) {
    sync.job_number.wait_while(seen, sync.spin);
    ++seen;
    if (sync.stop.load(std::memory_order_relaxed)) return;
    try {
      (*sync.job)(member);
    } catch (...) {
      record(std::current_exception());
    }
    if (sync.n_running.word.fetch_sub(1, std::memory_order_seq_cst) == 1) sync.n_running.wake();
  }
}

void ThreadPool::run(const std::function<void(int member)>& job) {
  Sync& sync = *sync_;
  if (sync.n_members == 1) {
    job(0);
    return;
  }
  sync.job = &job;
  sync.n_arrived.store(0, std::memory_order_relaxed);
  sync.broken.store(false, std::memory_order_relaxed);
  sync.n_running.word.store(static_cast<std::uint32_t>(sync.n_members - 1),
                            std::memory_order_relaxed);
  sync.job_number.advance();
  try {
    job(0);
  } catch (...) {
    record(std::current_exception());
  }
  for (std::uint32_t n = sync.n_running.word.load(std::memory_order_acquire); n != 0;
       n = sync.n_running.word.load(std::memory_order_acquire)) {
    sync.n_running.wait_while(n, sync.spin);
  }
  // Moved out, so that the pool is clean for the next job.
  if (const std::exception_ptr error = std::exchange(sync.error, nullptr)) {
    std::rethrow_exception(error);
  }
}

void ThreadPool::barrier() {
  Sync& sync = *sync_;
  if (sync.n_members == 1) return;
  const std::uint32_t turn = sync.barrier_turn.word.load(std::memory_order_acquire);
  if (sync.broken.load(std::memory_order_seq_cst)) throw BarrierBroken{};
  if (sync.n_arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == sync.n_members) {
    sync.n_arrived.store(0, std::memory_order_relaxed);  // published by the turn
    sync.barrier_turn.advance();
  } else {
    sync.barrier_turn.wait_while(turn, sync.spin);
  }
  if (sync.broken.load(std::memory_order_seq_cst)) throw BarrierBroken{};
}

ThreadPool::Range ThreadPool::split(std::int64_t n, int member, std::int64_t grain) const {
  const std::int64_t n_grains = (n + grain - 1) / grain;
  const std::int64_t each = n_grains / size();
  const std::int64_t extra = n_grains % size();  // the first `extra` members take one grain more
  const std::int64_t first = member * each + std::min<std::int64_t>(member, extra);
  const std::int64_t last = first + each + (member < extra ? 1 : 0);
  return {std::min(first * grain, n), std::min(last * grain, n)};
}

}  // namespace moesaic
