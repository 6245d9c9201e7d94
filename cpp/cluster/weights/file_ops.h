// The few operations by which weights reach the disk, behind an interface so that tests can make
// any of them fail. Each either does its whole work or throws FileError; what can be short or
// interrupted is repeated. Not for reading weights that are in use: those are mapped.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/errors.h"

namespace moesaic::cluster {

class FileError : public IoError {  // with errno, to tell a full disk from a broken one
 public:
  FileError(const std::string& message, int number) : IoError(message), error(number) {}
  int error;
};

// An open file's descriptor.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  ~Fd() { reset(); }
  Fd(Fd&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  Fd& operator=(Fd&& other) noexcept;
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void reset();

 private:
  int fd_ = -1;
};

// The system's calls themselves (-1 and errno): what tests override.
class FileOps {
 public:
  virtual ~FileOps() = default;
  virtual int open(const char* path, int flags, unsigned mode);
  virtual std::int64_t pwrite(int fd, const void* bytes, std::size_t n_bytes, std::uint64_t offset);
  virtual std::int64_t pread(int fd, void* bytes, std::size_t n_bytes, std::uint64_t offset);
  virtual int allocate(int fd, std::uint64_t n_bytes);  // grows the file, with its blocks
  virtual int truncate(int fd, std::uint64_t n_bytes);
  virtual int sync(int fd);
  // Begins to write a range of the file out, or waits until it is: advice only.
  virtual void flush(int fd, std::uint64_t offset, std::uint64_t n_bytes, bool wait);
  virtual int rename(const char* from, const char* to);
  virtual std::uint64_t free_bytes(const char* folder);  // 0 when it cannot be told
  // What a cache leaves free for the file system's other users: 5 % of it.
  virtual std::uint64_t reserve_bytes(const char* folder);
  // Names the run of the kernel since its start: in the same one, what was written is there,
  // whatever has become of the writer. Empty when it cannot be told.
  virtual std::string boot_id();
};

// `path` stands in messages.
Fd open_file(FileOps& ops, const std::string& path, int flags);
void write_at(FileOps& ops, int fd, std::span<const std::uint8_t> bytes, std::uint64_t offset,
              const std::string& path);
// Throws also when the file ends too early.
void read_at(FileOps& ops, int fd, std::span<std::uint8_t> bytes, std::uint64_t offset,
             const std::string& path);
// Makes the file n_bytes long. Where the file system cannot reserve blocks the length alone is set.
void reserve_file(FileOps& ops, int fd, std::uint64_t n_bytes, const std::string& path);
void truncate_file(FileOps& ops, int fd, std::uint64_t n_bytes, const std::string& path);
void sync_file(FileOps& ops, int fd, const std::string& path);
// Renames and makes the new name last (fsync of the folder).
void rename_file(FileOps& ops, const std::string& from, const std::string& to);
// A small file: written under a temporary name, synced, renamed; nothing is left when it fails.
void replace_file(FileOps& ops, const std::string& path, std::span<const std::uint8_t> bytes);

// Removes a temporary file of replace_file() unless a process is writing it. Throws IoError.
void remove_if_abandoned(FileOps& ops, const std::string& path);

// Locks a file (flock), which is made when it is not there; given back with the descriptor, or with
// the process. Empty: somebody else has it.
Fd try_lock_file(FileOps& ops, const std::string& path);

void make_folder(const std::string& path);  // and its parents; mode 0700 for new ones

}  // namespace moesaic::cluster
