// Lays a file out: header, metadata, directory, padding, tensors. Everything that the reader
// refuses is refused here.
#include "gguf/writer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/checked.h"
#include "base/errors.h"
#include "base/output_file.h"
#include "gguf/cursor.h"
#include "gguf/layout.h"

namespace moesaic::gguf {
namespace {

constexpr std::uint32_t kVersion = 3;

template <typename T>
void put(std::vector<std::uint8_t>& out, T value) {
  const std::size_t at = out.size();
  out.resize(at + sizeof(T));
  std::memcpy(out.data() + at, &value, sizeof(T));
}

void put_bytes(std::vector<std::uint8_t>& out, std::span<const std::uint8_t> bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

void put_string(std::vector<std::uint8_t>& out, std::string_view text) {
  put<std::uint64_t>(out, text.size());
  out.insert(out.end(), text.begin(), text.end());
}

[[noreturn]] void refuse_type(std::string_view key, ValueType type, const char* need) {
  fail<ArgumentError>("[gguf.Writer] key ", quoted(key), ": type ", value_type_name(type),
                      ", need ", need);
}

// The range of an integer type; min and max fit 64 bits of their signedness.
struct IntRange {
  std::int64_t min;
  std::uint64_t max;
};

template <typename T>
IntRange range_of() {
  return {static_cast<std::int64_t>(std::numeric_limits<T>::min()),
          static_cast<std::uint64_t>(std::numeric_limits<T>::max())};
}

IntRange int_range(std::string_view key, ValueType type) {
  switch (type) {
    case ValueType::kU8:
      return range_of<std::uint8_t>();
    case ValueType::kI8:
      return range_of<std::int8_t>();
    case ValueType::kU16:
      return range_of<std::uint16_t>();
    case ValueType::kI16:
      return range_of<std::int16_t>();
    case ValueType::kU32:
      return range_of<std::uint32_t>();
    case ValueType::kI32:
      return range_of<std::int32_t>();
    case ValueType::kU64:
      return range_of<std::uint64_t>();
    case ValueType::kI64:
      return range_of<std::int64_t>();
    default:
      refuse_type(key, type, "an integer type");
  }
}

void pad_to(std::vector<std::uint8_t>& out, std::uint64_t alignment) {
  out.resize((out.size() + alignment - 1) & ~(alignment - 1), 0);
}

}  // namespace

Writer::Writer(std::uint32_t alignment) : alignment_(alignment) {
  if (!std::has_single_bit(alignment) || alignment < 8 || alignment > kMaxAlignment) {
    fail<ArgumentError>("[gguf.Writer] alignment: got ", alignment,
                        ", need a power of two from 8 to ", kMaxAlignment);
  }
  if (alignment != kDefaultAlignment) add_uint("general.alignment", ValueType::kU32, alignment);
}

void Writer::begin_key(std::string_view key, ValueType type) {
  if (key.empty() || key.size() > kMaxNameBytes) {
    fail<ArgumentError>("[gguf.Writer] a key of ", key.size(), " bytes, need 1 to ", kMaxNameBytes);
  }
  const std::string name(key);
  if (!keys_.insert(name).second) {
    fail<ArgumentError>("[gguf.Writer] key ", quoted(key), " is given twice");
  }
  if (key == "general.alignment" && n_keys_ > 0) {
    fail<ArgumentError>("[gguf.Writer] general.alignment is the constructor's argument");
  }
  ++n_keys_;
  put_string(metadata_, key);
  put(metadata_, static_cast<std::uint32_t>(type));
}

void Writer::add_int(std::string_view key, ValueType type, std::int64_t value) {
  if (value >= 0) {
    add_uint(key, type, static_cast<std::uint64_t>(value));
    return;
  }
  const IntRange range = int_range(key, type);
  if (value < range.min) {
    fail<ArgumentError>("[gguf.Writer] key ", quoted(key), ": ", value, " does not fit ",
                        value_type_name(type));
  }
  begin_key(key, type);
  // Two's complement: the low bytes are the narrower integer.
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(&value);
  metadata_.insert(metadata_.end(), bytes, bytes + scalar_bytes(type));
}

void Writer::add_uint(std::string_view key, ValueType type, std::uint64_t value) {
  const IntRange range = int_range(key, type);
  if (value > range.max) {
    fail<ArgumentError>("[gguf.Writer] key ", quoted(key), ": ", value, " does not fit ",
                        value_type_name(type));
  }
  begin_key(key, type);
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(&value);
  metadata_.insert(metadata_.end(), bytes, bytes + scalar_bytes(type));
}

void Writer::add_float(std::string_view key, ValueType type, double value) {
  if (type != ValueType::kF32 && type != ValueType::kF64) refuse_type(key, type, "f32 or f64");
  if (type == ValueType::kF32 && std::isfinite(value) && std::isinf(static_cast<float>(value))) {
    fail<ArgumentError>("[gguf.Writer] key ", quoted(key), ": ", value,
                        " does not fit f32: write it as f64");
  }
  begin_key(key, type);
  if (type == ValueType::kF32) {
    put(metadata_, static_cast<float>(value));
  } else {
    put(metadata_, value);
  }
}

void Writer::add_bool(std::string_view key, bool value) {
  begin_key(key, ValueType::kBool);
  put<std::uint8_t>(metadata_, value ? 1 : 0);
}

void Writer::add_string(std::string_view key, std::string_view value) {
  begin_key(key, ValueType::kString);
  put_string(metadata_, value);
}

void Writer::add_array(std::string_view key, ValueType elem_type, std::uint64_t count,
                       std::span<const std::uint8_t> packed) {
  const std::uint64_t elem_bytes = scalar_bytes(elem_type);
  if (elem_bytes == 0) refuse_type(key, elem_type, "a scalar type (strings: add_strings)");
  if (packed.size() % elem_bytes != 0 || packed.size() / elem_bytes != count) {
    fail<ArgumentError>("[gguf.Writer] key ", quoted(key), ": got ", packed.size(), " bytes, need ",
                        count, " x ", elem_bytes);
  }
  if (elem_type == ValueType::kBool &&
      std::any_of(packed.begin(), packed.end(), [](std::uint8_t b) { return b > 1; })) {
    fail<ArgumentError>("[gguf.Writer] key ", quoted(key), ": bools need bytes of 0 or 1");
  }
  begin_key(key, ValueType::kArray);
  put(metadata_, static_cast<std::uint32_t>(elem_type));
  put(metadata_, count);
  put_bytes(metadata_, packed);
}

void Writer::add_strings(std::string_view key, std::span<const std::string> values) {
  begin_key(key, ValueType::kArray);
  put(metadata_, static_cast<std::uint32_t>(ValueType::kString));
  put<std::uint64_t>(metadata_, values.size());
  for (const std::string& value : values) put_string(metadata_, value);
}

void Writer::add_tensor(std::string_view name, quant::Qtype type, std::span<const std::uint64_t> ne,
                        std::span<const std::uint8_t> bytes) {
  const std::string label = strcat("[gguf.Writer] tensor ", quoted(name), ": ");
  if (name.empty() || name.size() > kMaxNameBytes) {
    fail<ArgumentError>(label, "a name of ", name.size(), " bytes, need 1 to ", kMaxNameBytes);
  }
  if (!names_.insert(std::string(name)).second) fail<ArgumentError>(label, "is given twice");
  if (ne.empty() || ne.size() > kMaxDims) {
    fail<ArgumentError>(label, ne.size(), " dimensions, need 1 to ", kMaxDims);
  }
  std::uint64_t need = 0;
  try {
    need = quant::row_bytes(type, ne[0]);
    for (const std::uint64_t n : ne.subspan(1)) need = checked_mul(need, n, "bytes of a tensor");
  } catch (const FormatError& error) {
    fail<ArgumentError>(label, error.what());
  }
  if (need == 0) fail<ArgumentError>(label, "has a dimension of 0 elements, need at least 1");
  if (need != bytes.size()) {
    fail<ArgumentError>(label, "got ", bytes.size(), " bytes, need ", need, " for its shape as ",
                        quant::traits(type).name);
  }
  tensors_.push_back(
      {std::string(name), type, {ne.begin(), ne.end()}, {bytes.begin(), bytes.end()}});
}

std::vector<std::uint8_t> Writer::header() const {
  std::vector<std::uint8_t> out;
  for (const char c : kMagic) put(out, c);
  put(out, kVersion);
  put<std::uint64_t>(out, tensors_.size());
  put(out, n_keys_);
  put_bytes(out, metadata_);
  std::uint64_t offset = 0;
  for (const Tensor& tensor : tensors_) {
    put_string(out, tensor.name);
    put(out, static_cast<std::uint32_t>(tensor.ne.size()));
    for (const std::uint64_t n : tensor.ne) put(out, n);
    put(out, static_cast<std::uint32_t>(tensor.type));
    put(out, offset);
    offset = checked_align(offset + tensor.bytes.size(), alignment_, "offset");
  }
  pad_to(out, alignment_);
  return out;
}

std::vector<std::uint8_t> Writer::finish() const {
  std::vector<std::uint8_t> out = header();
  for (const Tensor& tensor : tensors_) {
    put_bytes(out, tensor.bytes);
    pad_to(out, alignment_);
  }
  return out;
}

void Writer::write(const std::string& path) const {
  OutputFile file("gguf.Writer", path, OutputFile::Access::kAsUsual);
  file.write(header());
  const std::vector<std::uint8_t> zeros(alignment_, 0);
  for (const Tensor& tensor : tensors_) {
    file.write(tensor.bytes);
    const std::uint64_t over = tensor.bytes.size() & (alignment_ - 1);
    if (over != 0) file.write(std::span(zeros).first(alignment_ - over));
  }
  file.commit();
}

}  // namespace moesaic::gguf
