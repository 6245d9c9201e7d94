// Philox 4x32-10: a counter-based random generator, a pure function of (key, counter), so that the
// noise of a token at a position is the same however the position was reached. Not for
// cryptography. Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011, section 3.3.
#pragma once

#include <array>
#include <cstdint>

namespace moesaic::model {

using PhiloxCounter = std::array<std::uint32_t, 4>;
using PhiloxKey = std::array<std::uint32_t, 2>;

inline PhiloxCounter philox_4x32_10(PhiloxCounter counter, PhiloxKey key) {
  constexpr std::uint64_t kMultiplier0 = 0xD2511F53U;
  constexpr std::uint64_t kMultiplier1 = 0xCD9E8D57U;
  constexpr std::uint32_t kWeyl0 = 0x9E3779B9U;
  constexpr std::uint32_t kWeyl1 = 0xBB67AE85U;
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = kMultiplier0 * counter[0];
    const std::uint64_t p1 = kMultiplier1 * counter[2];
    counter = {static_cast<std::uint32_t>(p1 >> 32U) ^ counter[1] ^ key[0],
               static_cast<std::uint32_t>(p1),
               static_cast<std::uint32_t>(p0 >> 32U) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(p0)};
    key[0] += kWeyl0;
    key[1] += kWeyl1;
  }
  return counter;
}

// Uniform in (0, 1), 52 bits, never 0 or 1: for this seed, position and token. A function of these
// three alone, so that two rows of logits that differ a little meet the same noise.
inline double uniform_at(std::uint64_t seed, std::uint64_t position, std::int32_t token) {
  const PhiloxCounter bits = philox_4x32_10(
      {static_cast<std::uint32_t>(position), static_cast<std::uint32_t>(position >> 32U),
       static_cast<std::uint32_t>(token), 1},
      {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32U)});
  const std::uint64_t joined = (std::uint64_t{bits[0]} << 32U) | bits[1];
  return (static_cast<double>(joined >> 12U) + 0.5) * 0x1.0p-52;
}

}  // namespace moesaic::model
