// Loading a model on a thread of its own, so that Ctrl-C and a progress callback work meanwhile.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <atomic>
#include <optional>

#include "bindings/engine_types.h"
#include "bindings/gguf_file.h"
#include "bindings/interruptible.h"
#include "bindings/overrides.h"
#include "gguf/file.h"
#include "model/run/local_runner.h"

namespace py = pybind11;

namespace moesaic::bindings {
namespace {

using Progress = py::typing::Callable<py::object(std::uint64_t, std::uint64_t)>;

// progress(done, total) in bytes is called from this thread, at most every 25 ms and at the end.
std::shared_ptr<EngineHandle> load(const GGUFFile& file, std::int64_t n_ctx, std::int64_t kv_tokens,
                                   int threads, const std::string& backend, bool deterministic,
                                   const std::string& kv_type, const Dict& overrides,
                                   const std::optional<Progress>& progress) {
  std::atomic<std::uint64_t> done{0};
  std::atomic<std::uint64_t> total{0};
  model::LoadOptions options;
  options.n_ctx = n_ctx;
  options.kv_tokens = kv_tokens;
  options.threads = threads;
  options.backend = backend;
  options.deterministic = deterministic;
  options.kv_type = kv_type_from(kv_type, "Model");
  options.overrides = overrides_from(overrides);
  options.progress = [&](std::uint64_t done_bytes, std::uint64_t total_bytes) {
    total = total_bytes;
    done = done_bytes;
  };
  std::unique_ptr<model::LocalRunner> runner;
  std::uint64_t shown = 0;
  const auto show = [&] {
    if (!progress || total == 0 || done == shown) return;
    shown = done;
    (*progress)(shown, total.load());
  };
  run_interruptible(
      [&](const CancelFlag& cancel) {
        options.cancel = &cancel;
        runner = model::LocalRunner::load(file.shared(), options);
      },
      show);
  show();
  auto handle = std::make_shared<EngineHandle>();
  const backend::DeviceInfo device = runner->device();
  handle->device = strcat(device.name, ": ", device.detail);
  const GilRelease free_gil;
  handle->engine = share_engine(std::move(runner));
  return handle;
}

bool interpreter_ends() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing() != 0;
#else
  return _Py_IsFinalizing() != 0;
#endif
}

void end_engine(engine::Engine* engine) {
  if (Py_IsInitialized() == 0 || interpreter_ends() || PyGILState_Check() == 0) {
    delete engine;
    return;
  }
  PyThreadState* const state = PyEval_SaveThread();
  delete engine;
  // The interpreter would end this thread by unwinding it, which destructors do not allow. It waits
  // for the process to end instead, as Python does from 3.14 on.
  while (interpreter_ends()) std::this_thread::sleep_for(std::chrono::seconds(1));
  PyEval_RestoreThread(state);
}

}  // namespace

std::shared_ptr<engine::Engine> share_engine(std::unique_ptr<model::Runner> runner) {
  return {std::make_unique<engine::Engine>(std::move(runner)).release(), &end_engine};
}

backend::KvType kv_type_from(const std::string& name, const char* where) {
  if (name == "f16") return backend::KvType::kF16;
  if (name == "f32") return backend::KvType::kF32;
  if (name == "q8_0") return backend::KvType::kQ8_0;
  fail<ArgumentError>("[", where, "] kv_type: got \"", name,
                      "\", need \"f16\", \"f32\" or \"q8_0\"");
}

void register_engine_load(py::module_& m) {
  m.def("load_model", &load, py::kw_only(), py::arg("file"), py::arg("n_ctx"), py::arg("kv_tokens"),
        py::arg("threads"), py::arg("backend"), py::arg("deterministic"), py::arg("kv_type"),
        py::arg("overrides") = Dict(), py::arg("progress") = py::none(),
        "Load an open GGUF file; kv_tokens 0 and threads 0 are automatic.");
}

}  // namespace moesaic::bindings
