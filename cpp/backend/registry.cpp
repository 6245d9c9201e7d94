// The list of backends: one row each. "auto" takes the first that is there.
#include "backend/registry.h"

#include <array>

#include "base/errors.h"

namespace moesaic::backend {
namespace {

struct Entry {
  std::string_view name;
  bool in_build;
  std::unique_ptr<Backend> (*make)(const BackendOptions&);
};

// A GPU will stand before the CPU once its conformance tests pass.
const std::array<Entry, 2>& entries() {
  static const std::array<Entry, 2> list{{
      {"cpu", true, make_cpu_backend},
      {"hip", kHasHip, make_hip_backend},
  }};
  return list;
}

std::string names_in_build() {
  std::string names = "auto";
  for (const Entry& entry : entries()) {
    if (entry.in_build) names += strcat(", ", entry.name);
  }
  return names;
}

}  // namespace

std::vector<std::string> available_backends() {
  std::vector<std::string> names;
  for (const Entry& entry : entries()) {
    if (entry.in_build) names.emplace_back(entry.name);
  }
  return names;
}

std::unique_ptr<Backend> make_backend(std::string_view name, const BackendOptions& options) {
  for (const Entry& entry : entries()) {
    if (name != entry.name && !(name == "auto" && entry.in_build)) continue;
    if (!entry.in_build) {
      fail<ArgumentError>("[backend] ", name, ": not in this build; there are: ", names_in_build());
    }
    return entry.make(options);
  }
  fail<ArgumentError>("[backend] unknown backend \"", name, "\"; there are: ", names_in_build());
}

}  // namespace moesaic::backend
