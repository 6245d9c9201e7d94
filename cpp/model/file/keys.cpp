// Range checks for metadata values; see keys.h.
#include "model/file/keys.h"

#include <algorithm>
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

// An array whose elements are numbers or bools, all of one size.
bool is_plain_array(const gguf::Value& value) {
  if (value.type() != gguf::ValueType::kArray) return false;
  const gguf::ValueType type = value.as_array().elem_type();
  return type != gguf::ValueType::kString && type != gguf::ValueType::kArray;
}

}  // namespace

gguf::Value element(const gguf::Value& array, std::uint64_t index) {
  const gguf::ArrayView view = array.as_array();
  const std::size_t size = view.bytes().size() / view.count();
  return {array.key(), view.elem_type(), view.bytes().subspan(index * size, size)};
}

std::string text_of(const gguf::Value& value) {
  constexpr std::size_t kMostText = 60;
  constexpr std::uint64_t kMostElements = 4;
  switch (value.type()) {
    case gguf::ValueType::kString:
      return strcat("'", value.as_string().substr(0, kMostText), "'");
    case gguf::ValueType::kBool:
      return value.as_bool() ? "true" : "false";
    case gguf::ValueType::kF32:
    case gguf::ValueType::kF64:
      return strcat(value.as_float());
    case gguf::ValueType::kU64:
      return strcat(value.as_uint());
    case gguf::ValueType::kArray:
      break;
    default:
      return strcat(value.as_int());
  }
  const std::uint64_t n = value.as_array().count();
  if (!is_plain_array(value)) return strcat("an array of ", n);
  std::string text = "[";
  for (std::uint64_t i = 0; i < std::min(n, kMostElements); ++i) {
    text += (i == 0 ? "" : ", ") + text_of(element(value, i));
  }
  return text + (n > kMostElements ? strcat(", ...] (", n, " values)") : "]");
}

Keys::Keys(std::shared_ptr<const gguf::File> file) : file_(std::move(file)) {
  path_ = file_->paths().empty() ? std::string("(memory)") : file_->paths().front();
  const gguf::Value* arch = file_->find("general.architecture");
  if (arch == nullptr) {
    fail<FormatError>("[model] ", path_,
                      ": key general.architecture: missing, need the name of a model family");
  }
  arch_ = std::string(read(path_, *arch, &gguf::Value::as_string));
}

const gguf::Value* Keys::find(std::string_view name) const {
  asked_.emplace(name);
  return file_->find(full(name));
}

std::int64_t Keys::block_count() const {
  const gguf::Value* value = find("block_count");
  if (value == nullptr) bad("block_count", "nothing", "an integer from 1 to 2147483647");
  const std::uint64_t got = read(path_, *value, &gguf::Value::as_uint);
  return static_cast<std::int64_t>(std::min(got, static_cast<std::uint64_t>(kMaxCount)));
}

gguf::ArrayView Keys::blocks(std::string_view name, const gguf::Value& value) const {
  const gguf::ArrayView array = value.as_array();
  const std::int64_t n_blocks = block_count();
  if (array.count() != static_cast<std::uint64_t>(n_blocks)) {
    bad(name, strcat("an array of ", array.count()),
        strcat("a number, or an array with one for each of block_count = ", n_blocks, " blocks"));
  }
  return array;
}

std::optional<gguf::Value> Keys::one(std::string_view name) const {
  const gguf::Value* value = find(name);
  if (value == nullptr) return std::nullopt;
  if (!is_plain_array(*value)) return *value;
  const gguf::ArrayView array = blocks(name, *value);
  if (array.count() == 0) return *value;  // of no type that a getter takes
  // Blocks for predicting further tokens are skipped, whatever they say.
  const gguf::Value* skipped = find("nextn_predict_layers");
  const std::uint64_t n_skipped = skipped == nullptr || is_plain_array(*skipped)
                                      ? 0
                                      : read(path_, *skipped, &gguf::Value::as_uint);
  const std::uint64_t n = array.count() - std::min(n_skipped, array.count() - 1);
  const std::size_t size = array.bytes().size() / array.count();
  for (std::uint64_t i = 1; i < n; ++i) {
    const auto here = array.bytes().subspan(i * size, size);
    if (std::equal(here.begin(), here.end(), array.bytes().begin())) continue;
    bad(name,
        strcat(text_of(element(*value, 0)), " for layer 0 and ", text_of(element(*value, i)),
               " for layer ", i),
        strcat("the same for all layers: models of '", arch_,
               "' whose layers differ in it are not supported"));
  }
  return element(*value, 0);
}

std::int64_t Keys::count(std::string_view name) const {
  const std::optional<gguf::Value> value = one(name);
  if (!value) bad(name, "nothing", "an integer from 1 to 2147483647");
  const std::uint64_t got = read(path_, *value, &gguf::Value::as_uint);
  if (got < 1 || got > static_cast<std::uint64_t>(kMaxCount)) {
    bad(name, got, "an integer from 1 to 2147483647");
  }
  return static_cast<std::int64_t>(got);
}

std::int64_t Keys::count_or(std::string_view name, std::int64_t fallback) const {
  const std::optional<gguf::Value> value = one(name);
  if (!value) return fallback;
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
  if (!is_plain_array(*value)) return std::vector<std::int64_t>(n, count_or(name, 0));
  blocks(name, *value);
  std::vector<std::int64_t> values;
  for (std::size_t i = 0; i < n; ++i) {
    const std::uint64_t got = read(path_, element(*value, i), &gguf::Value::as_uint);
    if (got > static_cast<std::uint64_t>(kMaxCount)) {
      bad(name, strcat(got, " for layer ", i), "an integer from 0 to 2147483647");
    }
    values.push_back(static_cast<std::int64_t>(got));
  }
  return values;
}

double Keys::positive(std::string_view name) const {
  const std::optional<gguf::Value> value = one(name);
  if (!value) bad(name, "nothing", "a number above 0");
  const double got = read(path_, *value, &gguf::Value::as_float);
  if (!std::isfinite(got) || got <= 0.0) bad(name, got, "a finite number above 0");
  return got;
}

double Keys::positive_or(std::string_view name, double fallback) const {
  return has(name) ? positive(name) : fallback;
}

double Keys::number_or(std::string_view name, double fallback) const {
  const std::optional<gguf::Value> value = one(name);
  if (!value) return fallback;
  const double got = read(path_, *value, &gguf::Value::as_float);
  if (!std::isfinite(got)) bad(name, got, "a finite number");
  return got;
}

bool Keys::flag_or(std::string_view name, bool fallback) const {
  const std::optional<gguf::Value> value = one(name);
  return !value ? fallback : read(path_, *value, &gguf::Value::as_bool);
}

std::string Keys::text_or(std::string_view name, std::string_view fallback) const {
  const std::optional<gguf::Value> value = one(name);
  return std::string(!value ? fallback : read(path_, *value, &gguf::Value::as_string));
}

}  // namespace moesaic::model
