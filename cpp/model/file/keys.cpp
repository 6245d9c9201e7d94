// Range checks for metadata values; see keys.h.
#include "model/file/keys.h"

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

std::vector<std::int64_t> Keys::per_layer(std::string_view name, std::int64_t n_layers) const {
  const gguf::Value* value = find(name);
  if (value == nullptr) return {};
  const auto n = static_cast<std::size_t>(n_layers);
  if (value->type() != gguf::ValueType::kArray) {
    return std::vector<std::int64_t>(n, count_or(name, 0));
  }
  const gguf::ArrayView array = value->as_array();
  const std::int64_t n_blocks = count("block_count");
  if (array.count() != static_cast<std::uint64_t>(n_blocks)) {
    bad(name, strcat("an array of ", array.count()),
        strcat("a number, or an array with one for each of block_count = ", n_blocks, " blocks"));
  }
  const std::string full_name = full(name);
  const std::size_t elem_bytes = array.bytes().size() / array.count();
  std::vector<std::int64_t> values;
  for (std::size_t i = 0; i < n; ++i) {
    const gguf::Value elem(full_name, array.elem_type(),
                           array.bytes().subspan(i * elem_bytes, elem_bytes));
    const std::uint64_t got = read(path_, elem, &gguf::Value::as_uint);
    if (got > static_cast<std::uint64_t>(kMaxCount)) {
      bad(name, strcat(got, " for layer ", i), "an integer from 0 to 2147483647");
    }
    values.push_back(static_cast<std::int64_t>(got));
  }
  return values;
}

std::int64_t Keys::same_count_or(std::string_view name, std::int64_t n_layers,
                                 std::int64_t fallback) const {
  const std::vector<std::int64_t> values = per_layer(name, n_layers);
  for (std::size_t i = 1; i < values.size(); ++i) {
    if (values[i] != values[0]) {
      bad(name, strcat(values[0], " for layer 0 and ", values[i], " for layer ", i),
          strcat("the same for all layers: models of '", arch_,
                 "' whose layers differ in it are not supported"));
    }
  }
  return values.empty() ? fallback : values[0];
}

std::int64_t Keys::same_count(std::string_view name, std::int64_t n_layers) const {
  if (!has(name)) return count(name);  // says what is missing
  const std::int64_t got = same_count_or(name, n_layers, 0);
  if (got < 1) bad(name, got, "an integer from 1 to 2147483647");
  return got;
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
