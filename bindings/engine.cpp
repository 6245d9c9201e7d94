// The engine as Python sees it: facts, sessions, requests, close. python/moesaic/model.py is the
// public face.
#include "engine/engine.h"

#include <pybind11/stl.h>

#include "bindings/engine_types.h"
#include "bindings/interruptible.h"
#include "bindings/register.h"

namespace py = pybind11;

namespace moesaic::bindings {
namespace {

Dict memory_dict(const model::MemoryNeed& need) {
  Dict out;
  out["weights_bytes"] = need.weights_bytes;
  out["derived_bytes"] = need.derived_bytes;
  out["kv_bytes"] = need.kv_bytes;
  out["scratch_bytes"] = need.scratch_bytes;
  out["total_bytes"] = need.total();
  return out;
}

Dict stats_dict(const engine::EngineStats& stats) {
  Dict out;
  out["steps"] = stats.steps;
  out["prompt_rows"] = stats.prompt_rows;
  out["decode_rows"] = stats.decode_rows;
  out["reused_rows"] = stats.reused_rows;
  out["waiting"] = stats.waiting;
  out["active"] = stats.active;
  out["cached"] = stats.cached;
  out["preemptions"] = stats.preemptions;
  out["kv_tokens_free"] = stats.kv_tokens_free;
  return out;
}

}  // namespace

void register_engine(py::module_& m) {
  py::class_<EngineHandle, std::shared_ptr<EngineHandle>>(
      m, "Engine", "A loaded model and its scheduler (private: use moesaic.Model).")
      .def_property_readonly("device", [](const EngineHandle& self) { return self.device; })
      .def_property_readonly("n_ctx",
                             [](const EngineHandle& self) { return self.engine->facts().n_ctx; })
      .def_property_readonly(
          "kv_tokens", [](const EngineHandle& self) { return self.engine->facts().kv_tokens; })
      .def_property_readonly(
          "max_step_rows",
          [](const EngineHandle& self) { return self.engine->facts().max_step_rows; })
      .def_property_readonly("identity",
                             [](const EngineHandle& self) { return self.engine->facts().identity; })
      .def_property_readonly("fingerprint",
                             [](const EngineHandle& self) { return self.fingerprint; })
      .def_property_readonly(
          "capture_names",
          [](const EngineHandle& self) { return self.engine->facts().capture_names; })
      .def_property_readonly(
          "memory",
          [](const EngineHandle& self) { return memory_dict(self.engine->facts().memory); })
      .def_property_readonly("closed",
                             [](const EngineHandle& self) { return self.engine->closed(); })
      .def(
          "check_usable",
          [](const EngineHandle& self, const std::string& where) {
            self.engine->check_usable(where);
          },
          py::arg("where"), "Raise ClosedError after close() and in a forked child.")
      .def("stats", [](const EngineHandle& self) { return stats_dict(self.engine->stats()); })
      .def("clear_cache", [](const EngineHandle& self) { wait_future(self.engine->clear_cache()); })
      .def(
          "close",
          [](const EngineHandle& self) {
            const GilRelease free_gil;
            self.engine->close();
          },
          "End what runs and free the model; idempotent.");
  register_engine_sessions(m);
  register_engine_requests(m);
  register_engine_load(m);
  register_model_info(m);
}

}  // namespace moesaic::bindings
