// Unpacks grids_packed.h at compile time.
#include "quant/grids.h"

#include <bit>
#include <cstddef>

#include "quant/grids_packed.h"

namespace moesaic::quant {
namespace {

template <typename Word, std::size_t n_entries, std::size_t n_levels>
constexpr std::array<Word, n_entries> unpack(const std::uint16_t (&entries)[n_entries],
                                             const std::array<int, n_levels>& levels) {
  constexpr unsigned kElems = sizeof(Word);
  constexpr unsigned kBits = 16 / kElems;
  std::array<Word, n_entries> grid{};
  for (std::size_t i = 0; i < n_entries; ++i) {
    for (unsigned j = 0; j < kElems; ++j) {
      const unsigned digit =
          (static_cast<unsigned>(entries[i]) >> (kBits * j)) & ((1U << kBits) - 1);
      const auto byte = static_cast<std::uint8_t>(levels.at(digit));
      grid[i] |= static_cast<Word>(byte) << (8 * j);
    }
  }
  return grid;
}

constexpr std::array<std::uint8_t, 128> even_signs() {
  std::array<std::uint8_t, 128> signs{};
  for (unsigned i = 0; i < 128; ++i) {
    signs[i] = static_cast<std::uint8_t>(i | ((static_cast<unsigned>(std::popcount(i)) & 1U) << 7));
  }
  return signs;
}

constexpr std::array<int, 3> kLevels2 = {8, 25, 43};
constexpr std::array<int, 8> kLevels3xxs = {4, 12, 20, 28, 36, 44, 52, 62};
constexpr std::array<int, 8> kLevels3s = {1, 3, 5, 7, 9, 11, 13, 15};
constexpr std::array<int, 3> kLevels1 = {-1, 0, 1};

}  // namespace

constinit const std::array<std::uint64_t, 256> kIq2xxsGrid =
    unpack<std::uint64_t>(packed::kIq2xxs, kLevels2);
constinit const std::array<std::uint64_t, 512> kIq2xsGrid =
    unpack<std::uint64_t>(packed::kIq2xs, kLevels2);
constinit const std::array<std::uint64_t, 1024> kIq2sGrid =
    unpack<std::uint64_t>(packed::kIq2s, kLevels2);
constinit const std::array<std::uint32_t, 256> kIq3xxsGrid =
    unpack<std::uint32_t>(packed::kIq3xxs, kLevels3xxs);
constinit const std::array<std::uint32_t, 512> kIq3sGrid =
    unpack<std::uint32_t>(packed::kIq3s, kLevels3s);
constinit const std::array<std::uint64_t, 2048> kIq1sGrid =
    unpack<std::uint64_t>(packed::kIq1s, kLevels1);
constinit const std::array<std::uint8_t, 128> kIq2xsSigns = even_signs();

}  // namespace moesaic::quant
