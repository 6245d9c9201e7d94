// The mapping, and the signal handler behind it. The handler may be called on any thread in the
// middle of anything: it touches nothing but atomics of a fixed table, and calls mmap and
// sigaction, which on Linux are plain system calls.
#include "base/mapped_file.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "base/errors.h"

namespace moesaic {
namespace {

// A mapping as the handler knows it. [damaged_begin, damaged_end) holds every page that was
// replaced; empty while nothing was.
struct Slot {
  std::atomic<std::uintptr_t> begin{0};  // 0: the slot is free
  std::atomic<std::uintptr_t> end{0};
  std::atomic<std::uintptr_t> damaged_begin{UINTPTR_MAX};
  std::atomic<std::uintptr_t> damaged_end{0};
  std::atomic<int> n_faults{0};
};

constexpr int kSlots = 4096;
// After so many single pages the rest of a mapping is replaced at once: a file that was cut off has
// no more of them, and each page costs a system call.
constexpr int kSingleFaults = 64;

std::array<Slot, kSlots> slots;
std::atomic<int> n_slots_used{0};  // slots from here on have never been used
std::mutex slots_mutex;            // of those that take and free slots

struct sigaction handler_before;  // ours; written before the handler is installed
std::atomic<bool> is_chaining{false};
const auto kPageBytes = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));

void lower(std::atomic<std::uintptr_t>& value, std::uintptr_t to) {
  std::uintptr_t now = value.load();
  while (to < now && !value.compare_exchange_weak(now, to)) {
  }
}

void raise_to(std::atomic<std::uintptr_t>& value, std::uintptr_t to) {
  std::uintptr_t now = value.load();
  while (to > now && !value.compare_exchange_weak(now, to)) {
  }
}

// True when the address lies in a mapping of ours, and can be read now.
bool replace_page(std::uintptr_t address) {
  const int n = n_slots_used.load();
  for (int i = 0; i < n; ++i) {
    Slot& slot = slots[static_cast<std::size_t>(i)];
    const std::uintptr_t begin = slot.begin.load();
    const std::uintptr_t end = slot.end.load();
    if (begin == 0 || address < begin || address >= end) continue;
    const std::uintptr_t page = address / kPageBytes * kPageBytes;
    const std::uintptr_t last = (end + kPageBytes - 1) / kPageBytes * kPageBytes;
    const bool all = slot.n_faults.fetch_add(1) >= kSingleFaults;
    const std::uintptr_t replaced_end = all ? last : page + kPageBytes;
    // Marked first: a reader of a zero must find the mark.
    lower(slot.damaged_begin, page);
    raise_to(slot.damaged_end, replaced_end);
    void* const at = reinterpret_cast<void*>(page);
    return ::mmap(at, replaced_end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
                  0) == at;
  }
  return false;
}

// Not a fault of ours: as if this module were not there.
void pass_on(int signal, siginfo_t* info, void* context) {
  const bool again = is_chaining.exchange(true);
  const bool has_handler =
      (handler_before.sa_flags & SA_SIGINFO) != 0 ||
      (handler_before.sa_handler != SIG_DFL && handler_before.sa_handler != SIG_IGN);
  if (again || !has_handler) {
    struct sigaction fatal {};
    fatal.sa_handler = SIG_DFL;
    ::sigaction(signal, &fatal, nullptr);
    if (info->si_code <= 0) ::raise(signal);  // sent, not caused: it does not come again by itself
    return;
  }
  if ((handler_before.sa_flags & SA_SIGINFO) != 0) {
    handler_before.sa_sigaction(signal, info, context);
  } else {
    handler_before.sa_handler(signal);
  }
  is_chaining = false;
}

void on_bus_error(int signal, siginfo_t* info, void* context) {
  const int error = errno;
  if (info->si_code <= 0 || !replace_page(reinterpret_cast<std::uintptr_t>(info->si_addr))) {
    pass_on(signal, info, context);
  }
  errno = error;
}

