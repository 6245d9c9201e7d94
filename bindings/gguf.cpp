// GGUFFile (reading), GGUFWriter, and the codecs of element types as functions.
// python/moesaic/gguf.py is their public face.
#include "gguf/file.h"

#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/aligned_buffer.h"
#include "base/errors.h"
#include "base/thread_pool.h"
#include "bindings/gguf_file.h"
#include "bindings/interruptible.h"
#include "bindings/numpy.h"
#include "bindings/register.h"
#include "bindings/text.h"
#include "cluster/weights/identify.h"
#include "gguf/writer.h"
#include "quant/checked_encode.h"
#include "quant/qtype.h"

namespace moesaic::bindings {
namespace {

using gguf::ValueType;

// Text from a file as str: bytes that are no UTF-8 become lone surrogates (PEP 383), so that
// nothing is lost.
py::str to_str(std::string_view text) {
  PyObject* object =
      PyUnicode_DecodeUTF8(text.data(), static_cast<py::ssize_t>(text.size()), "surrogateescape");
  if (object == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::str>(object);
}

std::string from_str(const py::str& text) {
  PyObject* object = PyUnicode_AsEncodedString(text.ptr(), "utf-8", "surrogateescape");
  if (object == nullptr) {
    PyErr_Clear();
    fail<ArgumentError>(
        "[GGUF] text: got a lone surrogate that stands for no byte, need text that "
        "UTF-8 can write; decode bytes with errors='surrogateescape'");
  }
  return py::reinterpret_steal<py::bytes>(object);
}

template <typename T>
py::array copy_array(const gguf::ArrayView& array) {
  py::array_t<T> out(static_cast<py::ssize_t>(array.count()));
  if (array.count() > 0) {
    std::memcpy(out.mutable_data(), array.bytes().data(), array.count() * sizeof(T));
  }
  out.attr("setflags")(py::arg("write") = false);
  return out;
}

// Numbers as a read-only array (a copy: in the file they lie at any alignment), strings as a list.
py::object array_to_python(const gguf::ArrayView& array) {
  switch (array.elem_type()) {
    case ValueType::kU8:
      return copy_array<std::uint8_t>(array);
    case ValueType::kI8:
      return copy_array<std::int8_t>(array);
    case ValueType::kU16:
      return copy_array<std::uint16_t>(array);
    case ValueType::kI16:
      return copy_array<std::int16_t>(array);
    case ValueType::kU32:
      return copy_array<std::uint32_t>(array);
    case ValueType::kI32:
      return copy_array<std::int32_t>(array);
    case ValueType::kU64:
      return copy_array<std::uint64_t>(array);
    case ValueType::kI64:
      return copy_array<std::int64_t>(array);
    case ValueType::kF32:
      return copy_array<float>(array);
    case ValueType::kF64:
      return copy_array<double>(array);
    case ValueType::kBool:
      return copy_array<bool>(array);
    case ValueType::kString: {
      const std::vector<std::string_view> strings = array.strings();
      py::list out(strings.size());
      for (std::size_t i = 0; i < strings.size(); ++i) out[i] = to_str(strings[i]);
      return out;
    }
    case ValueType::kArray:
      break;
  }
  fail<InternalError>("[gguf] an array of arrays got through the reader");
}

py::object to_python(const gguf::Value& value) {
  switch (value.type()) {
    case ValueType::kBool:
      return py::bool_(value.as_bool());
    case ValueType::kF32:
    case ValueType::kF64:
      return py::float_(value.as_float());
    case ValueType::kU64:
      return py::int_(value.as_uint());
    case ValueType::kString:
      return to_str(value.as_string());
    case ValueType::kArray:
      return array_to_python(value.as_array());
    default:
      return py::int_(value.as_int());
  }
}

std::string type_text(const gguf::Value& value) {
  if (value.type() != ValueType::kArray) return std::string(gguf::value_type_name(value.type()));
  return strcat("array[", gguf::value_type_name(value.as_array().elem_type()), "]");
}

ValueType value_type(const std::string& name, std::string_view key) {
  for (std::uint32_t id = 0; id <= static_cast<std::uint32_t>(ValueType::kF64); ++id) {
    const auto type = static_cast<ValueType>(id);
    if (gguf::value_type_name(type) == name && type != ValueType::kArray) return type;
  }
  fail<ArgumentError>("[write_gguf] key \"", key, "\": got type \"", name,
                      "\", need u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, bool or string");
}

const quant::QtypeTraits& qtype_traits(const std::string& name, const char* where) {
  const std::optional<quant::Qtype> type = quant::qtype_from_name(name);
  if (!type) {
    std::string known;
    for (const quant::QtypeTraits& row : quant::all_qtypes()) {
      known += known.empty() ? "" : ", ";
      known += row.name;
    }
    fail<ArgumentError>(where, " qtype: got \"", name, "\", need one of ", known);
  }
  return quant::traits(*type);
}

void check_memory(std::uint64_t n_bytes, const char* where) {
  constexpr std::uint64_t kAlwaysFits = std::uint64_t{64} << 20;
  if (n_bytes <= kAlwaysFits) return;
  const std::uint64_t free_bytes = available_memory_bytes();
  if (n_bytes <= free_bytes) return;
  throw OutOfMemoryError(strcat(where, " the float32 array needs ", n_bytes, " bytes, ", free_bytes,
                                " are free: decode fewer rows at a time"),
                         n_bytes, free_bytes);
}

// Runs codec(first block, n blocks) over [0, n_blocks), on more threads when that pays. The GIL is
// not held.
template <typename Codec>
void run_codec(std::int64_t n_blocks, std::int64_t block_elems, int n_threads, const Codec& codec) {
  constexpr std::int64_t kElemsWorthAThread = std::int64_t{1} << 20;
  const std::int64_t worth = n_blocks * block_elems / kElemsWorthAThread;
  const int want = n_threads > 0 ? n_threads : available_cpus();
  const int n = static_cast<int>(std::clamp<std::int64_t>(worth, 1, want));
  if (n == 1) {
    codec(std::int64_t{0}, n_blocks);
    return;
  }
  ThreadPool pool(n);
  pool.run([&](int member) {
    const ThreadPool::Range range = pool.split(n_blocks, member);
    codec(range.begin, range.end - range.begin);
  });
}

void decode_blocks(const quant::QtypeTraits& traits, const std::uint8_t* blocks,
                   std::int64_t n_blocks, float* out, int n_threads) {
  run_codec(n_blocks, traits.block_elems, n_threads, [&](std::int64_t first, std::int64_t n) {
    traits.decode(blocks + first * traits.block_bytes, n, out + first * traits.block_elems);
  });
}

// Elements of a shape in NumPy order, each dimension >= 0; what a caller gave is checked.
std::uint64_t count_elems(const Shape& shape, const char* where) {
  std::uint64_t n = 1;
  for (const py::ssize_t dim : shape) {
    if (dim < 0 || __builtin_mul_overflow(n, static_cast<std::uint64_t>(dim), &n) ||
        n > static_cast<std::uint64_t>(INT64_MAX) / 8) {
      fail<ArgumentError>(where, " shape: got ", describe(py::cast(shape)),
                          " with a dimension that is negative or too large");
    }
  }
  return n;
}

// (rows..., row length) -> (rows..., bytes of a row).
Shape byte_shape(Shape shape, const quant::QtypeTraits& traits, const char* where) {
  if (shape.empty()) shape.push_back(1);
  if (shape.back() % traits.block_elems != 0) {
    fail<ArgumentError>(where, " rows of ", shape.back(), " elements do not fit ", traits.name,
                        ", need a multiple of ", traits.block_elems);
  }
  shape.back() = shape.back() / traits.block_elems * traits.block_bytes;
  return shape;
}

constexpr std::int64_t kNoElement = std::numeric_limits<std::int64_t>::max();

// The smallest index that any thread has found.
class FirstElement {
 public:
  void lower(std::int64_t index) {
    std::int64_t seen = index_.load();
    while (index < seen && !index_.compare_exchange_weak(seen, index)) {
    }
  }
  std::int64_t get() const { return index_.load(); }

 private:
  std::atomic<std::int64_t> index_{kNoElement};
};

// Names an element of `given`, whose shape it is, that the type cannot hold.
[[noreturn]] void refuse_element(const py::array& given, const Shape& shape, std::int64_t index,
                                 const quant::QtypeTraits& traits) {
  std::string place;
  std::int64_t rest = index;
  for (auto dim = shape.rbegin(); dim != shape.rend(); ++dim) {
    place = strcat(rest % *dim, place.empty() ? "" : ", ", place);
    rest /= *dim;
  }
  const double value = given.attr("item")(index).cast<double>();
  fail<ArgumentError>("[quantize] array: element ",
                      shape.size() > 1 ? strcat("(", place, ")") : place, " is ", value,
                      ", need finite values that ", traits.name,
                      " can hold: scale the array, or take BF16 or F32");
}

// float64 numbers are encoded as float32 first: one that becomes infinite there is refused.
void check_float32_range(const py::array& given, const FloatArray& array, const Shape& shape,
                         const quant::QtypeTraits& traits) {
  if (given.itemsize() <= 4) return;
  const float* const end = array.data() + array.size();
  for (const float* x = array.data();
       (x = std::find_if(x, end, [](float one) { return std::isinf(one); })) != end; ++x) {
    const std::int64_t index = x - array.data();
    if (!std::isinf(given.attr("item")(index).cast<double>())) {
      refuse_element(given, shape, index, traits);
    }
  }
}

py::array_t<std::uint8_t> quantize(const py::object& values, const std::string& qtype,
                                   int n_threads) {
  constexpr const char* kWhere = "[quantize]";
  const quant::QtypeTraits& traits = qtype_traits(qtype, kWhere);
  if (traits.encode == nullptr) {
    std::string known;
    for (const quant::QtypeTraits& row : quant::all_qtypes()) {
      if (row.encode == nullptr) continue;
      known += known.empty() ? "" : ", ";
      known += row.name;
    }
    fail<ArgumentError>(kWhere, " qtype: ", traits.name,
                        " can be read but not written, need one of ", known);
  }
  const FloatArray array = float_array(values, kWhere, "array");
  const auto given = py::reinterpret_borrow<py::array>(values);
  const Shape shape(array.shape(), array.shape() + array.ndim());
  check_float32_range(given, array, shape, traits);
  auto out = new_array<std::uint8_t>(byte_shape(shape, traits, kWhere));
  const float* in = array.data();
  std::uint8_t* blocks = out.mutable_data();
  const std::int64_t n_blocks = array.size() / traits.block_elems;
  FirstElement bad;
  {
    const GilRelease free_gil;
    // Encoders search: a block costs some hundred times what decoding it does.
    run_codec(n_blocks, std::int64_t{64} * traits.block_elems, n_threads,
              [&](std::int64_t first, std::int64_t n) {
                const std::int64_t begin = first * traits.block_elems;
                const std::int64_t at = quant::encode_checked(traits, in + begin, n,
                                                              blocks + first * traits.block_bytes);
                if (at != quant::kAllHeld) bad.lower(begin + at);
              });
  }
  if (bad.get() != kNoElement) refuse_element(given, shape, bad.get(), traits);
  return out;
}

py::array_t<float> dequantize(const py::object& raw, const std::string& qtype, const Shape& shape,
                              int n_threads) {
  constexpr const char* kWhere = "[dequantize]";
  const quant::QtypeTraits& traits = qtype_traits(qtype, kWhere);
  const std::span<const std::uint8_t> bytes = byte_span(raw, kWhere, "raw");
  const std::uint64_t n_elems = count_elems(shape, kWhere);
  byte_shape(shape, traits, kWhere);
  const std::uint64_t n_blocks = n_elems / static_cast<std::uint64_t>(traits.block_elems);
  const std::uint64_t need = n_blocks * static_cast<std::uint64_t>(traits.block_bytes);
  if (need != bytes.size()) {
    fail<ArgumentError>(kWhere, " raw: got ", bytes.size(), " bytes, need ", need, " for shape ",
                        py::str(py::tuple(py::cast(shape))).cast<std::string>(), " as ",
                        traits.name);
  }
  check_memory(n_elems * sizeof(float), kWhere);
  auto out = new_array<float>(shape);
  float* data = out.mutable_data();
  {
    const GilRelease free_gil;
    decode_blocks(traits, bytes.data(), static_cast<std::int64_t>(n_blocks), data, n_threads);
  }
  return out;
}

GGUFFile open_file(const std::string& path) {
  const GilRelease free_gil;
  cluster::LocalFile opened = cluster::open_settled(path);
  return GGUFFile(std::move(opened.file), std::move(opened.states));
}

py::typing::List<py::str> keys(const GGUFFile& self) {
  py::typing::List<py::str> out;
  for (const gguf::Value& value : self.file().metadata()) out.append(to_str(value.key()));
  return out;
}

const gguf::Value& find(const GGUFFile& self, const py::str& key) {
  const std::string encoded = from_str(key);
  const gguf::Value* value = self.file().find(encoded);
  if (value == nullptr) throw py::key_error(readable(encoded));
  return *value;
}

// (name, shape in NumPy order, element type, bytes) of every tensor, in file order.
using TensorRow =
    py::typing::Tuple<py::str, py::typing::Tuple<py::int_, py::ellipsis>, py::str, py::int_>;
py::typing::List<TensorRow> tensors(const GGUFFile& self) {
  py::typing::List<TensorRow> out;
  for (const gguf::TensorInfo& tensor : self.file().tensors()) {
    const Shape shape(tensor.ne.rbegin(), tensor.ne.rend());
    out.append(py::make_tuple(
        to_str(tensor.name), py::tuple(py::cast(shape)),
        py::str(quant::traits(tensor.type).name.data(), quant::traits(tensor.type).name.size()),
        tensor.n_bytes));
  }
  return out;
}

const gguf::TensorInfo& tensor_at(const GGUFFile& self, std::size_t index) {
  if (index >= self.file().tensors().size()) throw py::index_error("tensor index");
  return self.file().tensors()[index];
}

py::array_t<std::uint8_t> raw(const GGUFFile& self, std::size_t index) {
  const gguf::TensorInfo& info = tensor_at(self, index);
  const Shape shape(info.ne.rbegin(), info.ne.rend());
  return view(self.file().bytes(info).data(),
              byte_shape(shape, quant::traits(info.type), "[Tensor]"), keep(self.shared()));
}

// Entries [begin, begin + count) of the first axis; a one-dimensional tensor is decoded whole.
py::array_t<float> dequantize_tensor(const GGUFFile& self, std::size_t index, std::uint64_t begin,
                                     std::uint64_t count, int n_threads) {
  const gguf::TensorInfo& info = tensor_at(self, index);
  const quant::QtypeTraits& traits = quant::traits(info.type);
  Shape shape(info.ne.rbegin(), info.ne.rend());
  const std::uint64_t n_entries = shape.size() > 1 ? info.ne.back() : 1;
  if (begin > n_entries || count > n_entries - begin) {
    fail<ArgumentError>("[Tensor.dequantize] rows [", begin, ", ", begin + count,
                        "), need a range within [0, ", n_entries, ")");
  }
  const std::uint64_t entry_elems = info.n_elems / n_entries;
  if (shape.size() > 1) shape[0] = static_cast<py::ssize_t>(count);
  const std::uint8_t* blocks = self.file().bytes(info).data() + begin * (info.n_bytes / n_entries);
  check_memory(count * entry_elems * sizeof(float), "[Tensor.dequantize]");
  auto out = new_array<float>(shape);
  float* data = out.mutable_data();
  const auto n_blocks = static_cast<std::int64_t>(count * entry_elems) / traits.block_elems;
  {
    const std::shared_ptr<const gguf::File> alive = self.shared();
    const GilRelease free_gil;
    decode_blocks(traits, blocks, n_blocks, data, n_threads);
    alive->check_intact();
  }
  return out;
}

void writer_add_array(gguf::Writer& writer, const py::str& text, const std::string& type,
                      const py::array& values) {
  const std::string key = from_str(text);
  const ValueType elem_type = value_type(type, key);
  const auto packed = py::array::ensure(values, py::array::c_style);
  if (!packed) throw py::error_already_set();
  writer.add_array(
      key, elem_type, static_cast<std::uint64_t>(packed.size()),
      {static_cast<const std::uint8_t*>(packed.data()), static_cast<std::size_t>(packed.nbytes())});
}

void writer_add_tensor(gguf::Writer& writer, const py::str& text, const std::string& qtype,
                       const Shape& shape, const py::object& raw) {
  const std::string name = from_str(text);
  const quant::QtypeTraits& traits = qtype_traits(qtype, "[write_gguf]");
  count_elems(shape, "[write_gguf]");
  const std::vector<std::uint64_t> ne(shape.rbegin(), shape.rend());
  writer.add_tensor(name, traits.type, ne, byte_span(raw, "[write_gguf]", "tensor " + name));
}

void register_file(py::module_& m) {
  py::class_<GGUFFile>(m, "GGUFFile", "An open GGUF file set (private: use moesaic.GGUF).")
      .def(py::init([](const py::bytes& path) { return open_file(std::string(path)); }),
           py::arg("path"), "Open a file by its encoded path.")
      .def_property_readonly("version", [](const GGUFFile& self) { return self.file().version(); })
      .def_property_readonly("alignment",
                             [](const GGUFFile& self) { return self.file().alignment(); })
      .def_property_readonly(
          "paths",
          [](const GGUFFile& self) {
            std::vector<py::bytes> paths;
            for (const std::string& path : self.file().paths()) paths.emplace_back(path);
            return paths;
          },
          "Encoded paths of the parts.")
      .def("keys", &keys, "Metadata keys in file order.")
      .def(
          "value",
          [](const GGUFFile& self, const py::str& key) {
            py::object value = to_python(find(self, key));
            self.file().check_intact();
            return value;
          },
          py::arg("key"), "A metadata value; KeyError when absent.")
      .def(
          "value_type",
          [](const GGUFFile& self, const py::str& key) { return type_text(find(self, key)); },
          py::arg("key"), "The GGUF type of a metadata value, like \"u32\" or \"array[string]\".")
      .def("tensors", &tensors,
           "(name, shape in NumPy order, element type, bytes) of every tensor.")
      .def("raw", &raw, py::arg("index"), "A tensor's bytes: read-only, zero-copy.")
      .def("dequantize", &dequantize_tensor, py::arg("index"), py::arg("begin"), py::arg("count"),
           py::arg("threads") = 0, "Entries of the first axis as float32.");
}

void register_writer(py::module_& m) {
  using gguf::Writer;
  py::class_<Writer>(m, "GGUFWriter", "Writes a GGUF file (private: use moesaic.write_gguf).")
      .def(py::init<std::uint32_t>(), py::arg("alignment") = 32)
      .def(
          "add_int",
          [](Writer& self, const py::str& text, const std::string& type, std::int64_t value) {
            const std::string key = from_str(text);
            self.add_int(key, value_type(type, key), value);
          },
          py::arg("key"), py::arg("type"), py::arg("value"))
      .def(
          "add_uint",
          [](Writer& self, const py::str& text, const std::string& type, std::uint64_t value) {
            const std::string key = from_str(text);
            self.add_uint(key, value_type(type, key), value);
          },
          py::arg("key"), py::arg("type"), py::arg("value"))
      .def(
          "add_float",
          [](Writer& self, const py::str& text, const std::string& type, double value) {
            const std::string key = from_str(text);
            self.add_float(key, value_type(type, key), value);
          },
          py::arg("key"), py::arg("type"), py::arg("value"))
      .def(
          "add_bool",
          [](Writer& self, const py::str& key, bool value) { self.add_bool(from_str(key), value); },
          py::arg("key"), py::arg("value"))
      .def(
          "add_string",
          [](Writer& self, const py::str& key, const py::str& value) {
            self.add_string(from_str(key), from_str(value));
          },
          py::arg("key"), py::arg("value"))
      .def(
          "add_strings",
          [](Writer& self, const py::str& key, const std::vector<py::str>& values) {
            std::vector<std::string> strings;
            strings.reserve(values.size());
            for (const py::str& value : values) strings.push_back(from_str(value));
            self.add_strings(from_str(key), strings);
          },
          py::arg("key"), py::arg("values"))
      .def("add_array", &writer_add_array, py::arg("key"), py::arg("type"), py::arg("values"))
      .def("add_tensor", &writer_add_tensor, py::arg("name"), py::arg("qtype"), py::arg("shape"),
           py::arg("raw"))
      .def(
          "write",
          [](const Writer& self, const py::bytes& path) {
            const std::string encoded = path;
            const GilRelease free_gil;
            self.write(encoded);
          },
          py::arg("path"), "Write to an encoded path.");
}

}  // namespace

void register_gguf(py::module_& m) {
  register_file(m);
  register_writer(m);
  m.def("quantize", &quantize, py::arg("array"), py::arg("qtype"), py::arg("threads") = 0,
        "Encode floats; uint8 with the last axis in bytes.");
  m.def("dequantize", &dequantize, py::arg("raw"), py::arg("qtype"), py::arg("shape"),
        py::arg("threads") = 0, "Decode bytes to float32.");
  m.def(
      "qtypes",
      [] {
        std::vector<std::tuple<std::string, int, int, bool>> rows;
        for (const quant::QtypeTraits& row : quant::all_qtypes()) {
          rows.emplace_back(row.name, row.block_elems, row.block_bytes, row.encode != nullptr);
        }
        return rows;
      },
      "(name, elements per block, bytes per block, can be written) of every element type.");
}

}  // namespace moesaic::bindings
