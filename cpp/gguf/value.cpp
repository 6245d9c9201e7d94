// Metadata values: views into the mapping and their typed getters. The payloads were bounds-checked
// when the file was opened (parse.cpp); here only types and ranges are checked.
#include <array>
#include <cstring>
#include <limits>

#include "base/errors.h"
#include "gguf/cursor.h"
#include "gguf/file.h"
#include "gguf/layout.h"

namespace moesaic::gguf {
namespace {

constexpr std::array<std::string_view, 13> kNames = {
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64"};

template <typename T>
T load(const std::uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

[[noreturn]] void wrong_type(const Value& value, const char* need) {
  fail<FormatError>("[gguf] key ", quoted(value.key()), ": is ", value_type_name(value.type()),
                    ", need ", need);
}

}  // namespace

std::string_view value_type_name(ValueType type) {
  const auto id = static_cast<std::size_t>(type);
  return id < kNames.size() ? kNames[id] : std::string_view("unknown");
}

std::uint32_t scalar_bytes(ValueType type) {
  switch (type) {
    case ValueType::kU8:
    case ValueType::kI8:
    case ValueType::kBool:
      return 1;
    case ValueType::kU16:
    case ValueType::kI16:
      return 2;
    case ValueType::kU32:
    case ValueType::kI32:
    case ValueType::kF32:
      return 4;
    case ValueType::kU64:
    case ValueType::kI64:
    case ValueType::kF64:
      return 8;
    case ValueType::kString:
    case ValueType::kArray:
      return 0;
  }
  return 0;
}

std::vector<std::string_view> ArrayView::strings() const {
  if (elem_type_ != ValueType::kString) {
    fail<FormatError>("[gguf] an array of ", value_type_name(elem_type_), ", need one of strings");
  }
  std::vector<std::string_view> views;
  views.reserve(count_);  // each takes 8 bytes of the file at least: parse.cpp has walked them
  const std::uint8_t* at = bytes_.data();
  for (std::uint64_t i = 0; i < count_; ++i) {
    const auto length = load<std::uint64_t>(at);
    views.emplace_back(reinterpret_cast<const char*>(at + 8), length);
    at += 8 + length;
  }
  return views;
}

Value::Value(std::string_view key, ValueType type, std::span<const std::uint8_t> bytes)
    : key_(key), type_(type), bytes_(bytes) {}

std::int64_t Value::as_int() const {
  switch (type_) {
    case ValueType::kU8:
    case ValueType::kBool:
      return load<std::uint8_t>(bytes_.data());
    case ValueType::kI8:
      return load<std::int8_t>(bytes_.data());
    case ValueType::kU16:
      return load<std::uint16_t>(bytes_.data());
    case ValueType::kI16:
      return load<std::int16_t>(bytes_.data());
    case ValueType::kU32:
      return load<std::uint32_t>(bytes_.data());
    case ValueType::kI32:
      return load<std::int32_t>(bytes_.data());
    case ValueType::kI64:
      return load<std::int64_t>(bytes_.data());
    case ValueType::kU64: {
      const auto value = load<std::uint64_t>(bytes_.data());
      if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        fail<FormatError>("[gguf] key ", quoted(key_), ": ", value, " does not fit 63 bits");
      }
      return static_cast<std::int64_t>(value);
    }
    default:
      wrong_type(*this, "an integer");
  }
}

std::uint64_t Value::as_uint() const {
  if (type_ == ValueType::kU64) return load<std::uint64_t>(bytes_.data());
  const std::int64_t value = as_int();
  if (value < 0) {
    fail<FormatError>("[gguf] key ", quoted(key_), ": ", value, " is negative, need 0 or more");
  }
  return static_cast<std::uint64_t>(value);
}

double Value::as_float() const {
  switch (type_) {
    case ValueType::kF32:
      return load<float>(bytes_.data());
    case ValueType::kF64:
      return load<double>(bytes_.data());
    case ValueType::kU64:
      return static_cast<double>(load<std::uint64_t>(bytes_.data()));
    case ValueType::kBool:
    case ValueType::kString:
    case ValueType::kArray:
      wrong_type(*this, "a number");
    default:
      return static_cast<double>(as_int());
  }
}

bool Value::as_bool() const {
  if (type_ != ValueType::kBool) wrong_type(*this, "a bool");
  return bytes_[0] != 0;
}

std::string_view Value::as_string() const {
  if (type_ != ValueType::kString) wrong_type(*this, "a string");
  return {reinterpret_cast<const char*>(bytes_.data()) + 8, bytes_.size() - 8};
}

ArrayView Value::as_array() const {
  if (type_ != ValueType::kArray) wrong_type(*this, "an array");
  return {static_cast<ValueType>(load<std::uint32_t>(bytes_.data())),
          load<std::uint64_t>(bytes_.data() + 4), bytes_.subspan(kArrayHeaderBytes)};
}

}  // namespace moesaic::gguf
