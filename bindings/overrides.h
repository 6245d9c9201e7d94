// What callers set in the place of a file's keys, from Python.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "base/errors.h"
#include "bindings/engine_types.h"
#include "model/file/overrides.h"

namespace moesaic::bindings {

// By name. With the GIL.
inline model::Overrides overrides_from(const Dict& dict) {
  namespace py = pybind11;
  model::Overrides overrides;
  for (const auto& [key, value] : dict) {
    const auto name = key.cast<std::string>();
    if (py::isinstance<py::bool_>(value)) {
      overrides.push_back({name, value.cast<bool>()});
    } else if (py::isinstance<py::int_>(value)) {
      overrides.push_back({name, value.cast<std::int64_t>()});
    } else if (py::isinstance<py::float_>(value)) {
      overrides.push_back({name, value.cast<double>()});
    } else if (py::isinstance<py::str>(value)) {
      overrides.push_back({name, value.cast<std::string>()});
    } else {
      fail<ArgumentError>("[overrides] ", name, ": need a bool, an integer, a number or a text");
    }
  }
  std::sort(overrides.begin(), overrides.end(),
            [](const model::Override& a, const model::Override& b) { return a.name < b.name; });
  return overrides;
}

}  // namespace moesaic::bindings
