// Typed access to the metadata of a model file, without the architecture's prefix. Every getter
// throws FormatError naming file and key, what it got and what it needed. Not for tensors' values.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/errors.h"
#include "gguf/file.h"

namespace moesaic::model {

class Keys {
 public:
  // No count in a model is larger; nothing is allocated from one before it met a tensor's shape.
  static constexpr std::int64_t kMaxCount = (std::int64_t{1} << 31) - 1;

  // Reads general.architecture; throws FormatError when it is missing.
  explicit Keys(std::shared_ptr<const gguf::File> file);

  const std::shared_ptr<const gguf::File>& file() const { return file_; }
  const std::string& arch() const { return arch_; }
  const std::string& path() const { return path_; }  // of the first part, for messages

  // `name` is "attention.head_count" for the key "llama.attention.head_count". Most keys may be an
  // array with one value for each of block_count blocks; where Moesaic holds one value, all layers
  // must agree.
  bool has(std::string_view name) const { return find(name) != nullptr; }
  std::int64_t count(std::string_view name) const;                            // in [1, kMaxCount]
  std::int64_t count_or(std::string_view name, std::int64_t fallback) const;  // in [0, kMaxCount]
  // What may differ from layer to layer. (n_layers) values in [0, kMaxCount]; empty when the key is
  // absent.
  std::vector<std::int64_t> per_layer(std::string_view name, std::int64_t n_layers) const;
  double positive(std::string_view name) const;                      // finite, > 0
  double positive_or(std::string_view name, double fallback) const;  // finite, > 0
  double number_or(std::string_view name, double fallback) const;    // finite
  bool flag_or(std::string_view name, bool fallback) const;
  std::string text_or(std::string_view name, std::string_view fallback) const;
  const gguf::Value* find(std::string_view name) const;  // null when absent
  // Whether a getter was asked for the key, there or not.
  bool was_asked(std::string_view name) const { return asked_.contains(name); }
  const std::set<std::string, std::less<>>& asked() const { return asked_; }

  std::string full(std::string_view name) const { return arch_ + "." + std::string(name); }
  const gguf::TensorInfo* tensor(std::string_view name) const { return file_->find_tensor(name); }

  // "[model] FILE: key llama.x: got G, need N".
  template <typename Got>
  [[noreturn]] void bad(std::string_view name, const Got& got, std::string_view need) const {
    fail<FormatError>("[model] ", path_, ": key ", full(name), ": got ", got, ", need ", need);
  }

 private:
  // The key's value, of an array the one of all layers; none when it is absent.
  std::optional<gguf::Value> one(std::string_view name) const;
  // Checks that an array has one element for each block.
  gguf::ArrayView blocks(std::string_view name, const gguf::Value& value) const;
  std::int64_t block_count() const;

  std::shared_ptr<const gguf::File> file_;
  std::string arch_;
  std::string path_;
  mutable std::set<std::string, std::less<>> asked_;  // names, without the architecture's prefix
};

// One element of an array of numbers or bools, as a value with the array's key.
gguf::Value element(const gguf::Value& array, std::uint64_t index);
// For messages: a number, true or false, a quoted text, or an array's first values.
std::string text_of(const gguf::Value& value);

}  // namespace moesaic::model
