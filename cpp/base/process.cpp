// Environment and dumps; see process.h.
#include "base/process.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/resource.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

extern char** environ;  // NOLINT: POSIX has it in no header that g++ offers without _GNU_SOURCE

namespace moesaic {
namespace {

// The bytes that the kernel shows as /proc/self/environ: [begin, end), or nothing known (0, 0).
// Fields 50 and 51 of /proc/self/stat, see proc_pid_stat(5); the name in field 2 may hold spaces.
std::pair<std::uintptr_t, std::uintptr_t> environment_block() {
  const int fd = ::open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {0, 0};
  char text[4096];
  const ssize_t n = ::read(fd, text, sizeof text - 1);
  ::close(fd);
  if (n <= 0) return {0, 0};
  text[n] = '\0';
  const char* at = std::strrchr(text, ')');
  std::uintptr_t block[2] = {0, 0};
  for (int field = 2; at != nullptr && field < 51; ++field) {
    at = std::strchr(at + 1, ' ');
    if (at != nullptr && field + 1 >= 50) {
      block[field + 1 - 50] = static_cast<std::uintptr_t>(std::strtoull(at, nullptr, 10));
    }
  }
  if (at == nullptr || block[0] >= block[1]) return {0, 0};
  return {block[0], block[1]};
}

void wipe(char* bytes, std::size_t n) { ::explicit_bzero(bytes, n); }

}  // namespace

std::optional<std::string> take_environment(const std::string& name) {
  const char* found = std::getenv(name.c_str());
  std::optional<std::string> value;
  if (found != nullptr) value = found;
  const std::string prefix = name + "=";
  // The strings that the variables of this moment point to ...
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    if (std::strncmp(*entry, prefix.c_str(), prefix.size()) != 0) continue;
    wipe(*entry + prefix.size(), std::strlen(*entry + prefix.size()));
  }
  ::unsetenv(name.c_str());
  // ... and those that the process was started with, which may be others by now.
  const auto [begin, end] = environment_block();
  for (std::uintptr_t at = begin; at < end;) {
    char* const entry = reinterpret_cast<char*>(at);
    const std::size_t n = ::strnlen(entry, end - at);
    if (n > prefix.size() && std::memcmp(entry, prefix.c_str(), prefix.size()) == 0) {
      if (!value) value = std::string(entry + prefix.size(), n - prefix.size());
      wipe(entry + prefix.size(), n - prefix.size());
    }
    at += n + 1;
  }
  if (value && value->empty()) value.reset();
  return value;
}

void forbid_core_dumps() {
  // The limit alone does not stop dumps that go through a pipe (core_pattern with a bar).
  (void)::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
  const rlimit none{0, 0};
  (void)::setrlimit(RLIMIT_CORE, &none);
}

}  // namespace moesaic
