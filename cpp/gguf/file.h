// A GGUF file set (v2, v3, little endian) as it lies on disk: metadata and a directory of tensors
// over mmap. Copies nothing: strings, arrays and tensor bytes are views into the mapping, so that
// opening 400 GB costs milliseconds. Knows no model: what the keys mean is model/'s business.
// Format: FACTS.md section 1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "quant/qtype.h"

namespace moesaic::gguf {

enum class ValueType : std::uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

std::string_view value_type_name(ValueType type);

// An array value: count elements of elem_type, little endian, at `bytes` in the mapping.
class ArrayView {
 public:
  ArrayView(ValueType elem_type, std::uint64_t count, std::span<const std::uint8_t> bytes)
      : elem_type_(elem_type), count_(count), bytes_(bytes) {}
  ValueType elem_type() const { return elem_type_; }
  std::uint64_t count() const { return count_; }
  std::span<const std::uint8_t> bytes() const { return bytes_; }  // all elements, packed
  // All strings of an array of strings, in order (one pass; views into the mapping).
  std::vector<std::string_view> strings() const;

 private:
  ValueType elem_type_;
  std::uint64_t count_;
  std::span<const std::uint8_t> bytes_;
};

// One metadata value. Typed getters convert between integer widths when the value fits and throw
// FormatError (naming the key) otherwise.
class Value {
 public:
  Value(std::string_view key, ValueType type, std::span<const std::uint8_t> bytes);
  std::string_view key() const { return key_; }
  ValueType type() const { return type_; }
  std::int64_t as_int() const;    // any integer type or bool
  std::uint64_t as_uint() const;  // any integer type >= 0 or bool
  double as_float() const;        // F32, F64 or any integer
  bool as_bool() const;           // bool only
  std::string_view as_string() const;
  ArrayView as_array() const;

 private:
  std::string_view key_;
  ValueType type_;
  std::span<const std::uint8_t>
      bytes_;  // payload: scalar, string with its length, or array with its header
};

struct TensorInfo {
  std::string name;
  quant::Qtype type;
  std::vector<std::uint64_t>
      ne;                // file order: ne[0] is the row length; NumPy's shape is the reverse
  int file;              // index of the part it lies in
  std::uint64_t offset;  // from the start of that part, in bytes
  std::uint64_t n_bytes;
  std::uint64_t n_elems;
  std::uint64_t n_rows() const { return ne.empty() || ne[0] == 0 ? 0 : n_elems / ne[0]; }
};

class File {
 public:
  // Opens a file, or a whole split set from any of its parts. Throws FormatError or IoError naming
  // file and place.
  static std::shared_ptr<const File> open(const std::string& path);
  // A single-part file from memory that the caller keeps alive; for tests and fuzzing. `name`
  // stands in messages.
  static std::shared_ptr<const File> from_memory(std::span<const std::uint8_t> bytes,
                                                 const std::string& name);
  // A file set of which only the headers are here, each part's up to the end of its tensor
  // directory: everything but bytes() works. `name` is the first part's file name; paths() are the
  // names of all. Throws FormatError, also for bytes past a directory or a part too few.
  static std::shared_ptr<const File> from_headers(std::vector<std::vector<std::uint8_t>> parts,
                                                  const std::string& name);
  // The same from the headers of all parts one after the other.
  static std::shared_ptr<const File> from_headers(std::span<const std::uint8_t> joined,
                                                  const std::string& name);
  virtual ~File() = default;

  virtual std::uint32_t version() const = 0;
  virtual std::uint64_t alignment() const = 0;  // of the first part
  virtual std::span<const Value> metadata()
      const = 0;  // file order; the first part's of a split set
  virtual std::span<const TensorInfo> tensors() const = 0;  // all parts, in part and file order
  virtual std::span<const std::string> paths() const = 0;   // of the parts

  virtual const Value* find(std::string_view key) const = 0;               // null when absent
  virtual const TensorInfo* find_tensor(std::string_view name) const = 0;  // null when absent
  // The tensor's bytes in the mapping, valid as long as the File lives.
  // ArgumentError when the weights are not here (from_headers).
  virtual std::span<const std::uint8_t> bytes(const TensorInfo& tensor) const = 0;
  // Of each part the bytes up to the end of its tensor directory, as from_headers takes them; views
  // that live as long as the File.
  virtual std::span<const std::span<const std::uint8_t>> headers() const = 0;
  // Asked after bytes, strings or arrays were read and before anything made of them is given out:
  // throws IoError when a part could not be read where it was (it was cut off, or the disk failed:
  // zeros were read instead) or was written to since it was opened. A system call for each part.
  virtual void check_intact() const = 0;
  // Of each part the open file, which lives as long as the File; none when it is in memory.
  virtual std::vector<int> descriptors() const = 0;
};

}  // namespace moesaic::gguf
