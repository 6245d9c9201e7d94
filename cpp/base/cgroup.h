// What the control group (v1 or v2) of this process allows: CPU time and memory. Containers set
// these without changing the affinity mask or /proc/meminfo. Source: kernel documentation,
// admin-guide/cgroup-v1 and cgroup-v2.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

namespace moesaic {

struct CgroupLimits {
  static constexpr std::uint64_t kNoLimit = std::numeric_limits<std::uint64_t>::max();
  double cpus = 0;                             // CPU-seconds per second; 0: no quota
  std::uint64_t memory_bytes = kNoLimit;       // the tightest limit on the way to the root
  std::uint64_t memory_left_bytes = kNoLimit;  // limit minus use, page cache counted as free
};

// Reads /proc/self/cgroup and what it names under /sys/fs/cgroup; both can be replaced for tests.
// What cannot be read counts as no limit.
CgroupLimits cgroup_limits(const std::string& membership = "/proc/self/cgroup",
                           const std::string& root = "/sys/fs/cgroup");

}  // namespace moesaic
