// Joins the C++ errors to the Python classes of the same names in moesaic/errors.py. The only place
// that does.
#include "base/errors.h"

#include <pybind11/stl.h>

#include <cstring>
#include <exception>

#include "bindings/register.h"
#include "engine/engine.h"

namespace py = pybind11;

namespace moesaic::bindings {
namespace {

py::object error_class(const char* name) {
  // Looked up when needed: an error is rare, and nothing here outlives the interpreter.
  return py::module_::import("moesaic.errors").attr(name);
}

// A message may hold a path or a token that is no UTF-8: shown with replacement marks, not refused.
py::str message(const std::exception& error) {
  const char* text = error.what();
  return py::reinterpret_steal<py::str>(
      PyUnicode_DecodeUTF8(text, static_cast<Py_ssize_t>(std::strlen(text)), "replace"));
}

void raise(const char* name, const std::exception& error) {
  PyErr_SetObject(error_class(name).ptr(), message(error).ptr());
}

void raise(const OutOfMemoryError& error) {
  const py::object type = error_class("OutOfMemoryError");
  py::object instance = type(message(error));
  instance.attr("needed") = error.needed_bytes;
  instance.attr("free") = error.free_bytes;
  PyErr_SetObject(type.ptr(), instance.ptr());
}

void raise(const WorkerLost& error) {
  const py::object type = error_class("WorkerLost");
  py::object instance = type(message(error));
  instance.attr("node") = error.node;
  instance.attr("layers") = error.layers;
  instance.attr("tokens") = error.tokens;
  PyErr_SetObject(type.ptr(), instance.ptr());
}

// Derived classes before their bases. What is not ours goes on to pybind11's own translators.
void translate(std::exception_ptr thrown) {
  try {
    if (thrown) std::rethrow_exception(thrown);
  } catch (const OutOfMemoryError& error) {
    raise(error);
  } catch (const WorkerLost& error) {
    raise(error);
  } catch (const ClosedError& error) {
    raise("ClosedError", error);
  } catch (const ArgumentError& error) {
    raise("ArgumentError", error);
  } catch (const FormatError& error) {
    raise("FormatError", error);
  } catch (const IoError& error) {
    raise("IoError", error);
  } catch (const NetError& error) {
    raise("NetError", error);
  } catch (const DeadlineError& error) {
    raise("DeadlineError", error);
  } catch (const ProtocolError& error) {
    raise("ProtocolError", error);
  } catch (const engine::QueueFullError& error) {
    raise("QueueFullError", error);
  } catch (const BackendError& error) {
    raise("BackendError", error);
  } catch (const InternalError& error) {
    raise("InternalError", error);
  } catch (const CancelledError& error) {
    raise("CancelledError", error);
  } catch (const Error& error) {
    raise("MoesaicError", error);
  }
}

// For tests: throws the error of that name as the core would.
void throw_for_test(const std::string& name, const std::string& message) {
  if (name == "ArgumentError") throw ArgumentError(message);
  if (name == "ClosedError") throw ClosedError(message);
  if (name == "FormatError") throw FormatError(message);
  if (name == "IoError") throw IoError(message);
  if (name == "NetError") throw NetError(message);
  if (name == "DeadlineError") throw DeadlineError(message);
  if (name == "ProtocolError") throw ProtocolError(message);
  if (name == "BackendError") throw BackendError(message);
  if (name == "QueueFullError") throw engine::QueueFullError(message);
  if (name == "InternalError") throw InternalError(message);
  if (name == "CancelledError") throw CancelledError(message);
  if (name == "OutOfMemoryError") throw OutOfMemoryError(message, 20, 10);
  if (name == "WorkerLost") throw WorkerLost(message, "10.0.0.2:9777", {3, 4}, {7, 8, 9});
  throw Error(message);
}

}  // namespace

void register_errors(py::module_& m) {
  py::register_exception_translator(&translate);
  m.def("_throw", &throw_for_test, py::arg("name"), py::arg("message"),
        "Throw the core's error of that name (for tests of the translation).");
}

}  // namespace moesaic::bindings
