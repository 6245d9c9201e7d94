// MAP_SHARED and read-only: the page cache is the only copy, shared by every process that has the
// file open. Reads that the file no longer has, or the disk cannot give, are answered by
// base/mapped_file.h.
#include "gguf/mapping.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/errors.h"

namespace moesaic::gguf {
namespace {

[[noreturn]] void refuse(const std::string& path, const char* doing, int error) {
  fail<IoError>("[gguf] ", path, ": cannot ", doing, ": ", std::strerror(error));
}

// The first .gguf file of a folder by name, or "".
std::string gguf_in(const std::string& folder) {
  std::string best;
  DIR* dir = opendir(folder.c_str());
  if (dir == nullptr) return best;
  while (const dirent* entry = readdir(dir)) {
    const std::string name = entry->d_name;
    if (name.ends_with(".gguf") && (best.empty() || name < best)) best = name;
  }
  closedir(dir);
  return best;
}

}  // namespace

Mapping::Mapping(const std::string& path) {
  if (path.empty() || path.find('\0') != std::string::npos) {
    fail<IoError>("[gguf] cannot open a path that is empty or has a zero byte in it");
  }
  // Not blocking, so that a pipe by this name cannot hang us; it is refused below.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) refuse(path, "open", errno);
  struct stat info {};
  if (fstat(fd, &info) != 0) {
    const int error = errno;
    close(fd);
    refuse(path, "look at it", error);
  }
  if (!S_ISREG(info.st_mode)) {
    close(fd);
    if (!S_ISDIR(info.st_mode)) fail<IoError>("[gguf] ", path, ": is not a regular file");
    const std::string inside = gguf_in(path);
    fail<IoError>("[gguf] ", path, ": is a folder, need a .gguf file",
                  inside.empty() ? std::string() : strcat("; in it: ", inside));
  }
  const auto n_bytes = static_cast<std::size_t>(info.st_size);
  if (n_bytes == 0) {  // mmap refuses it; parse_part names it
    close(fd);
    return;
  }
  try {
    file_ = MappedFile(fd, n_bytes, path);
  } catch (...) {
    close(fd);
    throw;
  }
  close(fd);
}

}  // namespace moesaic::gguf
