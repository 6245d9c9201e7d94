// The table of element types. Encoders stand where Moesaic can write the type.
#include "quant/qtype.h"

#include <array>
#include <cctype>

#include "base/checked.h"
#include "base/errors.h"
#include "quant/iq1_m.h"
#include "quant/iq1_s.h"
#include "quant/iq2_s.h"
#include "quant/iq2_xs.h"
#include "quant/iq2_xxs.h"
#include "quant/iq3_s.h"
#include "quant/iq3_xxs.h"
#include "quant/iq4_nl.h"
#include "quant/iq4_xs.h"
#include "quant/mxfp4.h"
#include "quant/nvfp4.h"
#include "quant/plain.h"
#include "quant/q1_0.h"
#include "quant/q2_0.h"
#include "quant/q2_k.h"
#include "quant/q3_k.h"
#include "quant/q4_0.h"
#include "quant/q4_1.h"
#include "quant/q4_k.h"
#include "quant/q5_0.h"
#include "quant/q5_1.h"
#include "quant/q5_k.h"
#include "quant/q6_k.h"
#include "quant/q8_0.h"
#include "quant/tq1_0.h"
#include "quant/tq2_0.h"

namespace moesaic::quant {
namespace {

// type, name, elements and bytes per block, is_weight, decode, encode; in id order.
constexpr std::array kTable = {
    QtypeTraits{Qtype::kF32, "F32", 1, 4, true, decode_f32, encode_f32},
    QtypeTraits{Qtype::kF16, "F16", 1, 2, true, decode_f16, encode_f16},
    QtypeTraits{Qtype::kQ4_0, "Q4_0", 32, 18, true, decode_q4_0, encode_q4_0},
    QtypeTraits{Qtype::kQ4_1, "Q4_1", 32, 20, true, decode_q4_1, encode_q4_1},
    QtypeTraits{Qtype::kQ5_0, "Q5_0", 32, 22, true, decode_q5_0, encode_q5_0},
    QtypeTraits{Qtype::kQ5_1, "Q5_1", 32, 24, true, decode_q5_1, encode_q5_1},
    QtypeTraits{Qtype::kQ8_0, "Q8_0", 32, 34, true, decode_q8_0, encode_q8_0},
    QtypeTraits{Qtype::kQ2_K, "Q2_K", 256, 84, true, decode_q2_k, encode_q2_k},
    QtypeTraits{Qtype::kQ3_K, "Q3_K", 256, 110, true, decode_q3_k, encode_q3_k},
    QtypeTraits{Qtype::kQ4_K, "Q4_K", 256, 144, true, decode_q4_k, encode_q4_k},
    QtypeTraits{Qtype::kQ5_K, "Q5_K", 256, 176, true, decode_q5_k, encode_q5_k},
    QtypeTraits{Qtype::kQ6_K, "Q6_K", 256, 210, true, decode_q6_k, encode_q6_k},
    QtypeTraits{Qtype::kIQ2_XXS, "IQ2_XXS", 256, 66, true, decode_iq2_xxs, nullptr},
    QtypeTraits{Qtype::kIQ2_XS, "IQ2_XS", 256, 74, true, decode_iq2_xs, nullptr},
    QtypeTraits{Qtype::kIQ3_XXS, "IQ3_XXS", 256, 98, true, decode_iq3_xxs, nullptr},
    QtypeTraits{Qtype::kIQ1_S, "IQ1_S", 256, 50, true, decode_iq1_s, nullptr},
    QtypeTraits{Qtype::kIQ4_NL, "IQ4_NL", 32, 18, true, decode_iq4_nl, encode_iq4_nl},
    QtypeTraits{Qtype::kIQ3_S, "IQ3_S", 256, 110, true, decode_iq3_s, nullptr},
    QtypeTraits{Qtype::kIQ2_S, "IQ2_S", 256, 82, true, decode_iq2_s, nullptr},
    QtypeTraits{Qtype::kIQ4_XS, "IQ4_XS", 256, 136, true, decode_iq4_xs, encode_iq4_xs},
    QtypeTraits{Qtype::kI8, "I8", 1, 1, false, decode_i8, nullptr},
    QtypeTraits{Qtype::kI16, "I16", 1, 2, false, decode_i16, nullptr},
    QtypeTraits{Qtype::kI32, "I32", 1, 4, false, decode_i32, nullptr},
    QtypeTraits{Qtype::kI64, "I64", 1, 8, false, decode_i64, nullptr},
    QtypeTraits{Qtype::kF64, "F64", 1, 8, false, decode_f64, nullptr},
    QtypeTraits{Qtype::kIQ1_M, "IQ1_M", 256, 56, true, decode_iq1_m, nullptr},
    QtypeTraits{Qtype::kBF16, "BF16", 1, 2, true, decode_bf16, encode_bf16},
    QtypeTraits{Qtype::kTQ1_0, "TQ1_0", 256, 54, true, decode_tq1_0, nullptr},
    QtypeTraits{Qtype::kTQ2_0, "TQ2_0", 256, 66, true, decode_tq2_0, nullptr},
    QtypeTraits{Qtype::kMXFP4, "MXFP4", 32, 17, true, decode_mxfp4, encode_mxfp4},
    QtypeTraits{Qtype::kNVFP4, "NVFP4", 64, 36, true, decode_nvfp4, nullptr},
    QtypeTraits{Qtype::kQ1_0, "Q1_0", 128, 18, true, decode_q1_0, nullptr},
    QtypeTraits{Qtype::kQ2_0, "Q2_0", 64, 18, true, decode_q2_0, nullptr},
};

constexpr std::uint8_t kNoRow = 255;

constexpr std::array<std::uint8_t, kQtypeIdEnd> rows_by_id() {
  std::array<std::uint8_t, kQtypeIdEnd> rows{};
  for (auto& row : rows) row = kNoRow;
  for (std::size_t i = 0; i < kTable.size(); ++i) {
    rows.at(static_cast<std::size_t>(kTable[i].type)) = static_cast<std::uint8_t>(i);
  }
  return rows;
}
constexpr auto kRowsById = rows_by_id();

bool same_letters(std::string_view a, std::string_view b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (std::toupper(static_cast<unsigned char>(a[i])) !=
        std::toupper(static_cast<unsigned char>(b[i]))) {
      return false;
    }
  }
  return true;
}

}  // namespace

