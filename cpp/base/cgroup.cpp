// Walks from the process's own group up to the root and keeps the tightest limit. See cgroup.h.
#include "base/cgroup.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>

namespace moesaic {
namespace {

std::optional<std::string> first_line(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  if (!in || !std::getline(in, line)) return std::nullopt;
  return line;
}

// "max" (v2's word for no limit), negative numbers and rubbish give nothing.
std::optional<std::uint64_t> parse_number(const std::string& text) {
  std::istringstream in(text);
  std::int64_t value = -1;
  if (!(in >> value) || value < 0) return std::nullopt;
  return static_cast<std::uint64_t>(value);
}

std::optional<std::uint64_t> read_number(const std::string& path) {
  const std::optional<std::string> line = first_line(path);
  return line ? parse_number(*line) : std::nullopt;
}

// The sum of the named rows of a memory.stat file.
std::uint64_t read_stat(const std::string& path, const char* row_a, const char* row_b) {
  std::ifstream in(path);
  std::string name;
  std::uint64_t value = 0;
  std::uint64_t sum = 0;
  while (in >> name >> value) {
    if (name == row_a || name == row_b) sum += value;
  }
  return sum;
}

void limit_cpus(CgroupLimits& limits, std::uint64_t quota_us, std::uint64_t period_us) {
  if (quota_us == 0 || period_us == 0) return;
  const double cpus = static_cast<double>(quota_us) / static_cast<double>(period_us);
  if (limits.cpus == 0 || cpus < limits.cpus) limits.cpus = cpus;
}

void limit_memory(CgroupLimits& limits, std::optional<std::uint64_t> limit,
                  std::optional<std::uint64_t> used, std::uint64_t cache) {
  // v1 writes "no limit" as the largest page-aligned signed number.
  if (!limit || *limit >= (std::uint64_t{1} << 62)) return;
  const std::uint64_t held = used ? *used - std::min(*used, cache) : 0;
  limits.memory_bytes = std::min(limits.memory_bytes, *limit);
  limits.memory_left_bytes = std::min(limits.memory_left_bytes, *limit - std::min(*limit, held));
}

void read_v2(CgroupLimits& limits, const std::string& dir) {
  if (const auto line = first_line(dir + "/cpu.max")) {
    std::istringstream in(*line);
    std::string quota;
    std::uint64_t period_us = 0;
    if (in >> quota >> period_us) limit_cpus(limits, parse_number(quota).value_or(0), period_us);
  }
  limit_memory(limits, read_number(dir + "/memory.max"), read_number(dir + "/memory.current"),
               read_stat(dir + "/memory.stat", "active_file", "inactive_file"));
}

void read_v1_cpu(CgroupLimits& limits, const std::string& dir) {
  limit_cpus(limits, read_number(dir + "/cpu.cfs_quota_us").value_or(0),
             read_number(dir + "/cpu.cfs_period_us").value_or(0));
}

void read_v1_memory(CgroupLimits& limits, const std::string& dir) {
  limit_memory(limits, read_number(dir + "/memory.limit_in_bytes"),
               read_number(dir + "/memory.usage_in_bytes"),
               read_stat(dir + "/memory.stat", "total_active_file", "total_inactive_file"));
}

// Calls read(limits, dir) for `path` under `mount` and for each of its parents. In a container the
// path may name a folder that is only visible outside; its own limits then stand at the mount's
// root, which is visited last.
template <typename Read>
void walk_up(CgroupLimits& limits, const std::string& mount, std::string path, Read read) {
  while (!path.empty() && path != "/") {
    read(limits, mount + path);
    path.erase(path.rfind('/'));
  }
  read(limits, mount);
}

bool has_controller(const std::string& list, const std::string& name) {
  return ("," + list + ",").find("," + name + ",") != std::string::npos;
}

}  // namespace

CgroupLimits cgroup_limits(const std::string& membership, const std::string& root) {
  CgroupLimits limits;
  std::ifstream in(membership);
  for (std::string line; std::getline(in, line);) {
    // "hierarchy:controllers:path"; v2's line is "0::path".
    const std::size_t first = line.find(':');
    const std::size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const std::string path = line.substr(second + 1);
    if (!path.empty() && path[0] != '/') continue;
    if (controllers.empty()) walk_up(limits, root, path, read_v2);
    if (has_controller(controllers, "cpu")) walk_up(limits, root + "/cpu", path, read_v1_cpu);
    if (has_controller(controllers, "memory")) {
      walk_up(limits, root + "/memory", path, read_v1_memory);
    }
  }
  return limits;
}

}  // namespace moesaic
