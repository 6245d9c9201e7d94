// One part of a file set: its header, metadata and tensor directory, all checked against the bytes
// that are there (or, for a header alone, by arithmetic). Internal to gguf/.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "gguf/file.h"

namespace moesaic::gguf {

struct ParsedPart {
  std::uint32_t version = 0;
  std::uint64_t alignment = 0;
  std::vector<Value> metadata;        // file order
  std::vector<std::uint32_t> by_key;  // indices into metadata, sorted by key
  std::vector<TensorInfo> tensors;    // file order; .file is 0
  std::uint64_t header_bytes = 0;     // up to the end of the tensor directory, without padding
};

enum class TensorData {
  kHere,       // `bytes` is the whole file: tensors must lie in it
  kElsewhere,  // `bytes` begins with the header: where tensors end is unknown
};

// Throws FormatError naming `file`, the byte and the key or tensor. The views in the result point
// into `bytes`. set_alignment: of the first part of a set, for a later part, which need not repeat
// the key; writers differ in how they pad it then, and its size decides (0: not a later part).
ParsedPart parse_part(std::span<const std::uint8_t> bytes, const std::string& file,
                      TensorData data = TensorData::kHere, std::uint64_t set_alignment = 0);

// The value of `key`, or null.
const Value* find_value(const ParsedPart& part, std::string_view key);

// What a file that does not begin as GGUF seems to be, as the tail of a message: " It looks like
// ...", or "".
std::string looks_like(std::span<const std::uint8_t> bytes);

}  // namespace moesaic::gguf
