// Constants of the container that reader and writer share, and this reader's caps. Source: the GGUF
// specification.
#pragma once

#include <cstdint>

#include "gguf/file.h"

namespace moesaic::gguf {

inline constexpr char kMagic[4] = {'G', 'G', 'U', 'F'};
inline constexpr std::uint32_t kDefaultAlignment = 32;
inline constexpr std::uint64_t kArrayHeaderBytes = 12;  // element type u32, count u64
inline constexpr std::uint32_t kMaxDims = 4;
inline constexpr std::uint64_t kMaxNameBytes = 65535;  // the specification's limit for keys

// Caps that no honest file comes near (Kimi K2: 1,096 tensors, 62 keys, 15 MB of header); they
// bound time and memory.
inline constexpr std::uint64_t kMaxAlignment = std::uint64_t{1} << 24;
inline constexpr std::uint64_t kMaxTensors = std::uint64_t{1} << 18;
inline constexpr std::uint64_t kMaxKeys = std::uint64_t{1} << 16;
inline constexpr std::uint64_t kMaxHeaderBytes = std::uint64_t{1} << 27;

// Bytes of one value of a scalar type; 0 for strings and arrays.
std::uint32_t scalar_bytes(ValueType type);

}  // namespace moesaic::gguf
