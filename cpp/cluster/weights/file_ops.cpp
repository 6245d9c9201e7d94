// See file_ops.h.
#include "cluster/weights/file_ops.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <system_error>

#include "base/digest.h"

namespace moesaic::cluster {
namespace {

[[noreturn]] void refuse(const std::string& path, const char* doing, int error) {
  throw FileError(strcat("[weights] ", path, ": cannot ", doing, ": ", std::strerror(error)),
                  error);
}

}  // namespace

Fd& Fd::operator=(Fd&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = other.fd_;
    other.fd_ = -1;
  }
  return *this;
}

void Fd::reset() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

int FileOps::open(const char* path, int flags, unsigned mode) { return ::open(path, flags, mode); }
std::int64_t FileOps::pwrite(int fd, const void* bytes, std::size_t n_bytes, std::uint64_t offset) {
  return ::pwrite(fd, bytes, n_bytes, static_cast<off_t>(offset));
}
std::int64_t FileOps::pread(int fd, void* bytes, std::size_t n_bytes, std::uint64_t offset) {
  return ::pread(fd, bytes, n_bytes, static_cast<off_t>(offset));
}
int FileOps::allocate(int fd, std::uint64_t n_bytes) {
  return ::fallocate(fd, 0, 0, static_cast<off_t>(n_bytes));
}
int FileOps::truncate(int fd, std::uint64_t n_bytes) {
  return ::ftruncate(fd, static_cast<off_t>(n_bytes));
}
int FileOps::sync(int fd) { return ::fsync(fd); }
void FileOps::flush(int fd, std::uint64_t offset, std::uint64_t n_bytes, bool wait) {
  constexpr unsigned kWait = SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WAIT_AFTER;
  static_cast<void>(::sync_file_range(fd, static_cast<off_t>(offset), static_cast<off_t>(n_bytes),
                                      SYNC_FILE_RANGE_WRITE | (wait ? kWait : 0U)));
}
int FileOps::rename(const char* from, const char* to) { return ::rename(from, to); }

std::uint64_t FileOps::free_bytes(const char* folder) {
  struct statvfs info {};
  return ::statvfs(folder, &info) == 0 ? std::uint64_t{info.f_bavail} * info.f_frsize : 0;
}

std::uint64_t FileOps::reserve_bytes(const char* folder) {
  struct statvfs info {};
  return ::statvfs(folder, &info) == 0 ? std::uint64_t{info.f_blocks} * info.f_frsize / 20 : 0;
}

std::string FileOps::boot_id() {
  std::ifstream in("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(in, id);
  return id;
}

Fd open_file(FileOps& ops, const std::string& path, int flags) {
  Fd fd(ops.open(path.c_str(), flags | O_CLOEXEC, 0600));
  if (!fd) refuse(path, "open", errno);
  return fd;
}

void write_at(FileOps& ops, int fd, std::span<const std::uint8_t> bytes, std::uint64_t offset,
              const std::string& path) {
  while (!bytes.empty()) {
    const std::int64_t n = ops.pwrite(fd, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) refuse(path, "write", n < 0 ? errno : EIO);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
}

void read_at(FileOps& ops, int fd, std::span<std::uint8_t> bytes, std::uint64_t offset,
             const std::string& path) {
  while (!bytes.empty()) {
    const std::int64_t n = ops.pread(fd, bytes.data(), bytes.size(), offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) refuse(path, "read", errno);
    if (n == 0) {
      throw FileError(strcat("[weights] ", path, ": ends at byte ", offset, ", need ", bytes.size(),
                             " more: it has been cut off"),
                      EIO);
    }
    bytes = bytes.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
}

void reserve_file(FileOps& ops, int fd, std::uint64_t n_bytes, const std::string& path) {
  while (ops.allocate(fd, n_bytes) != 0) {
    if (errno == EINTR) continue;
    if (errno != EOPNOTSUPP && errno != ENOSYS) refuse(path, "reserve room", errno);
    break;
  }
  truncate_file(ops, fd, n_bytes, path);
}

void truncate_file(FileOps& ops, int fd, std::uint64_t n_bytes, const std::string& path) {
  if (ops.truncate(fd, n_bytes) != 0) refuse(path, "set its length", errno);
}

void sync_file(FileOps& ops, int fd, const std::string& path) {
  if (ops.sync(fd) != 0) refuse(path, "flush to disk", errno);
}

void rename_file(FileOps& ops, const std::string& from, const std::string& to) {
  if (ops.rename(from.c_str(), to.c_str()) != 0) refuse(from, "rename", errno);
  const std::string folder = std::filesystem::path(to).parent_path().string();
  const Fd fd = open_file(ops, folder, O_RDONLY | O_DIRECTORY);
  // Some file systems cannot sync a folder; then the name is as lasting as they make it.
  if (ops.sync(fd.get()) != 0 && errno != EINVAL) refuse(folder, "flush to disk", errno);
}

namespace {

// The letter keeps it from looking like the number of a process, which earlier releases had there.
std::string temporary_name(const std::string& path) {
  std::random_device random;
  const std::uint64_t number = std::uint64_t{random()} << 32U | random();
  return strcat(path, ".tmp-r", to_hex(sha256(&number, sizeof number)).substr(0, 16));
}

// Locked for as long as it is written: an unlocked one was left by a dead process, whatever
// container or machine that was in (remove_if_abandoned).
Fd make_temporary(FileOps& ops, const std::string& path, std::string& name) {
  for (;;) {
    name = temporary_name(path);
    Fd fd = open_file(ops, name, O_WRONLY | O_CREAT | O_EXCL);
    static_cast<void>(flock(fd.get(), LOCK_EX | LOCK_NB));  // where locks are not to be had, no
                                                            // file is thought abandoned either
    struct stat info {};
    if (fstat(fd.get(), &info) != 0 || info.st_nlink > 0) return fd;  // else it was just cleaned up
  }
}

}  // namespace

void remove_if_abandoned(FileOps& ops, const std::string& path) {
  const Fd fd = open_file(ops, path, O_RDWR);
  if (flock(fd.get(), LOCK_EX | LOCK_NB) == 0) ::unlink(path.c_str());
}

void replace_file(FileOps& ops, const std::string& path, std::span<const std::uint8_t> bytes) {
  std::string temporary;
  try {
    const Fd fd = make_temporary(ops, path, temporary);
    write_at(ops, fd.get(), bytes, 0, temporary);
    sync_file(ops, fd.get(), temporary);
    rename_file(ops, temporary, path);
  } catch (const IoError&) {
    ::unlink(temporary.c_str());
    throw;
  }
}

Fd try_lock_file(FileOps& ops, const std::string& path) {
  Fd fd = open_file(ops, path, O_RDWR | O_CREAT);
  while (flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno == EINTR) continue;
    if (errno == EWOULDBLOCK) return {};
    refuse(path, "lock", errno);
  }
  return fd;
}

void make_folder(const std::string& path) {
  std::string so_far = path.starts_with('/') ? "/" : "";
  for (const std::filesystem::path& step : std::filesystem::path(path).relative_path()) {
    so_far = so_far.empty() || so_far.ends_with('/') ? so_far + step.string()
                                                     : strcat(so_far, "/", step.string());
    if (::mkdir(so_far.c_str(), 0700) != 0 && errno != EEXIST) {
      const int error = errno;
      std::error_code ignored;  // EACCES or EROFS above a folder that is there
      if (!std::filesystem::is_directory(so_far, ignored)) refuse(so_far, "make the folder", error);
    }
  }
}

}  // namespace moesaic::cluster
