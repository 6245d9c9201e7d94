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

// A sum that is under way, after a whole number of blocks of 64 bytes.
struct Sha256State {
  std::array<std::uint32_t, 8> words{};
  std::uint64_t n_bytes = 0;  // that have gone into it
};

class Sha256 {
 public:
  Sha256();
  explicit Sha256(const Sha256State& state);  // goes on behind state.n_bytes bytes; 0: begins
  ~Sha256();
  Sha256(Sha256&&) noexcept;
  Sha256& operator=(Sha256&&) noexcept;
  Sha256State state() const;  // up to the last whole block
  void update(const void* bytes, std::size_t n_bytes);
  Sha256Digest finish();  // the object can be used again afterwards, from the start

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

Sha256Digest sha256(const void* bytes, std::size_t n_bytes);

std::string to_hex(const Sha256Digest& digest);

}  // namespace moesaic
