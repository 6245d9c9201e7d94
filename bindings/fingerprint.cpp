// What an open file is, weights included: the same digest by which a cluster knows it.
#include <pybind11/pybind11.h>

#include <string>

#include "base/digest.h"
#include "bindings/gguf_file.h"
#include "bindings/interruptible.h"
#include "bindings/overrides.h"
#include "bindings/register.h"
#include "cluster/weights/digest_book.h"
#include "cluster/weights/identify.h"
#include "model/arch/identity.h"

namespace py = pybind11;

namespace moesaic::bindings {
namespace {

std::string fingerprint(const GGUFFile& file, const py::bytes& cache, const Dict& overrides) {
  const model::Overrides set_keys = overrides_from(overrides);
  cluster::FileOps ops;
  cluster::DigestBook book(std::string(cache), ops, [](const std::string&, const std::string&) {});
  cluster::LocalFile local;
  local.file = file.shared();
  local.states = file.states();
  if (!local.states.empty()) {
    local.paths.assign(local.file->paths().begin(), local.file->paths().end());
  }
  std::string hex;
  run_interruptible([&](const CancelFlag& cancel) {
    cluster::check_unchanged(local.paths, local.states);
    cluster::ReadOptions options;
    options.cancel = &cancel;
    hex = model::overridden_identity(to_hex(cluster::identify(local, book, ops, options).identity),
                                     *local.file, set_keys);
  });
  return hex;
}

}  // namespace

void register_fingerprint(py::module_& m) {
  m.def("fingerprint", &fingerprint, py::arg("file"), py::arg("cache"),
        py::arg("overrides") = Dict(),
        "Digest of a file's headers and weights, in hex; reads what no digest is remembered of in "
        "the cache's folder (an encoded path; empty: none).");
}

}  // namespace moesaic::bindings
