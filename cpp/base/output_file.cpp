// See output_file.h.
#include "base/output_file.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <utility>

#include "base/errors.h"

namespace moesaic {
namespace {

constexpr int kMaxLinks = 40;          // as the kernel follows them
constexpr std::size_t kMaxStem = 200;  // of a name's 255 bytes: the suffix takes some more

// "folder/" with its slash, or "" for the current directory.
std::string folder_of(const std::string& path) {
  return path.substr(0, path.find_last_of('/') + 1);
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISCHR(mode) || S_ISBLK(mode)) return "a device";
  if (S_ISSOCK(mode)) return "a socket";
  return "not a regular file";
}

// The links of /proc lead to open descriptors and not, or not only, to names.
bool is_in_proc(const struct stat& link) {
  struct stat proc {};
  return ::stat("/proc/self", &proc) == 0 && proc.st_dev == link.st_dev;
}

std::string random_suffix() {
  std::array<unsigned char, 8> bytes{};
  if (::getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
    fail<IoError>("[file] the system gives no random numbers: ", std::strerror(errno));
  }
  std::string text = ".tmp.";
  for (const unsigned char byte : bytes) {
    std::array<char, 3> digits{};
    std::snprintf(digits.data(), digits.size(), "%02x", static_cast<unsigned>(byte));
    text += digits.data();
  }
  return text;
}

}  // namespace

OutputFile::OutputFile(std::string where, const std::string& path, Access access)
    : where_(std::move(where)), target_(path), access_(access) {
  if (path.empty() || path.find('\0') != std::string::npos) {
    fail<IoError>("[", where_, "] path: need the name of a file, got ",
                  path.empty() ? "an empty one" : "one with a zero byte");
  }
  struct stat info {};
  int n_links = 0;
  while (::lstat(target_.c_str(), &info) == 0 && S_ISLNK(info.st_mode)) {
    if (is_in_proc(info)) {
      fail<IoError>("[", where_, "] ", path,
                    ": leads to an open file descriptor, which a new file cannot replace: name a "
                    "regular file");
    }
    std::array<char, PATH_MAX + 1> text{};
    const ssize_t n = ::readlink(target_.c_str(), text.data(), text.size());
    if (n < 0) refuse(target_, "follow the link", errno);
    if (++n_links > kMaxLinks || n > PATH_MAX) refuse(path, "follow the link", ELOOP);
    const std::string to(text.data(), static_cast<std::size_t>(n));
    target_ = to.starts_with('/') ? to : folder_of(target_) + to;
  }
  refuse_irregular();
  create();
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void OutputFile::refuse(const std::string& path, const char* doing, int error) const {
  fail<IoError>("[", where_, "] ", path, ": cannot ", doing, ": ", std::strerror(error));
}

void OutputFile::refuse_irregular() const {
  struct stat info {};
  if (::stat(target_.c_str(), &info) != 0) {
    if (errno != ENOENT) refuse(target_, "examine it", errno);
    if (target_.ends_with('/')) refuse(target_, "create a file there", EISDIR);
    return;
  }
  if (!S_ISREG(info.st_mode)) {
    fail<IoError>("[", where_, "] ", target_, ": is ", kind_of(info.st_mode),
                  ", need a regular file or a new name");
  }
}

// The kernel gives the new file the mode that its umask and folder ask for. Until the file is whole
// only its owner may read it.
void OutputFile::create() {
  const std::string folder = folder_of(target_);
  const std::string stem = target_.substr(folder.size()).substr(0, kMaxStem);
  const mode_t wanted = access_ == Access::kOwnerOnly ? 0600 : 0666;
  for (int tries = 0; fd_ < 0; ++tries) {
    std::string name = folder + stem + random_suffix();
    fd_ = ::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, wanted);
    if (fd_ < 0 && (errno != EEXIST || tries == 16)) refuse(name, "create it", errno);
    if (fd_ >= 0) temporary_ = std::move(name);
  }
  struct stat created {};
  struct stat replaced {};
  // A constructor that throws leaves no destructor to clean up.
  if (::fstat(fd_, &created) != 0 || ::fchmod(fd_, 0600) != 0) {
    const int error = errno;
    ::close(fd_);
    ::unlink(temporary_.c_str());
    refuse(temporary_, "set its mode", error);
  }
  mode_ = created.st_mode & 0777U;
  if (access_ == Access::kAsUsual && ::stat(target_.c_str(), &replaced) == 0) {
    mode_ = replaced.st_mode & 0777U;
  }
}

void OutputFile::write(std::span<const std::uint8_t> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) refuse(temporary_, "write", errno);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

void OutputFile::commit() {
  if (::fchmod(fd_, mode_) != 0) refuse(temporary_, "set its mode", errno);
  if (::fsync(fd_) != 0) refuse(temporary_, "flush to disk", errno);
  if (::close(std::exchange(fd_, -1)) != 0) refuse(temporary_, "close", errno);
  refuse_irregular();  // it may have become one
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) {
    refuse(target_, "rename the finished file to it", errno);
  }
  temporary_.clear();
  // The directory entry lasts once the directory is flushed. File systems that cannot do this say
  // so; the file itself is safe by then.
  const std::string folder = folder_of(target_);
  const int fd = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  static_cast<void>(::fsync(fd));
  ::close(fd);
}

}  // namespace moesaic
