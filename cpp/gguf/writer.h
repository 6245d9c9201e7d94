// Writes small single-part GGUF v3 files: for tests, the demo model and people's own experiments.
// Not a converter.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gguf/file.h"

namespace moesaic::gguf {

class Writer {
 public:
  explicit Writer(std::uint32_t alignment = 32);
  void add_int(std::string_view key, ValueType type,
               std::int64_t value);  // range-checked against type
  void add_uint(std::string_view key, ValueType type, std::uint64_t value);
  void add_float(std::string_view key, ValueType type, double value);
  void add_bool(std::string_view key, bool value);
  void add_string(std::string_view key, std::string_view value);
  // count elements of a scalar type, packed little endian.
  void add_array(std::string_view key, ValueType elem_type, std::uint64_t count,
                 std::span<const std::uint8_t> packed);
  void add_strings(std::string_view key, std::span<const std::string> values);
  // ne in file order (row length first); bytes already encoded as `type`. Copied.
  void add_tensor(std::string_view name, quant::Qtype type, std::span<const std::uint64_t> ne,
                  std::span<const std::uint8_t> bytes);
  std::vector<std::uint8_t> finish() const;   // the whole file
  void write(const std::string& path) const;  // see base/output_file.h

 private:
  struct Tensor {
    std::string name;
    quant::Qtype type;
    std::vector<std::uint64_t> ne;
    std::vector<std::uint8_t> bytes;
  };
  void begin_key(std::string_view key, ValueType type);
  std::vector<std::uint8_t> header() const;  // up to where the tensors begin
  std::uint32_t alignment_;
  std::uint64_t n_keys_ = 0;
  std::set<std::string> keys_;
  std::set<std::string> names_;
  std::vector<std::uint8_t> metadata_;
  std::vector<Tensor> tensors_;
};

}  // namespace moesaic::gguf
