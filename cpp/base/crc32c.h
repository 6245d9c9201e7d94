// CRC-32C (Castagnoli, RFC 3720 appendix B.4): catches bad memory and bad links. Not a defence
// against people.
#pragma once

#include <cstddef>
#include <cstdint>

namespace moesaic {

// crc of earlier bytes (0 to start) continued over n_bytes more.
std::uint32_t crc32c(std::uint32_t crc, const void* bytes, std::size_t n_bytes);

}  // namespace moesaic
