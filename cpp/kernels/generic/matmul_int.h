// Integer weight types in plain code, by the formulas of unpack.h: what every other table is held
// against, and what runs where a table has no kernel of its own.
#pragma once

#include "kernels/table.h"

namespace moesaic::kernels::generic {

// Fills the matmul rows of all integer types.
void fill_int_part(Table& table);

std::size_t packed_bytes(ActFormat format, std::int64_t n_cols, std::int64_t k);
// Prepared rows one after the other.
void pack(ActFormat format, const std::uint8_t* const* acts, std::int64_t n_cols, std::int64_t k,
          std::uint8_t* out);

}  // namespace moesaic::kernels::generic
