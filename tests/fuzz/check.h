// What fuzz targets hold parsers to: an input in 10 ms of the processor's time, no allocation above
// twice the input and 1 MB, and a file without a name for parsers that take paths.
#pragma once

#include <sanitizer/allocator_interface.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <span>
#include <string>

namespace moesaic::fuzz {

inline std::size_t g_largest_allocation = 0;

// Sanitizers at -O1 slow the code down about so much; measured in CPU time, so that a busy machine
// does not matter.
inline constexpr double kSlowdown = 5;

[[noreturn]] inline void violated(const char* what) {
  std::fprintf(stderr, "property violated: %s\n", what);
  std::abort();
}

inline double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Of one input: of its time, and of its allocations until check_allocations(). Asking for the time
// of the processor is a system call: not for each part of an input.
class Stopwatch {
 public:
  Stopwatch() { g_largest_allocation = 0; }
  ~Stopwatch() {
    if (cpu_seconds() - begin_ > 0.010 * kSlowdown) violated("more than 10 ms");
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double begin_ = cpu_seconds();
};

inline void install_hooks() {
  __sanitizer_install_malloc_and_free_hooks(
      [](const volatile void*, std::size_t n_bytes) {
        g_largest_allocation = std::max(g_largest_allocation, n_bytes);
      },
      [](const volatile void*) {});
}

inline void check_allocations(std::size_t n_bytes) {
  if (g_largest_allocation > 2 * n_bytes + (std::size_t{1} << 20)) {
    violated("too large an allocation");
  }
}

// A file without a name: its path goes through a reader's own open().
class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("fuzz", MFD_CLOEXEC)) {
    if (fd_ < 0) violated("no memfd");
    path_ = "/proc/self/fd/" + std::to_string(fd_);
  }
  int fd() const { return fd_; }
  const std::string& path() const { return path_; }
  void fill(std::span<const std::uint8_t> bytes) const {
    const auto n = static_cast<ssize_t>(bytes.size());
    if (ftruncate(fd_, 0) != 0 || pwrite(fd_, bytes.data(), bytes.size(), 0) != n) {
      violated("no memory file");
    }
  }

 private:
  int fd_;
  std::string path_;
};

}  // namespace moesaic::fuzz
