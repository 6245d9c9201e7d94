// Text of files and of other machines for Python, whatever bytes are in it.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <string_view>

namespace moesaic::bindings {

// Valid UTF-8: bytes that are not become U+FFFD. pybind11 raises UnicodeDecodeError for a
// std::string that holds such bytes, so what is only shown to people goes through here. With the
// GIL.
inline std::string readable(std::string_view text) {
  namespace py = pybind11;
  PyObject* decoded =
      PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "replace");
  if (decoded == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(decoded);
}

}  // namespace moesaic::bindings
