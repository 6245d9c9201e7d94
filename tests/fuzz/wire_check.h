// What both wire fuzzers hold decode() to: ProtocolError or a message that spells the same bytes
// again, without an allocation above twice the input and 1 MB; all of an input within 10 ms.
#pragma once

#include <sanitizer/allocator_interface.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <span>
#include <variant>
#include <vector>

#include "base/errors.h"
#include "wire/messages.h"

namespace moesaic::wire::fuzz {

inline std::size_t g_largest_allocation = 0;

// Sanitizers at -O1 slow the code down about so much; measured in CPU time, so that a busy machine
// does not matter.
inline constexpr double kSlowdown = 5;

[[noreturn]] inline void violated(const char* what) {
  std::fprintf(stderr, "property violated: %s\n", what);
  std::abort();
}

inline double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Of one input. Asking for the time of the processor is a system call: not for each message.
class Stopwatch {
 public:
  Stopwatch() = default;
  ~Stopwatch() {
    if (cpu_seconds() - begin_ > 0.010 * kSlowdown) violated("more than 10 ms");
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;

 private:
  double begin_ = cpu_seconds();
};

inline void install_hooks() {
  __sanitizer_install_malloc_and_free_hooks(
      [](const volatile void*, std::size_t n_bytes) {
        g_largest_allocation = std::max(g_largest_allocation, n_bytes);
      },
      [](const volatile void*) {});
}

// True when the body is a message.
inline bool check_body(MessageType type, std::span<const std::uint8_t> body) {
  // What is looked at is at its own end, so that a read past it is seen.
  const std::vector<std::uint8_t> own(body.begin(), body.end());
  g_largest_allocation = 0;
  Decoded decoded;
  try {
    decoded = decode(type, own);
  } catch (const ProtocolError&) {
    if (g_largest_allocation > 2 * own.size() + (1U << 20)) violated("too large an allocation");
    return false;
  }
  if (g_largest_allocation > 2 * own.size() + (1U << 20)) violated("too large an allocation");
  std::vector<std::uint8_t> again =
      std::visit([](const auto& message) { return encode(message); }, decoded.message);
  again.insert(again.end(), decoded.payload.begin(), decoded.payload.end());
  if (again != own) violated("a message has two spellings");
  return true;
}

}  // namespace moesaic::wire::fuzz