// Puts the handler in place, also where another one has taken it since (faulthandler.enable()).
void install_handler() {
  static std::mutex mutex;
  const std::scoped_lock lock(mutex);
  struct sigaction now {};
  ::sigaction(SIGBUS, nullptr, &now);
  if ((now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == on_bus_error) return;
  handler_before = now;
  struct sigaction ours {};
  ours.sa_sigaction = on_bus_error;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigemptyset(&ours.sa_mask);
  ::sigaction(SIGBUS, &ours, nullptr);
}

int take_slot(std::span<const std::uint8_t> bytes, const std::string& path) {
  const std::scoped_lock lock(slots_mutex);
  for (int i = 0; i < kSlots; ++i) {
    Slot& slot = slots[static_cast<std::size_t>(i)];
    if (slot.begin.load() != 0) continue;
    slot.damaged_begin = UINTPTR_MAX;
    slot.damaged_end = 0;
    slot.n_faults = 0;
    const auto begin = reinterpret_cast<std::uintptr_t>(bytes.data());
    slot.end = begin + bytes.size();
    slot.begin = begin;
    n_slots_used = std::max(n_slots_used.load(), i + 1);
    return i;
  }
  fail<IoError>("[file] ", path, ": ", kSlots,
                " files are mapped by this process already; close some models");
}

void free_slot(int slot) {
  const std::scoped_lock lock(slots_mutex);
  slots[static_cast<std::size_t>(slot)].begin = 0;
}

[[noreturn]] void refuse(const std::string& path, const char* doing) {
  const int error = errno;
  fail<IoError>("[file] ", path, ": cannot ", doing, ": ", std::strerror(error));
}

}  // namespace

MappedFile::MappedFile(int fd, std::size_t n_bytes, std::string path) : path_(std::move(path)) {
  if (n_bytes == 0) return;
  fd_ = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (fd_ < 0) refuse(path_, "keep it open");
  try {
    mapped_ = state();
    void* data = ::mmap(nullptr, n_bytes, PROT_READ, MAP_SHARED, fd_, 0);
    if (data == MAP_FAILED) refuse(path_, "map it");
    bytes_ = {static_cast<const std::uint8_t*>(data), n_bytes};
    install_handler();
    slot_ = take_slot(bytes_, path_);
  } catch (...) {
    if (!bytes_.empty()) ::munmap(const_cast<std::uint8_t*>(bytes_.data()), bytes_.size());
    ::close(fd_);
    throw;
  }
}

MappedFile::~MappedFile() {
  if (fd_ < 0) return;
  // Unmapped while the slot is still taken: a thread that reads on is an error of ours, and must
  // not be given zeros at an address that may be another mapping by then.
  ::munmap(const_cast<std::uint8_t*>(bytes_.data()), bytes_.size());
  free_slot(slot_);
  ::close(fd_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : bytes_(std::exchange(other.bytes_, {})),
      path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      slot_(std::exchange(other.slot_, -1)),
      mapped_(other.mapped_) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(bytes_, other.bytes_);
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(slot_, other.slot_);
  std::swap(mapped_, other.mapped_);
  return *this;
}

void MappedFile::check_read(std::size_t offset, std::size_t n_bytes) const {
  if (slot_ < 0) return;
  const Slot& slot = slots[static_cast<std::size_t>(slot_)];
  const std::uintptr_t damaged_end = slot.damaged_end.load();
  if (damaged_end == 0) return;
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(bytes_.data()) + offset;
  const std::uintptr_t damaged_begin = slot.damaged_begin.load();
  if (begin >= damaged_end || begin + n_bytes <= damaged_begin) return;
  const std::size_t at = damaged_begin - reinterpret_cast<std::uintptr_t>(bytes_.data());
  struct stat info {};
  const bool cut = ::fstat(fd_, &info) == 0 && static_cast<std::uint64_t>(info.st_size) <= at;
  fail<IoError>("[file] ", path_, ": byte ", at, " could not be read: ",
                cut ? strcat("the file was cut off to ", info.st_size, " bytes while it was in use")
                    : std::string("the disk gave an error"),
                "; nothing computed from it is given out: restore the file, then open or load it "
                "again");
}

void MappedFile::check_intact() const {
  if (slot_ < 0) return;
  install_handler();
  check_read(0, bytes_.size());
  const State now = state();
  if (now == mapped_) return;
  fail<IoError>("[file] ", path_, ": it was changed while it was in use (",
                now.size != mapped_.size ? strcat("now ", now.size, " bytes, it had ", mapped_.size)
                                         : std::string("its time of modification is another"),
                "); open or load it again. To replace a file that is in use, write the new one "
                "beside it and rename it over the old");
}

MappedFile::State MappedFile::state() const {
  struct stat info {};
  if (::fstat(fd_, &info) != 0) refuse(path_, "look at it");
  return {static_cast<std::uint64_t>(info.st_size),
          std::int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec};
}

}  // namespace moesaic
