// Reading a header field by field with every read checked against the bytes left. Messages name
// file, byte and key. Internal to gguf/. Nothing here allocates from a size that the file claims.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "base/errors.h"

namespace moesaic::gguf {

// A name as it may stand in a message: quoted, control and non-ASCII bytes escaped, cut at 80
// characters.
std::string quoted(std::string_view name);

class Cursor {
 public:
  // `file` stands in messages and must outlive the cursor.
  Cursor(std::span<const std::uint8_t> bytes, const std::string& file)
      : bytes_(bytes), file_(file) {}

  std::uint64_t position() const { return position_; }
  std::uint64_t left() const { return bytes_.size() - position_; }
  // What is being read now, for messages: kind "key" or "tensor" and its name. An empty kind clears
  // it.
  void set_subject(std::string_view kind, std::string_view name) {
    kind_ = kind;
    name_ = name;
  }

  template <typename T>
  T read(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }
  // The next n_bytes, a view.
  std::span<const std::uint8_t> take(std::uint64_t n_bytes, std::string_view what) {
    if (n_bytes > left()) too_short(n_bytes, what);
    const auto view = bytes_.subspan(position_, n_bytes);
    position_ += n_bytes;
    return view;
  }
  // u64 length and bytes; a view of the bytes.
  std::string_view read_string(std::string_view what);

  // Throws FormatError: "[gguf] file, byte N, key "x": parts".
  template <typename... Parts>
  [[noreturn]] void fail_here(const Parts&... parts) const {
    fail_at(position_, parts...);
  }
  template <typename... Parts>
  [[noreturn]] void fail_at(std::uint64_t position, const Parts&... parts) const {
    fail<FormatError>("[gguf] ", file_, ", byte ", position, subject(), ": ", parts...);
  }

 private:
  [[noreturn]] void too_short(std::uint64_t n_bytes, std::string_view what) const;
  std::string subject() const;

  std::span<const std::uint8_t> bytes_;
  const std::string& file_;
  std::uint64_t position_ = 0;
  std::string_view kind_;
  std::string_view name_;
};

}  // namespace moesaic::gguf
