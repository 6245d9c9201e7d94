// Writing and reading fields as little-endian bytes, one at a time, never by casting structs. A
// Reader checks every length against the bytes that are there before it allocates anything, so that
// a body of n bytes makes it allocate at most about 2 n + 1 MB; what is off throws ProtocolError.
// Types without a `fields` function (fields.h) do not compile.
#pragma once

#include <array>
#include <bit>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "base/errors.h"

namespace moesaic::wire {

static_assert(std::endian::native == std::endian::little);

template <typename T>
concept Scalar = std::is_arithmetic_v<T> || std::is_enum_v<T>;

class Writer {
 public:
  template <Scalar T>
  void field(const T& value) {
    append(&value, sizeof(T));
  }
  void field(const std::string& text) {
    put_count(text.size());
    append(text.data(), text.size());
  }
  template <typename T, std::size_t N>
  void field(const std::array<T, N>& values) {
    for (const T& value : values) field(value);
  }
  template <typename T>
  void field(const std::vector<T>& values) {
    put_count(values.size());
    if constexpr (Scalar<T>) {
      append(values.data(), values.size() * sizeof(T));
    } else {
      for (const T& value : values) field(value);
    }
  }
  template <typename T>
  void field(const std::optional<T>& value) {
    field(value.has_value());
    if (value) field(*value);
  }
  template <typename T>
  requires std::is_class_v<T>
  void field(const T& message) {
    fields(*this, const_cast<T&>(message));  // a Writer changes nothing
  }

  std::vector<std::uint8_t> take() { return std::move(bytes_); }

 private:
  void put_count(std::size_t n) {
    if (n > UINT32_MAX)
      fail<ArgumentError>("[wire] a list of ", n, " elements is too long to send");
    field(static_cast<std::uint32_t>(n));
  }
  // Not inlined: once per field of every message would be much code, and GCC 12 then warns of
  // bounds that cannot be passed.
  [[gnu::noinline]] void append(const void* data, std::size_t n_bytes) {
    if (n_bytes == 0) return;  // data may be null
    const std::size_t at = bytes_.size();
    bytes_.resize(at + n_bytes);
    std::memcpy(bytes_.data() + at, data, n_bytes);
  }

  std::vector<std::uint8_t> bytes_;
};

class Reader {
 public:
  // Most elements of a list whose structs take more than twice their bytes on the wire (an empty
  // string is 4 bytes there and 32 in memory). Lists of others are bounded by the body alone.
  static constexpr std::uint32_t kMaxSparseList = 4096;

  explicit Reader(std::span<const std::uint8_t> bytes) : bytes_(bytes) {}

  template <Scalar T>
  void field(T& value) {
    if constexpr (std::same_as<T, bool>) {
      const std::uint8_t byte = *need(1);
      if (byte > 1) fail<ProtocolError>("[wire] a bool is ", int{byte}, " at byte ", at_ - 1);
      value = byte == 1;
    } else {
      std::memcpy(&value, need(sizeof(T)), sizeof(T));
      if constexpr (std::is_enum_v<T>) {
        if (!exists(value)) {
          fail<ProtocolError>("[wire] no enumerator ",
                              +static_cast<std::underlying_type_t<T>>(value), " at byte ",
                              at_ - sizeof(T));
        }
      }
    }
  }
  void field(std::string& text) {
    const std::uint32_t n = count(1);
    text.assign(reinterpret_cast<const char*>(need(n)), n);
  }
  template <typename T, std::size_t N>
  void field(std::array<T, N>& values) {
    for (T& value : values) field(value);
  }
  template <typename T>
  void field(std::vector<T>& values) {
    if constexpr (Scalar<T>) {
      static_assert(std::is_arithmetic_v<T> && !std::same_as<T, bool>);
      const std::uint32_t n = count(sizeof(T));
      const std::uint8_t* raw = need(n * sizeof(T));
      values.resize(n);
      if (n > 0) std::memcpy(values.data(), raw, n * sizeof(T));
    } else {
      static_assert(kMaxSparseList * sizeof(T) <= (std::size_t{1} << 20));
      const std::uint32_t n = count(1);  // an element takes at least a byte
      if (n > kMaxSparseList && n > 2 * left() / sizeof(T)) {
        fail<ProtocolError>("[wire] a list of ", n, " elements at byte ", at_ - 4, ", ", left(),
                            " bytes left, at most ", kMaxSparseList, " so short ones");
      }
      values.clear();
      values.reserve(n);
      for (std::uint32_t i = 0; i < n; ++i) field(values.emplace_back());
    }
  }
  template <typename T>
  void field(std::optional<T>& value) {
    bool there = false;
    field(there);
    if (there) {
      field(value.emplace());
    } else {
      value.reset();
    }
  }
  template <typename T>
  requires std::is_class_v<T>
  void field(T& message) { fields(*this, message); }

  std::size_t left() const { return bytes_.size() - at_; }
  void expect_end(const char* what) const {
    if (left() != 0) fail<ProtocolError>("[wire] ", what, ": ", left(), " bytes after its end");
  }

 private:
  std::uint32_t count(std::size_t elem_bytes) {
    std::uint32_t n = 0;
    field(n);
    if (n > left() / elem_bytes) {
      fail<ProtocolError>("[wire] a list of ", n, " elements at byte ", at_ - 4, ", ", left(),
                          " bytes left");
    }
    return n;
  }
  const std::uint8_t* need(std::size_t n) {
    if (n > left()) {
      fail<ProtocolError>("[wire] body ends at byte ", bytes_.size(), ", need ", n, " more at ",
                          at_);
    }
    const std::uint8_t* raw = bytes_.data() + at_;
    at_ += n;
    return raw;
  }

  std::span<const std::uint8_t> bytes_;
  std::size_t at_ = 0;
};

}  // namespace moesaic::wire
