// A file mapped read-only whose faults do not end the process. Reading a page that the file no
// longer has (it was cut off) or that the disk cannot read raises SIGBUS; a handler of this module
// puts a page of zeros in its place and marks the mapping as damaged. Compute code so runs on, and
// its caller asks check_intact() before it uses a result: none made of zeros may leave. Not for
// writing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace moesaic {

class MappedFile {
 public:
  MappedFile() = default;
  // Maps the first n_bytes of fd, which it keeps a copy of. `path` stands in messages. Throws
  // IoError. n_bytes = 0 maps nothing.
  MappedFile(int fd, std::size_t n_bytes, std::string path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::uint8_t> bytes() const { return bytes_; }
  // Of the file that is mapped, whatever has its name now; -1 when nothing is mapped.
  int descriptor() const { return fd_; }

  // Throws IoError when a page of [offset, offset + n_bytes) that has been read was not there.
  void check_read(std::size_t offset, std::size_t n_bytes) const;
  // The same for all of it; and IoError when the file has been written to or cut off since it was
  // mapped (its size or its time of modification are others). A file that was replaced under its
  // name is another file: the mapping goes on showing the old one. Also takes SIGBUS back from
  // handlers that were installed meanwhile (faulthandler.enable()), so ask before and after a long
  // computation. Costs two system calls.
  void check_intact() const;

 private:
  // What changes when a file is written to. Not its time of change: moving it changes that too.
  struct State {
    std::uint64_t size = 0;
    std::int64_t modified_ns = 0;
    bool operator==(const State&) const = default;
  };
  State state() const;  // throws IoError

  std::span<const std::uint8_t> bytes_;
  std::string path_;
  int fd_ = -1;
  int slot_ = -1;  // in the table that the signal handler reads
  State mapped_;
};

}  // namespace moesaic
