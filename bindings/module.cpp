// The private extension module moesaic._core. Public classes, docs and defaults live in
// python/moesaic/.
#include "bindings/register.h"

PYBIND11_MODULE(_core, m) {
  m.doc() = "Moesaic's C++ core (private: use the moesaic package).";
  moesaic::bindings::register_errors(m);
  moesaic::bindings::register_gguf(m);
  moesaic::bindings::register_fingerprint(m);
  moesaic::bindings::register_engine(m);
  moesaic::bindings::register_plan(m);
  moesaic::bindings::register_worker(m);
  moesaic::bindings::register_cluster(m);
  moesaic::bindings::register_system(m);
}
