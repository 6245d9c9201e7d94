// Writes a file so that its name shows either what was there before or the whole new content, never
// a part. For files that users name: models, sessions. Not for the slice cache, whose file
// operations are replaceable in tests (cluster/weights/file_ops.h).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <string>

namespace moesaic {

// The bytes go to a new file beside the target (created exclusively under a random name, readable
// by its owner only) that commit() renames over the target. A symbolic link at `path` stays: the
// file that it leads to is replaced. A target that exists and is not a regular file (a pipe, a
// device, a directory, an open descriptor as in /dev/stdout) is refused.
class OutputFile {
 public:
  enum class Access {
    kAsUsual,    // an existing target's mode; of a new file what the umask leaves of 0666
    kOwnerOnly,  // 0600
  };
  // `where` begins the messages of the IoErrors that all members throw: "Session.save".
  OutputFile(std::string where, const std::string& path, Access access);
  ~OutputFile();  // without commit(): removes the new file
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write(std::span<const std::uint8_t> bytes);
  void commit();  // flushes to disk, then renames; at most once

 private:
  void refuse_irregular() const;
  void create();
  [[noreturn]] void refuse(const std::string& path, const char* doing, int error) const;

  std::string where_;
  std::string target_;  // `path` with the links at its end followed
  std::string temporary_;
  Access access_;
  mode_t mode_ = 0;  // for the finished file
  int fd_ = -1;
};

}  // namespace moesaic
