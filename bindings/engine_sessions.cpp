// Sessions: an explicit KV cache that Python holds. Each call waits for the engine's thread, which
// answers between two steps.
#include <pybind11/stl.h>

#include "bindings/engine_types.h"
#include "bindings/interruptible.h"
#include "bindings/numpy.h"
#include "engine/session_file.h"

namespace moesaic::bindings {
namespace {

using engine::Engine;
using engine::SessionState;
using EnginePtr = std::shared_ptr<Engine>;
using StatePtr = std::shared_ptr<SessionState>;

std::unique_ptr<SessionHandle> wait_session(const EnginePtr& engine, std::future<StatePtr> future) {
  StatePtr state = wait_future(std::move(future), [&](std::future<StatePtr> unwanted) {
    engine->abandon(std::move(unwanted));
  });
  return std::make_unique<SessionHandle>(engine, std::move(state));
}

std::vector<std::int32_t> tokens_of(const SessionHandle& session) {
  const std::scoped_lock lock(session.state()->mutex);
  return session.state()->tokens;
}

// What a session was computed with: the shape of the model, its type of cache, its weights.
std::string identity_with(const Engine& engine, const std::string& fingerprint) {
  return strcat(engine.facts().identity, ", weights ", fingerprint);
}

void save(const SessionHandle& session, const py::bytes& path, const std::string& fingerprint) {
  const std::string encoded = path;
  const auto stop = std::make_shared<CancelFlag>();
  const Engine::SavedSession saved =
      wait_future(session.engine()->save_session(session.state(), stop),
                  [&](const std::future<Engine::SavedSession>&) { stop->set(); });
  run_interruptible([&](const CancelFlag& cancel) {
    engine::write_session(encoded, identity_with(*session.engine(), fingerprint), saved, &cancel);
  });
}

std::unique_ptr<SessionHandle> load(const EngineHandle& self, const py::bytes& path,
                                    const std::string& fingerprint) {
  self.engine->check_usable("Model.load_session");
  const std::string encoded = path;
  Engine::SavedSession saved;
  engine::EngineFacts facts = self.engine->facts();
  facts.identity = identity_with(*self.engine, fingerprint);
  run_interruptible(
      [&](const CancelFlag& cancel) { saved = engine::read_session(encoded, facts, &cancel); });
  const auto stop = std::make_shared<CancelFlag>();
  StatePtr state = wait_future(self.engine->load_session(std::move(saved), stop),
                               [&](std::future<StatePtr> unwanted) {
                                 stop->set();
                                 self.engine->abandon(std::move(unwanted));
                               });
  return std::make_unique<SessionHandle>(self.engine, std::move(state));
}

}  // namespace

void register_engine_sessions(py::module_& m) {
  py::class_<SessionHandle>(m, "Session", "A sequence's KV cache (private: use moesaic.Session).")
      .def_property_readonly("tokens",
                             [](const SessionHandle& self) { return own(tokens_of(self)); })
      .def_property_readonly("n_tokens",
                             [](const SessionHandle& self) {
                               const std::scoped_lock lock(self.state()->mutex);
                               return self.state()->tokens.size();
                             })
      .def_property_readonly("closed",
                             [](const SessionHandle& self) {
                               if (self.engine()->closed()) return true;
                               const std::scoped_lock lock(self.state()->mutex);
                               return self.state()->closed;
                             })
      .def(
          "truncate",
          [](const SessionHandle& self, std::int64_t n) {
            wait_future(self.engine()->truncate_session(self.state(), n));
          },
          py::arg("n"))
      .def(
          "fork",
          [](const SessionHandle& self, std::int64_t n) {
            return wait_session(self.engine(), self.engine()->fork_session(self.state(), n));
          },
          py::arg("n"))
      .def("save", &save, py::arg("path"), py::arg("fingerprint"),
           "Write to an encoded path, with the fingerprint of the model's weights.")
      .def("close", [](const SessionHandle& self) { self.engine()->close_session(self.state()); });

  m.def(
      "open_session",
      [](const EngineHandle& self) {
        return wait_session(self.engine, self.engine->open_session());
      },
      py::arg("engine"));
  m.def("load_session", &load, py::arg("engine"), py::arg("path"), py::arg("fingerprint"),
        "Read from an encoded path what was saved with these weights.");
  m.def(
      "token_ids",
      [](const py::object& tokens, std::int64_t vocab, const std::string& where) {
        return own(token_ids(tokens, vocab, strcat("[", where, "]")));
      },
      py::arg("tokens"), py::arg("vocab"), py::arg("where"),
      "Integers of any type, range-checked, as int32 (n,).");
}

}  // namespace moesaic::bindings
