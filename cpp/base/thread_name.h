// Names of threads, as `top -H`, perf and debuggers show them: without one a thread has the name of
// whoever started it.
#pragma once

#include <pthread.h>

namespace moesaic {

// name: at most 15 characters, or the system refuses it.
inline void name_this_thread(const char* name) noexcept {
  pthread_setname_np(pthread_self(), name);
}

}  // namespace moesaic
