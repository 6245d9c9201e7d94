// See private_folder.h.
#include "base/private_folder.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ios>
#include <memory>

#include "base/errors.h"

namespace moesaic {

std::string replaceable_by_others(const std::string& folder) {
  const std::unique_ptr<char, decltype(&std::free)> real(::realpath(folder.c_str(), nullptr),
                                                         &std::free);
  if (real == nullptr) return "";
  for (std::string path = real.get(); !path.empty();
       path = path == "/" ? "" : path.substr(0, std::max<std::size_t>(path.find_last_of('/'), 1))) {
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0 || (info.st_mode & S_ISVTX) != 0) continue;
    const bool is_own_group = info.st_gid == 0 || info.st_gid == ::getegid();
    const bool by_all = (info.st_mode & S_IWOTH) != 0;
    if (!by_all && ((info.st_mode & S_IWGRP) == 0 || is_own_group)) continue;
    return strcat("others may write to ", path, " (mode ", std::oct, info.st_mode & 07777U,
                  std::dec, "): run chmod ", by_all ? "go-w" : "g-w",
                  " on it, or name another folder");
  }
  return "";
}

}  // namespace moesaic
