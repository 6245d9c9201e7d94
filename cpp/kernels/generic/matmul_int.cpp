// Plain integer matmuls; see the header, and unpack.h for the formulas.
#include "kernels/generic/matmul_int.h"

#include <cmath>
#include <cstring>

#include "kernels/act_layout.h"
#include "kernels/common/fill_table.h"
#include "kernels/unpack.h"

namespace moesaic::kernels::generic {
namespace {

using quant::Qtype;

// Columns whose sums are kept at once, so that a block is unpacked once for all of them.
constexpr std::int64_t kColumns = 16;

struct Ints {
  std::int32_t isum;
  std::int32_t msum;
};

Ints super_dot(const SuperBlock& w, const std::int8_t* q, const std::int16_t* sum) {
  Ints out{0, 0};
  for (int g = 0; g < 16; ++g) {
    std::int32_t dot = 0;
    for (int i = 16 * g; i < 16 * g + 16; ++i) dot += w.value[i] * q[i];
    out.isum += w.scale[g] * dot;
    out.msum += w.min[g] * sum[g];
  }
  return out;
}

template <Qtype type>
void super_few(const MatmulJob& job) {
  static const SuperType* const row_type = super_type(type);
  const SuperType& t = *row_type;
  SuperBlock w;
  for (std::int64_t r = 0; r < job.n_rows; ++r) {
    for (std::int64_t c0 = 0; c0 < job.n_cols; c0 += kColumns) {
      const std::int64_t n = job.n_cols - c0 < kColumns ? job.n_cols - c0 : kColumns;
      const std::uint8_t* block = job.weight + static_cast<std::size_t>(r) * job.weight_row_bytes;
      float total[kColumns] = {};
      for (std::int64_t b = 0; b < job.k / kChunk; ++b, block += t.block_bytes) {
        t.unpack(block, w);
        for (std::int64_t c = 0; c < n; ++c) {
          const ActRow act = act_row(job.acts[c0 + c], job.k);
          const Ints ints = super_dot(w, act.q + b * kChunk, act.sum + b * 16);
          const float da = act.scale[b];
          float p = 0.0F;
          if (t.has_min) {
            const float m = w.dmin * da * static_cast<float>(ints.msum);
            p = std::fma(w.d * da, static_cast<float>(ints.isum), -m);
          } else {
            p = w.d * da * static_cast<float>(ints.isum);
          }
          total[c] = total[c] + p;
        }
      }
      for (std::int64_t c = 0; c < n; ++c) job.outs[c0 + c][r] = total[c];
    }
  }
}

std::int32_t dot16(const std::int8_t* w, const std::int8_t* q) {
  std::int32_t dot = 0;
  for (int i = 0; i < 16; ++i) dot += w[i] * q[i];
  return dot;
}

template <Qtype type>
void small_few(const MatmulJob& job) {
  static const SmallType* const row_type = small_type(type);
  const SmallType& t = *row_type;
  const std::int64_t kp = padded_k(job.k);
  const int parts = t.block_elems / 32;
  SmallBlock w;
  for (std::int64_t r = 0; r < job.n_rows; ++r) {
    for (std::int64_t c0 = 0; c0 < job.n_cols; c0 += kColumns) {
      const std::int64_t n = job.n_cols - c0 < kColumns ? job.n_cols - c0 : kColumns;
      const std::uint8_t* row = job.weight + static_cast<std::size_t>(r) * job.weight_row_bytes;
      float lanes[kColumns][8] = {};
      for (std::int64_t b = 0; b < job.k / 32; ++b) {
        t.unpack(row + b / parts * t.block_bytes, static_cast<int>(b % parts), w);
        for (std::int64_t c = 0; c < n; ++c) {
          const ActRow act = act_row(job.acts[c0 + c], kp);
          const std::int8_t* q = act.q + 32 * b;
          const float da = act.scale[b];
          const std::int32_t dot0 = dot16(w.value, q);
          const std::int32_t dot1 = dot16(w.value + 16, q + 16);
          float& lane = lanes[c][b % 8];
          if (t.has_d16) {
            const float f =
                std::fma(w.d16, static_cast<float>(dot1), w.d * static_cast<float>(dot0));
            lane = std::fma(da, f, lane);
          } else {
            lane = std::fma(w.d * da, static_cast<float>(dot0 + dot1), lane);
          }
          if (t.has_min) {
            const float sum = static_cast<float>(act.sum[2 * b] + act.sum[2 * b + 1]);
            lane = std::fma(w.min, da * sum, lane);
          }
        }
      }
      for (std::int64_t c = 0; c < n; ++c) {
        float total = lanes[c][0];
        for (int l = 1; l < 8; ++l) total = total + lanes[c][l];
        job.outs[c0 + c][r] = total;
      }
    }
  }
}

// The packed form is the prepared rows one after the other.
template <void (*few)(const MatmulJob&), ActFormat format>
void many_by_few(const MatmulJob& job, const PackedCols& cols) {
  const std::size_t row_bytes = act_row_bytes(format, job.k);
  const std::uint8_t* acts[kColumns];
  for (std::int64_t c0 = 0; c0 < cols.n_cols; c0 += kColumns) {
    MatmulJob part = job;
    part.n_cols = cols.n_cols - c0 < kColumns ? cols.n_cols - c0 : kColumns;
    for (std::int64_t c = 0; c < part.n_cols; ++c) {
      acts[c] = cols.data + static_cast<std::size_t>(c0 + c) * row_bytes;
    }
    part.acts = acts;
    part.outs = job.outs + c0;
    few(part);
  }
}

template <Qtype type>
void add_super(Table& table, const char* name) {
  table.matmul[static_cast<std::uint32_t>(type)] = {
      ActFormat::kQ8x256, name, super_few<type>, many_by_few<super_few<type>, ActFormat::kQ8x256>,
      kNever};
}

template <Qtype type>
void add_small(Table& table, const char* name) {
  table.matmul[static_cast<std::uint32_t>(type)] = {ActFormat::kQ8x32, name, small_few<type>,
                                                    many_by_few<small_few<type>, ActFormat::kQ8x32>,
                                                    kNever};
}

}  // namespace

void fill_int_part(Table& table) {
  add_super<Qtype::kQ2_K>(table, "generic/Q2_K");
  add_super<Qtype::kQ3_K>(table, "generic/Q3_K");
  add_super<Qtype::kQ4_K>(table, "generic/Q4_K");
  add_super<Qtype::kQ5_K>(table, "generic/Q5_K");
  add_super<Qtype::kQ6_K>(table, "generic/Q6_K");
  add_super<Qtype::kIQ2_XXS>(table, "generic/IQ2_XXS");
  add_super<Qtype::kIQ2_XS>(table, "generic/IQ2_XS");
  add_super<Qtype::kIQ2_S>(table, "generic/IQ2_S");
  add_super<Qtype::kIQ3_XXS>(table, "generic/IQ3_XXS");
  add_super<Qtype::kIQ3_S>(table, "generic/IQ3_S");
  add_super<Qtype::kIQ1_S>(table, "generic/IQ1_S");
  add_super<Qtype::kIQ1_M>(table, "generic/IQ1_M");
  add_super<Qtype::kIQ4_XS>(table, "generic/IQ4_XS");
  add_super<Qtype::kTQ1_0>(table, "generic/TQ1_0");
  add_super<Qtype::kTQ2_0>(table, "generic/TQ2_0");
  add_small<Qtype::kQ4_0>(table, "generic/Q4_0");
  add_small<Qtype::kQ4_1>(table, "generic/Q4_1");
  add_small<Qtype::kQ5_0>(table, "generic/Q5_0");
  add_small<Qtype::kQ5_1>(table, "generic/Q5_1");
  add_small<Qtype::kQ8_0>(table, "generic/Q8_0");
  add_small<Qtype::kIQ4_NL>(table, "generic/IQ4_NL");
  add_small<Qtype::kMXFP4>(table, "generic/MXFP4");
  add_small<Qtype::kNVFP4>(table, "generic/NVFP4");
  add_small<Qtype::kQ1_0>(table, "generic/Q1_0");
  add_small<Qtype::kQ2_0>(table, "generic/Q2_0");
  table.packed_bytes = packed_bytes;
  table.pack = pack;
}

std::size_t packed_bytes(ActFormat format, std::int64_t n_cols, std::int64_t k) {
  return static_cast<std::size_t>(n_cols) * act_row_bytes(format, k);
}

void pack(ActFormat format, const std::uint8_t* const* acts, std::int64_t n_cols, std::int64_t k,
          std::uint8_t* out) {
  const std::size_t row_bytes = act_row_bytes(format, k);
  for (std::int64_t c = 0; c < n_cols; ++c) {
    std::memcpy(out + static_cast<std::size_t>(c) * row_bytes, acts[c], row_bytes);
  }
}

}  // namespace moesaic::kernels::generic
