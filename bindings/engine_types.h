// What the engine's bindings share: the Python-side holders of an engine, a session and the
// requests of one call.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/typing.h>

#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "engine/engine.h"

namespace moesaic::bindings {

// A dict of names to values, as the stubs say it.
using Dict = pybind11::typing::Dict<pybind11::str, pybind11::object>;

// A loaded model. Sessions and batches keep it alive.
struct EngineHandle {
  std::shared_ptr<engine::Engine> engine;
  std::string device;       // "cpu: avx512vnni, 2 threads"
  std::string fingerprint;  // of a model on a cluster; of one on this machine: made when asked for
};

// The engine's last reference may go in any garbage collection: its end, which waits for the step
// that runs and frees the model, does not hold the GIL.
std::shared_ptr<engine::Engine> share_engine(std::unique_ptr<model::Runner> runner);

// Closes the session with the last reference.
class SessionHandle {
 public:
  SessionHandle(std::shared_ptr<engine::Engine> engine, std::shared_ptr<engine::SessionState> state)
      : engine_(std::move(engine)), state_(std::move(state)) {}
  ~SessionHandle() { engine_->close_session(state_); }
  SessionHandle(const SessionHandle&) = delete;
  SessionHandle& operator=(const SessionHandle&) = delete;

  const std::shared_ptr<engine::Engine>& engine() const { return engine_; }
  const std::shared_ptr<engine::SessionState>& state() const { return state_; }

 private:
  std::shared_ptr<engine::Engine> engine_;
  std::shared_ptr<engine::SessionState> state_;
};

// kv_type= of what is loaded. Throws ArgumentError.
backend::KvType kv_type_from(const std::string& name, const char* where);

void register_engine_requests(pybind11::module_& m);
void register_engine_sessions(pybind11::module_& m);
void register_engine_load(pybind11::module_& m);
void register_model_info(pybind11::module_& m);

}  // namespace moesaic::bindings
