// Between py::array and spans: the one file that touches NumPy's arrays. Takes arrays in with
// dtype, ndim and order checked (what came, what is needed), gives arrays out that own their memory
// or keep their owner alive.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/errors.h"

namespace moesaic::bindings {

namespace py = pybind11;

using Shape = std::vector<py::ssize_t>;

// "float64 (3, 7)" of an array, the type's name of anything else.
inline std::string describe(py::handle object) {
  if (!py::isinstance<py::array>(object)) {
    return py::str(py::type::handle_of(object).attr("__name__")).cast<std::string>();
  }
  return py::str("{} {}").format(object.attr("dtype"), object.attr("shape")).cast<std::string>();
}

// -- out
// ----------------------------------------------------------------------------------------------------------------

// A new C-contiguous array that owns its (uninitialised) memory.
template <typename T>
py::array_t<T> new_array(const Shape& shape) {
  return py::array_t<T>(shape);
}

// An array that takes the vector's memory over, no copy. The product of shape must be
// values.size().
template <typename T>
py::array_t<T> own(std::vector<T>&& values, const Shape& shape) {
  auto held = std::make_unique<std::vector<T>>(std::move(values));
  T* data = held->data();
  const py::capsule owner(held.get(), [](void* p) { delete static_cast<std::vector<T>*>(p); });
  held.release();
  return py::array_t<T>(shape, data, owner);
}
template <typename T>
py::array_t<T> own(std::vector<T>&& values) {
  const Shape shape = {static_cast<py::ssize_t>(values.size())};
  return own(std::move(values), shape);
}

// A read-only C-contiguous view of memory that `owner` keeps alive.
template <typename T>
py::array_t<T> view(const T* data, const Shape& shape, const py::object& owner) {
  py::array_t<T> array(shape, data, owner);
  py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return array;
}

// A capsule that holds a shared_ptr: an owner for view() of memory that lives in a C++ object.
template <typename T>
py::capsule keep(std::shared_ptr<T> pointer) {
  using Held = std::shared_ptr<T>;
  return py::capsule(new Held(std::move(pointer)), [](void* p) { delete static_cast<Held*>(p); });
}

// -- in
// -----------------------------------------------------------------------------------------------------------------

// Token ids from a list of int or a one-dimensional array of any integer type, each in [0, vocab).
// Floats, bools and nested lists are refused. `where` is "[Model.forward]" or the like.
inline std::vector<std::int32_t> token_ids(py::handle tokens, std::int64_t vocab,
                                           std::string_view where) {
  const auto refuse = [&](const std::string& got) {
    fail<ArgumentError>(where, " tokens: got ", got,
                        ", need a list of int or a one-dimensional array of integers");
  };
  if (py::isinstance<py::str>(tokens) || py::isinstance<py::bytes>(tokens))
    refuse(describe(tokens));
  py::array array = py::array::ensure(tokens);
  if (!array) {
    PyErr_Clear();
    refuse(describe(tokens));
  }
  if (array.size() == 0 && array.ndim() == 1) return {};
  const char kind = array.dtype().kind();
  if (array.ndim() != 1 || (kind != 'i' && kind != 'u')) refuse(describe(array));
  const auto check = [&](auto value) {
    if (std::cmp_less(value, 0) || std::cmp_greater_equal(value, vocab)) {
      fail<ArgumentError>(where, " tokens: got ", value, ", need 0 to ", vocab - 1,
                          " (the vocabulary has ", vocab, ")");
    }
    return static_cast<std::int32_t>(value);
  };
  std::vector<std::int32_t> ids;
  ids.reserve(static_cast<std::size_t>(array.size()));
  if (kind == 'u') {
    const auto wide = py::array_t<std::uint64_t, py::array::c_style | py::array::forcecast>(array);
    for (py::ssize_t i = 0; i < wide.size(); ++i) ids.push_back(check(wide.at(i)));
  } else {
    const auto wide = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>(array);
    for (py::ssize_t i = 0; i < wide.size(); ++i) ids.push_back(check(wide.at(i)));
  }
  return ids;
}

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;

// A C-contiguous float32 array from an array of any floating type; integers and other objects are
// refused.
inline FloatArray float_array(py::handle object, std::string_view where, std::string_view name) {
  if (!py::isinstance<py::array>(object) ||
      py::reinterpret_borrow<py::array>(object).dtype().kind() != 'f') {
    fail<ArgumentError>(where, " ", name, ": got ", describe(object),
                        ", need an array of floats (float16, float32 or float64)");
  }
  FloatArray array = FloatArray::ensure(object);
  if (!array) throw py::error_already_set();
  return array;
}

// The bytes of a C-contiguous uint8 array of any shape; no copy. Valid while the array lives.
inline std::span<const std::uint8_t> byte_span(py::handle object, std::string_view where,
                                               std::string_view name) {
  if (!py::isinstance<py::array>(object)) {
    fail<ArgumentError>(where, " ", name, ": got ", describe(object), ", need an array of uint8");
  }
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (array.dtype().kind() != 'u' || array.itemsize() != 1 ||
      (array.flags() & py::array::c_style) == 0) {
    fail<ArgumentError>(
        where, " ", name, ": got ", describe(object),
        (array.flags() & py::array::c_style) == 0 ? " that is not C-contiguous" : "",
        ", need a C-contiguous array of uint8");
  }
  return {static_cast<const std::uint8_t*>(array.data()), static_cast<std::size_t>(array.size())};
}

}  // namespace moesaic::bindings
