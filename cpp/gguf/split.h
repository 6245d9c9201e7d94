// Names and keys of split sets: "<stem>-00002-of-00003.gguf". Internal to gguf/.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "gguf/parse.h"

namespace moesaic::gguf {

struct SplitKeys {
  std::uint64_t number = 0;                // 0-based
  std::uint64_t count = 0;                 // parts of the set; <= 1: not split
  std::optional<std::uint64_t> n_tensors;  // of all parts
};

// The split.* keys of a part; count 0 when there are none. Throws FormatError on keys of a wrong
// type or range.
SplitKeys split_keys(const ParsedPart& part, const std::string& file);

// The paths of all parts, from the path of one whose keys say count > 1. Throws FormatError when
// the name does not fit the keys, or (naming them) when parts are missing.
std::vector<std::string> split_paths(const std::string& path, const SplitKeys& keys);

// What a part of a set is called whose first one is `first`, where no file needs to be there.
std::string part_name(const std::string& first, std::uint64_t number, std::uint64_t count);

}  // namespace moesaic::gguf
