// A flag that asks running work to stop. Work checks it between pieces of at most some 10 ms and
// throws CancelledError.
#pragma once

#include <atomic>

#include "base/errors.h"

namespace moesaic {

class CancelFlag {
 public:
  void set() { flag_.store(true, std::memory_order_relaxed); }
  bool is_set() const { return flag_.load(std::memory_order_relaxed); }
  void check() const {
    if (is_set()) throw CancelledError("cancelled by the caller");
  }

 private:
  std::atomic<bool> flag_{false};
};

}  // namespace moesaic
