// See overrides.h.
#include "model/file/overrides.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <list>
#include <map>
#include <set>
#include <sstream>
#include <string_view>
#include <utility>

#include "base/errors.h"
#include "model/file/unread_keys.h"

namespace moesaic::model {
namespace {

using gguf::ValueType;
using Bytes = std::vector<std::uint8_t>;

std::string_view without_prefix(std::string_view name, std::string_view arch) {
  const bool is_full =
      name.size() > arch.size() && name.starts_with(arch) && name[arch.size()] == '.';
  return is_full ? name.substr(arch.size() + 1) : name;
}

std::string text_of_value(const Override& override) {
  std::ostringstream text;
  text.precision(std::numeric_limits<double>::max_digits10);
  if (const auto* flag = std::get_if<bool>(&override.value)) {
    text << (*flag ? "true" : "false");
  } else {
    std::visit([&](const auto& value) { text << value; }, override.value);
  }
  return text.str();
}

[[noreturn]] void bad(const Override& override, std::string_view need) {
  fail<ArgumentError>("[overrides] ", override.name, ": got ", text_of_value(override), ", need ",
                      need);
}

template <typename T>
Bytes packed(T value) {
  Bytes bytes(sizeof(T));
  std::memcpy(bytes.data(), &value, sizeof(T));
  return bytes;
}

template <typename T>
Bytes integer(const Override& override) {
  const auto* value = std::get_if<std::int64_t>(&override.value);
  if (value == nullptr) bad(override, "an integer");
  if (!std::in_range<T>(*value)) {
    bad(override, strcat("an integer from ", +std::numeric_limits<T>::min(), " to ",
                         +std::numeric_limits<T>::max()));
  }
  return packed(static_cast<T>(*value));
}

template <typename T>
Bytes real(const Override& override) {
  double value = 0;
  if (const auto* number = std::get_if<double>(&override.value)) {
    value = *number;
  } else if (const auto* whole = std::get_if<std::int64_t>(&override.value)) {
    value = static_cast<double>(*whole);
  } else {
    bad(override, "a number");
  }
  if (!std::isfinite(value) ||
      std::abs(value) > static_cast<double>(std::numeric_limits<T>::max())) {
    bad(override, "a finite number that its type holds");
  }
  return packed(static_cast<T>(value));
}

Bytes encode(const Override& override, ValueType type) {
  switch (type) {
    case ValueType::kU8:
      return integer<std::uint8_t>(override);
    case ValueType::kI8:
      return integer<std::int8_t>(override);
    case ValueType::kU16:
      return integer<std::uint16_t>(override);
    case ValueType::kI16:
      return integer<std::int16_t>(override);
    case ValueType::kU32:
      return integer<std::uint32_t>(override);
    case ValueType::kI32:
      return integer<std::int32_t>(override);
    case ValueType::kU64:
      return integer<std::uint64_t>(override);
    case ValueType::kI64:
      return integer<std::int64_t>(override);
    case ValueType::kF32:
      return real<float>(override);
    case ValueType::kF64:
      return real<double>(override);
    case ValueType::kBool: {
      const auto* flag = std::get_if<bool>(&override.value);
      if (flag == nullptr) bad(override, "true or false");
      return {static_cast<std::uint8_t>(*flag ? 1 : 0)};
    }
    case ValueType::kString: {
      const auto* text = std::get_if<std::string>(&override.value);
      if (text == nullptr) bad(override, "a text");
      Bytes bytes = packed(static_cast<std::uint64_t>(text->size()));
      bytes.insert(bytes.end(), text->begin(), text->end());
      return bytes;
    }
    case ValueType::kArray:
      break;
  }
  bad(override, "a key that holds one value");
}

// Of a key that the file does not have.
ValueType natural_type(const Override& override) {
  if (std::holds_alternative<bool>(override.value)) return ValueType::kBool;
  if (std::holds_alternative<double>(override.value)) return ValueType::kF32;
  if (std::holds_alternative<std::string>(override.value)) return ValueType::kString;
  const bool fits = std::in_range<std::uint32_t>(std::get<std::int64_t>(override.value));
  return fits ? ValueType::kU32 : ValueType::kI64;
}

ValueType type_in(const gguf::File& file, const std::string& key, const Override& override) {
  const gguf::Value* value = file.find(key);
  if (value == nullptr) return natural_type(override);
  return value->type() == ValueType::kArray ? value->as_array().elem_type() : value->type();
}

class OverriddenFile final : public gguf::File {
 public:
  OverriddenFile(std::shared_ptr<const gguf::File> file, const Overrides& overrides)
      : file_(std::move(file)), metadata_(file_->metadata().begin(), file_->metadata().end()) {
    const std::string arch = Keys(file_).arch();
    for (const Override& override : overrides) {
      const std::string& key =
          keys_.emplace_back(strcat(arch, ".", without_prefix(override.name, arch)));
      if (std::count(keys_.begin(), keys_.end(), key) > 1) bad(override, "each key once");
      const ValueType type = type_in(*file_, key, override);
      const gguf::Value value(key, type, bytes_.emplace_back(encode(override, type)));
      const auto at = std::find_if(metadata_.begin(), metadata_.end(),
                                   [&](const gguf::Value& v) { return v.key() == key; });
      if (at == metadata_.end()) {
        metadata_.push_back(value);
      } else {
        *at = value;
      }
    }
    for (const gguf::Value& value : metadata_) by_key_.emplace(value.key(), &value);
  }

