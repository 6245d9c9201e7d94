// What this build and machine are: ISA tables, CPUs, memory. For `moesaic doctor`, Model's repr and
// tests.
#include <pybind11/stl.h>

#include "backend/backend.h"
#include "base/aligned_buffer.h"
#include "base/private_folder.h"
#include "base/process.h"
#include "base/thread_pool.h"
#include "bindings/register.h"

namespace moesaic::bindings {

void register_system(pybind11::module_& m) {
  m.def("available_cpus", &available_cpus,
        "CPUs this process may use (affinity and cgroup quota).");
  m.def("available_memory_bytes", &available_memory_bytes,
        "Bytes of memory this process could still take (MemAvailable, cgroup limit).");
  m.def("available_backends", &backend::available_backends,
        "Names accepted by Model(backend=...).");
  m.def("available_isas", &backend::available_isas,
        "CPU tables this build has and this machine can run, slowest first.");
  m.def(
      "take_environment",
      [](const std::string& name) -> std::optional<pybind11::bytes> {
        const std::optional<std::string> value = take_environment(name);
        if (!value) return std::nullopt;
        return pybind11::bytes(*value);
      },
      pybind11::arg("name"),
      "Remove a variable from the environment, also from what the kernel shows in "
      "/proc/PID/environ, and return its bytes; None when it is not set or empty.");
  m.def("forbid_core_dumps", &forbid_core_dumps,
        "From now on this process leaves no core dump, and only root can attach to it.");
  m.def(
      "replaceable_by_others",
      [](const pybind11::bytes& folder) { return replaceable_by_others(std::string(folder)); },
      pybind11::arg("folder"),
      "Why other users may replace what lies in a folder; empty when they cannot.");
  m.def("isa", &backend::current_isa, "The CPU table in use (MOESAIC_ISA forces one).");
}

}  // namespace moesaic::bindings
