// A file mapped read-only. Internal to gguf/.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/mapped_file.h"

namespace moesaic::gguf {

class Mapping {
 public:
  Mapping() = default;
  // Throws IoError when the system refuses or the path is not a regular file.
  explicit Mapping(const std::string& path);
  std::span<const std::uint8_t> bytes() const { return file_.bytes(); }
  int descriptor() const { return file_.descriptor(); }
  void check_intact() const { file_.check_intact(); }  // see File::check_intact

 private:
  MappedFile file_;
};

}  // namespace moesaic::gguf