  std::uint32_t version() const override { return file_->version(); }
  std::uint64_t alignment() const override { return file_->alignment(); }
  std::span<const gguf::Value> metadata() const override { return metadata_; }
  std::span<const gguf::TensorInfo> tensors() const override { return file_->tensors(); }
  std::span<const std::string> paths() const override { return file_->paths(); }
  const gguf::Value* find(std::string_view key) const override {
    const auto found = by_key_.find(key);
    return found == by_key_.end() ? nullptr : found->second;
  }
  const gguf::TensorInfo* find_tensor(std::string_view name) const override {
    return file_->find_tensor(name);
  }
  std::span<const std::uint8_t> bytes(const gguf::TensorInfo& tensor) const override {
    return file_->bytes(tensor);
  }
  // As they lie on the disk.
  std::span<const std::span<const std::uint8_t>> headers() const override {
    return file_->headers();
  }
  void check_intact() const override { file_->check_intact(); }
  std::vector<int> descriptors() const override { return file_->descriptors(); }

 private:
  std::shared_ptr<const gguf::File> file_;
  std::list<std::string> keys_;  // what new values are views of
  std::list<Bytes> bytes_;
  std::vector<gguf::Value> metadata_;
  std::map<std::string_view, const gguf::Value*> by_key_;
};

// Insertions, removals and changes of a character from one text to the other.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t change = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, change}));
    }
  }
  return row[b.size()];
}

std::string nearest(const std::set<std::string, std::less<>>& names, std::string_view name) {
  constexpr std::size_t kMost = 3;
  constexpr std::size_t kLongest = 200;  // nobody mistypes more
  std::vector<std::pair<std::size_t, std::string_view>> by_distance;
  for (const std::string& known : names) {
    by_distance.emplace_back(distance(name.substr(0, kLongest), known), known);
  }
  std::sort(by_distance.begin(), by_distance.end());
  std::string text;
  for (std::size_t i = 0; i < std::min(kMost, by_distance.size()); ++i) {
    text += strcat(i == 0 ? "" : ", ", by_distance[i].second);
  }
  return text;
}

}  // namespace

std::shared_ptr<const gguf::File> with_overrides(std::shared_ptr<const gguf::File> file,
                                                 const Overrides& overrides) {
  if (overrides.empty()) return file;
  return std::make_shared<OverriddenFile>(std::move(file), overrides);
}

void check_have_effect(const Keys& keys, const Config& config, const Overrides& overrides) {
  const std::set<std::string, std::less<>> asked = keys.asked();
  for (const Override& override : overrides) {
    const std::string_view name = without_prefix(override.name, keys.arch());
    if (asked.contains(name) || is_known_setting(keys, config, name)) continue;
    fail<ArgumentError>("[overrides] ", override.name, ": nothing reads this key in this '",
                        keys.arch(), "' model; nearest: ", nearest(asked, name));
  }
}

std::string text_of(const Overrides& overrides) {
  std::string text;
  for (const Override& override : overrides) {
    text += strcat(text.empty() ? "" : ", ", override.name, "=", text_of_value(override));
  }
  return text;
}

}  // namespace moesaic::model
