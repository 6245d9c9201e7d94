// See split.h. The name of a part is "%s-%05d-of-%05d.gguf" with the number counted from 1.
#include "gguf/split.h"

#include <unistd.h>

#include <cstdio>

#include "base/errors.h"
#include "gguf/cursor.h"

namespace moesaic::gguf {
namespace {

constexpr std::uint64_t kMaxParts = 99999;  // five digits in the name

std::string part_suffix(std::uint64_t number, std::uint64_t count) {
  char text[64];
  std::snprintf(text, sizeof text, "-%05llu-of-%05llu.gguf",
                static_cast<unsigned long long>(number + 1),
                static_cast<unsigned long long>(count));
  return text;
}

std::optional<std::uint64_t> read_count(const ParsedPart& part, const char* key,
                                        const std::string& file) {
  const Value* value = find_value(part, key);
  if (value == nullptr) return std::nullopt;
  try {
    return value->as_uint();
  } catch (const FormatError& error) {
    fail<FormatError>("[gguf] ", file, ": ", error.what());
  }
}

}  // namespace

SplitKeys split_keys(const ParsedPart& part, const std::string& file) {
  SplitKeys keys;
  keys.count = read_count(part, "split.count", file).value_or(0);
  if (keys.count <= 1) return keys;
  keys.number = read_count(part, "split.no", file).value_or(0);
  keys.n_tensors = read_count(part, "split.tensors.count", file);
  if (keys.count > kMaxParts || keys.number >= keys.count) {
    fail<FormatError>("[gguf] ", file, ": says it is part ", keys.number, " (counted from 0) of ",
                      keys.count, ", need a number below the count and at most ", kMaxParts,
                      " parts");
  }
  return keys;
}

std::vector<std::string> split_paths(const std::string& path, const SplitKeys& keys) {
  const std::string suffix = part_suffix(keys.number, keys.count);
  if (!path.ends_with(suffix)) {
    fail<FormatError>("[gguf] ", path, ": its keys say it is part ", keys.number + 1, " of ",
                      keys.count, ", but its name does not end in ", suffix,
                      ", so the other parts cannot be found: give the parts their names back");
  }
  const std::string stem = path.substr(0, path.size() - suffix.size());
  std::vector<std::string> paths;
  std::string missing;
  int n_missing = 0;
  for (std::uint64_t number = 0; number < keys.count; ++number) {
    paths.push_back(stem + part_suffix(number, keys.count));
    if (access(paths.back().c_str(), F_OK) == 0) continue;
    if (++n_missing > 3) {  // a lying count must not cost 99,999 look-ups
      missing += ", ...";
      break;
    }
    missing += (missing.empty() ? "" : ", ") + paths.back();
  }
  if (n_missing > 0) {
    fail<FormatError>("[gguf] ", path, ": is part ", keys.number + 1, " of ", keys.count,
                      "; missing: ", missing);
  }
  return paths;
}

std::string part_name(const std::string& first, std::uint64_t number, std::uint64_t count) {
  if (number == 0) return first;
  const std::string suffix = part_suffix(0, count);
  if (!first.ends_with(suffix)) return strcat(first, " (part ", number + 1, ")");
  return first.substr(0, first.size() - suffix.size()) + part_suffix(number, count);
}

}  // namespace moesaic::gguf
