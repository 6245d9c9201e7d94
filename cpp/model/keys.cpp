// Range checks for metadata values; see keys.h.
#include "model/keys.h"

#include <cmath>

namespace moesaic::model {
namespace {

// A value by one of its getters; a wrong type is refused with the file's name before the key's.
template <typename Got>
Got read(const std::string& path, const gguf::Value& value, Got (gguf::Value::*get)() const) {
  try {
    return (value.*get)();
  } catch (const FormatError& error) {
    fail<FormatError>("[model] ", path, ": ", error.what());
  }
}

}  // namespace

Keys::Keys(std::shared_ptr<const gguf::File> file) : file_(std::move(file)) {
  path_ = file_->paths().empty() ? std::string("(memory)") : file_->paths().front();
  const gguf::Value* arch = file_->find("general.architecture");
  if (arch == nullptr) {
    fail<FormatError>("[model] ", path_,
                      ": key general.architecture: missing, need the name of a model family");
  }
  arch_ = std::string(read(path_, *arch, &gguf::Value::as_string));
}

const gguf::Value* Keys::find(std::string_view name) const { return file_->find(full(name)); }

std::int64_t Keys::count(std::string_view name) const {
  const gguf::Value* value = find(name);
  if (value == nullptr) bad(name, "nothing", "an integer from 1 to 2147483647");
  const std::uint64_t got = read(path_, *value, &gguf::Value::as_uint);
  if (got < 1 || got > static_cast<std::uint64_t>(kMaxCount)) {
    bad(name, got, "an integer from 1 to 2147483647");
  }
  return static_cast<std::int64_t>(got);
}

std::int64_t Keys::count_or(std::string_view name, std::int64_t fallback) const {
  const gguf::Value* value = find(name);
  if (value == nullptr) return fallback;
  const std::uint64_t got = read(path_, *value, &gguf::Value::as_uint);
  if (got > static_cast<std::uint64_t>(kMaxCount)) {
    bad(name, got, "an integer from 0 to 2147483647");
  }
  return static_cast<std::int64_t>(got);
}

double Keys::positive(std::string_view name) const {
  const gguf::Value* value = find(name);
  if (value == nullptr) bad(name, "nothing", "a number above 0");
  const double got = read(path_, *value, &gguf::Value::as_float);
  if (!std::isfinite(got) || got <= 0.0) bad(name, got, "a finite number above 0");
  return got;
}

double Keys::positive_or(std::string_view name, double fallback) const {
  return has(name) ? positive(name) : fallback;
}

double Keys::number_or(std::string_view name, double fallback) const {
  const gguf::Value* value = find(name);
  if (value == nullptr) return fallback;
  const double got = read(path_, *value, &gguf::Value::as_float);
  if (!std::isfinite(got)) bad(name, got, "a finite number");
  return got;
}

bool Keys::flag_or(std::string_view name, bool fallback) const {
  const gguf::Value* value = find(name);
  return value == nullptr ? fallback : read(path_, *value, &gguf::Value::as_bool);
}

std::string Keys::text_or(std::string_view name, std::string_view fallback) const {
  const gguf::Value* value = find(name);
  return std::string(value == nullptr ? fallback : read(path_, *value, &gguf::Value::as_string));
}

}  // namespace moesaic::model
