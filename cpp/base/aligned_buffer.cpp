// Anonymous mappings: the system hands out zeroed pages when they are first touched, and takes them
// back on release.
#include "base/aligned_buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "base/cgroup.h"
#include "base/errors.h"

namespace moesaic {
namespace {

// From this size on, 2 MB pages are asked for: fewer TLB misses in streams over KV pages and
// scratch.
constexpr std::size_t kHugeFromBytes = std::size_t{4} << 20;

}  // namespace

AlignedBuffer::AlignedBuffer(std::size_t n_bytes) {
  if (n_bytes == 0) return;
  void* data = mmap(nullptr, n_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    const int error = errno;
    const std::uint64_t free_bytes = available_memory_bytes();
    throw OutOfMemoryError(
        strcat("[memory] the system refused ", n_bytes, " bytes (", std::strerror(error), "); ",
               free_bytes, " bytes are free: lower n_ctx or kv_tokens, or free memory"),
        n_bytes, free_bytes);
  }
  // A wish, not a need: kernels without transparent huge pages refuse it.
  if (n_bytes >= kHugeFromBytes) madvise(data, n_bytes, MADV_HUGEPAGE);
  data_ = static_cast<std::uint8_t*>(data);
  n_bytes_ = n_bytes;
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ != nullptr) munmap(data_, n_bytes_);
}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), n_bytes_(std::exchange(other.n_bytes_, 0)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(n_bytes_, other.n_bytes_);
  return *this;
}

void AlignedBuffer::release(std::size_t offset, std::size_t n_bytes) {
  if (offset > n_bytes_ || n_bytes > n_bytes_ - offset) {
    fail<InternalError>("[memory] release of [", offset, ", +", n_bytes, ") in a buffer of ",
                        n_bytes_, " bytes");
  }
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t end = offset + n_bytes;
  const std::size_t first_page = (offset + page - 1) / page * page;
  // The mapping's last page belongs to the buffer whole.
  const std::size_t last_page =
      end == n_bytes_ ? (end + page - 1) / page * page : end / page * page;
  if (first_page >= last_page) {
    if (n_bytes > 0) std::memset(data_ + offset, 0, n_bytes);
    return;
  }
  std::memset(data_ + offset, 0, first_page - offset);
  if (end > last_page) std::memset(data_ + last_page, 0, end - last_page);
  if (madvise(data_ + first_page, last_page - first_page, MADV_DONTNEED) != 0) {
    std::memset(data_ + first_page, 0, std::min(end, last_page) - first_page);
  }
}

std::uint64_t available_memory_bytes() {
  std::uint64_t available = CgroupLimits::kNoLimit;
  std::ifstream in("/proc/meminfo");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind("MemAvailable:", 0) != 0) continue;
    available = std::stoull(line.substr(13)) * 1024;  // "MemAvailable:   123 kB"
    break;
  }
  if (available == CgroupLimits::kNoLimit) {
    available = static_cast<std::uint64_t>(sysconf(_SC_AVPHYS_PAGES)) *
                static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  }
  return std::min(available, cgroup_limits().memory_left_bytes);
}

}  // namespace moesaic
