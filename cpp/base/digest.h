// SHA-256 (OpenSSL's libcrypto) for content digests: session files, weight caches. Not for
// passwords or keys.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace moesaic {

using Sha256Digest = std::array<std::uint8_t, 32>;

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  void update(const void* bytes, std::size_t n_bytes);
  Sha256Digest finish();  // the object can be used again afterwards, from the start

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

std::string to_hex(const Sha256Digest& digest);

}  // namespace moesaic
