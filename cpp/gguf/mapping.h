// A file mapped read-only. Internal to gguf/.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace moesaic::gguf {

class Mapping {
 public:
  Mapping() = default;
  // Throws IoError when the system refuses or the path is no regular file. The descriptor is closed
  // again.
  explicit Mapping(const std::string& path);
  ~Mapping();
  Mapping(Mapping&& other) noexcept;
  Mapping& operator=(Mapping&& other) noexcept;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  std::span<const std::uint8_t> bytes() const { return bytes_; }

 private:
  std::span<const std::uint8_t> bytes_;
};

}  // namespace moesaic::gguf
