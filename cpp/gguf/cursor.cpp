// See cursor.h.
#include "gguf/cursor.h"

namespace moesaic::gguf {

std::string quoted(std::string_view name) {
  constexpr char kDigits[] = "0123456789abcdef";
  constexpr std::size_t kLongest = 80;
  std::string text = "\"";
  for (const char c : name.substr(0, kLongest)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7F || c == '"' || c == '\\') {
      text += "\\x";
      text += kDigits[byte >> 4];
      text += kDigits[byte & 15];
    } else {
      text += c;
    }
  }
  if (name.size() > kLongest) text += "...";
  return text + '"';
}

std::string_view Cursor::read_string(std::string_view what) {
  const std::uint64_t start = position_;
  const auto length = read<std::uint64_t>(what);
  if (length > left()) {
    fail_at(start, what, ": length ", length, ", but only ", left(),
            " bytes follow in the file; it is damaged or cut off");
  }
  const auto bytes = take(length, what);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

void Cursor::too_short(std::uint64_t n_bytes, std::string_view what) const {
  fail_here(what, ": need ", n_bytes, " bytes, but the file ends ", n_bytes - left(),
            " bytes too early (it has ", bytes_.size(), "); is the download complete?");
}

std::string Cursor::subject() const {
  return kind_.empty() ? std::string() : strcat(", ", kind_, " ", quoted(name_));
}

}  // namespace moesaic::gguf
