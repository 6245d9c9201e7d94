// What belongs to one process: objects that a forked child must leave alone, secrets in the
// environment, core dumps. Not for starting processes.
#pragma once

#include <unistd.h>

#include <optional>
#include <string>

namespace moesaic {

// Remembers the process that made an object. A child made by fork() has the object's memory but
// none of its threads, and its mutexes may be held by threads that do not exist there: the child
// neither uses nor destroys such an object.
class OwningProcess {
 public:
  bool is_current() const { return ::getpid() == pid_; }

 private:
  pid_t pid_ = ::getpid();
};

// A deleter for objects with threads: a forked child leaves them as they are.
struct DeleteInOwningProcess {
  OwningProcess process;
  template <typename T>
  void operator()(T* object) const {
    if (process.is_current()) delete object;
  }
};

// Takes a variable out of the environment: its value, or nothing when it is not set. The bytes are
// overwritten too, also those that the kernel shows in /proc/PID/environ, which unsetenv() leaves
// there for the life of the process. Not while another thread uses the environment.
std::optional<std::string> take_environment(const std::string& name);

// From now on this process leaves no core dump, and only root can attach to it or read its memory
// (PR_SET_DUMPABLE 0). For processes that hold other people's prompts and keys.
void forbid_core_dumps();

}  // namespace moesaic
