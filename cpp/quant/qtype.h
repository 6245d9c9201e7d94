// Element types of GGUF tensors and their traits table: block geometry and the exact scalar decoder
// and encoder of each. This is the reference that every fast kernel is held against. Ids: ggml's
// file format (FACTS.md section 1). Adding a type: one enum value here, one row in qtype.cpp, one
// pair of files <type>.{h,cpp}.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace moesaic::quant {

enum class Qtype : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ2_XXS = 16,
  kIQ2_XS = 17,
  kIQ3_XXS = 18,
  kIQ1_S = 19,
  kIQ4_NL = 20,
  kIQ3_S = 21,
  kIQ2_S = 22,
  kIQ4_XS = 23,
  kI8 = 24,
  kI16 = 25,
  kI32 = 26,
  kI64 = 27,
  kF64 = 28,
  kIQ1_M = 29,
  kBF16 = 30,
  kTQ1_0 = 34,
  kTQ2_0 = 35,
  kMXFP4 = 39,
  kNVFP4 = 40,
  kQ1_0 = 41,
  kQ2_0 = 42,
};

inline constexpr std::uint32_t kQtypeIdEnd = 43;  // ids are < this; arrays can be indexed by id

struct QtypeTraits {
  Qtype type;
  std::string_view name;  // "Q4_K"
  int block_elems;        // elements per block; a row's length is a multiple of it
  int block_bytes;        // bytes per block
  bool is_weight;         // a matmul can take it (false: integers and F64, readable only)
  // Decodes n_blocks blocks to n_blocks * block_elems floats, value for value as the gguf package
  // does.
  void (*decode)(const std::uint8_t* blocks, std::int64_t n_blocks, float* out);
  // Encodes n_blocks * block_elems floats; null where Moesaic cannot write the type.
  void (*encode)(const float* in, std::int64_t n_blocks, std::uint8_t* blocks);
};

// The row of a type. The enum has no value without a row.
const QtypeTraits& traits(Qtype type);
// All rows, in id order.
std::span<const QtypeTraits> all_qtypes();
// Names are compared without regard to case. Nothing for an id that is unknown or has been removed
// from the format.
std::optional<Qtype> qtype_from_id(std::uint32_t id);
std::optional<Qtype> qtype_from_name(std::string_view name);

// F32, F16, BF16: a number is a float of its own, without a block's scale. (F64 is not multiplied
// with.)
constexpr bool is_float(Qtype type) {
  return type == Qtype::kF32 || type == Qtype::kF16 || type == Qtype::kBF16;
}

// Bytes of one row of n_elems elements; throws FormatError when n_elems is no multiple of the
// block.
std::uint64_t row_bytes(Qtype type, std::uint64_t n_elems);

}  // namespace moesaic::quant