const QtypeTraits& traits(Qtype type) {
  const auto id = static_cast<std::uint32_t>(type);
  if (id >= kQtypeIdEnd || kRowsById[id] == kNoRow) {
    fail<InternalError>("[quant] no traits for element type ", id);
  }
  return kTable[kRowsById[id]];
}

std::span<const QtypeTraits> all_qtypes() { return kTable; }

std::optional<Qtype> qtype_from_id(std::uint32_t id) {
  if (id >= kQtypeIdEnd || kRowsById[id] == kNoRow) return std::nullopt;
  return static_cast<Qtype>(id);
}

std::optional<Qtype> qtype_from_name(std::string_view name) {
  for (const QtypeTraits& row : kTable) {
    if (same_letters(row.name, name)) return row.type;
  }
  return std::nullopt;
}

std::uint64_t row_bytes(Qtype type, std::uint64_t n_elems) {
  const QtypeTraits& row = traits(type);
  const auto block_elems = static_cast<std::uint64_t>(row.block_elems);
  if (n_elems % block_elems != 0) {
    fail<FormatError>("[quant] a row of ", n_elems, " elements does not fit ", row.name,
                      ": need a multiple of ", block_elems);
  }
  return checked_mul(n_elems / block_elems, static_cast<std::uint64_t>(row.block_bytes),
                     "bytes of a row");
}

}  // namespace moesaic::quant
