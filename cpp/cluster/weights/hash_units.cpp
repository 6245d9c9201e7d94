// See hash_units.h.
#include "cluster/weights/hash_units.h"

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "base/digest.h"
#include "base/thread_name.h"
#include "base/thread_pool.h"

namespace moesaic::cluster {
namespace {

using namespace std::chrono_literals;

constexpr std::size_t kBufferBytes = std::size_t{1} << 20;
constexpr int kMaxThreads = 8;  // a disk has no more to give
constexpr auto kReportEvery = 50ms;

class Hasher {
 public:
  Hasher(const HashJob& job, FileOps& ops) : job_(job), ops_(ops), digests_(job.pieces.size()) {}

  std::vector<wire::Digest> run() {
    const int n_threads = static_cast<int>(std::min<std::size_t>(
        static_cast<std::size_t>(std::min(available_cpus(), kMaxThreads)), job_.pieces.size()));
    running_ = n_threads;
    std::vector<std::jthread> threads;
    for (int i = 0; i < n_threads; ++i) {
      threads.emplace_back([this] {
        name_this_thread("moesaic-hash");
        work();
      });
    }
    wait();
    threads.clear();  // joins them
    if (error_) std::rethrow_exception(error_);
    if (job_.progress) job_.progress(done_bytes_);
    return std::move(digests_);
  }

 private:
  void work() {
    try {
      std::vector<Fd> files(job_.paths.size());  // of this thread: read-ahead is per descriptor
      std::vector<std::uint8_t> buffer(kBufferBytes);
      for (std::size_t i = next_++; i < job_.pieces.size() && !stop_; i = next_++) {
        const HashPiece& piece = job_.pieces[i];
        if (!files[piece.file])
          files[piece.file] = open_file(ops_, job_.paths[piece.file], O_RDONLY);
        digests_[i] = hash(files[piece.file].get(), piece, buffer);
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      stop_ = true;
    }
    const std::lock_guard lock(mutex_);
    if (--running_ == 0) ended_.notify_one();
  }

  wire::Digest hash(int fd, const HashPiece& piece, std::vector<std::uint8_t>& buffer) {
    Sha256 sha;
    for (std::uint64_t at = 0; at < piece.n_bytes && !stop_;) {
      if (job_.cancel != nullptr) job_.cancel->check();
      const std::size_t n = std::min<std::uint64_t>(piece.n_bytes - at, buffer.size());
      read_at(ops_, fd, std::span(buffer).first(n), piece.offset + at, job_.paths[piece.file]);
      sha.update(buffer.data(), n);
      at += n;
      done_bytes_ += n;
    }
    return sha.finish();
  }

  void wait() {
    std::unique_lock lock(mutex_);
    while (!ended_.wait_for(lock, kReportEvery, [this] { return running_ == 0; })) {
      if (!job_.progress) continue;
      lock.unlock();
      try {
        job_.progress(done_bytes_);
      } catch (...) {
        lock.lock();
        if (!error_) error_ = std::current_exception();
        stop_ = true;
        continue;
      }
      lock.lock();
    }
  }

  const HashJob& job_;
  FileOps& ops_;
  std::vector<wire::Digest> digests_;
  std::atomic<std::size_t> next_{0};
  std::atomic<std::uint64_t> done_bytes_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable ended_;
  int running_ = 0;
  std::exception_ptr error_;
};

}  // namespace

std::vector<wire::Digest> hash_units(const HashJob& job, FileOps& ops) {
  if (job.pieces.empty()) return {};
  return Hasher(job, ops).run();
}

}  // namespace moesaic::cluster
