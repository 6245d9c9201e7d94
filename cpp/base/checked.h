// Checked integer arithmetic for sizes that come from a file, a peer or a caller: wraps nothing,
// throws FormatError.
#pragma once

#include <cstdint>

#include "base/errors.h"

namespace moesaic {

inline std::uint64_t checked_add(std::uint64_t a, std::uint64_t b, const char* what) {
  std::uint64_t sum = 0;
  if (__builtin_add_overflow(a, b, &sum)) {
    fail<FormatError>(what, ": ", a, " + ", b, " does not fit 64 bits");
  }
  return sum;
}

inline std::uint64_t checked_mul(std::uint64_t a, std::uint64_t b, const char* what) {
  std::uint64_t product = 0;
  if (__builtin_mul_overflow(a, b, &product)) {
    fail<FormatError>(what, ": ", a, " x ", b, " does not fit 64 bits");
  }
  return product;
}

// Smallest multiple of `alignment` (a power of two) that is >= value.
inline std::uint64_t checked_align(std::uint64_t value, std::uint64_t alignment, const char* what) {
  return checked_add(value, alignment - 1, what) & ~(alignment - 1);
}

}  // namespace moesaic
