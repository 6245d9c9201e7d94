// Puts GGUF bytes together without any checks: what the writer would refuse, the reader must meet
// somewhere.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/file.h"

namespace moesaic::gguf {

struct RawTensor {
  std::string name = "w";
  std::uint32_t n_dims = 1;
  std::vector<std::uint64_t> ne = {8};
  std::uint32_t type = 0;  // F32
  std::uint64_t offset = 0;
};

// A file in the making; every count can be made to lie.
class RawFile {
 public:
  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::uint64_t alignment = 32;     // of the padding before the data
  std::uint64_t n_tensors_off = 0;  // added to the true count
  std::uint64_t n_keys_off = 0;
  std::vector<RawTensor> tensors;
  std::uint64_t data_bytes = 0;

  template <typename T>
  RawFile& scalar(std::string_view key, ValueType type, T value) {
    begin(key, type);
    put(kv_, value);
    return *this;
  }
  RawFile& text(std::string_view key, std::string_view value) {
    begin(key, ValueType::kString);
    put_string(kv_, value);
    return *this;
  }
  RawFile& array(std::string_view key, ValueType elem, std::uint64_t count,
                 std::string_view bytes) {
    begin(key, ValueType::kArray);
    put(kv_, static_cast<std::uint32_t>(elem));
    put(kv_, count);
    kv_ += bytes;
    return *this;
  }
  // A key with any bytes as its type and payload.
  RawFile& bytes(std::string_view key, std::string_view payload) {
    put_string(kv_, key);
    ++n_keys_;
    kv_ += payload;
    return *this;
  }
  RawFile& tensor(RawTensor tensor) {
    tensors.push_back(std::move(tensor));
    return *this;
  }
  RawFile& data(std::uint64_t n_bytes) {
    data_bytes = n_bytes;
    return *this;
  }

  std::string build() const {
    std::string out = magic;
    put(out, version);
    put(out, static_cast<std::uint64_t>(tensors.size() + n_tensors_off));
    put(out, static_cast<std::uint64_t>(n_keys_ + n_keys_off));
    out += kv_;
    for (const RawTensor& tensor : tensors) {
      put_string(out, tensor.name);
      put(out, tensor.n_dims);
      for (const std::uint64_t n : tensor.ne) put(out, n);
      put(out, tensor.type);
      put(out, tensor.offset);
    }
    if (data_bytes > 0) {
      out.resize((out.size() + alignment - 1) / alignment * alignment, '\0');
      out.resize(out.size() + data_bytes, '\x5A');
    }
    return out;
  }

  template <typename T>
  static void put(std::string& out, T value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof(T));
  }
  static void put_string(std::string& out, std::string_view text) {
    put<std::uint64_t>(out, text.size());
    out += text;
  }

 private:
  void begin(std::string_view key, ValueType type) {
    put_string(kv_, key);
    put(kv_, static_cast<std::uint32_t>(type));
    ++n_keys_;
  }
  std::string kv_;
  std::uint64_t n_keys_ = 0;
};

inline std::span<const std::uint8_t> as_bytes(const std::string& text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}

inline std::shared_ptr<const File> load(const std::string& bytes) {
  return File::from_memory(as_bytes(bytes), "mem.gguf");
}

}  // namespace moesaic::gguf
