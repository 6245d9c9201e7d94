// CPU compute on raw pointers: one table of functions per ISA (generic, AVX2, AVX-512, AVX-512
// VNNI), chosen once at run time. The only home of intrinsics. Knows no threads, no tensors, no
// model: callers cut the work and own the memory.
//
// The contract on numbers: within one table every function gives the same bits for an output
// element whatever else is in the call (number of columns, rows, which of few/many ran, where a
// range was cut). And every table gives the bits of the generic one: float sums run in sixteen
// interleaved lanes joined in one fixed tree, with fused multiply-adds where the generic code says
// std::fma; integer dots are exact inside a block. So a model gives the same bytes on any x86
// (attention_bf16 apart, which is for callers that ask for speed instead).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "quant/qtype.h"

namespace moesaic::kernels {

// How a row of activations enters a matmul; each weight type names the one it takes.
enum class ActFormat {
  kF32,     // as it is: float weights
  kQ8x32,   // int8 with a float scale per 32: weight types with blocks of 32 (and NVFP4's 64)
  kQ8x256,  // int8 with a float scale per 256 and the sums of each 16: super-block types
};

// Bytes of one prepared activation row of k elements, a multiple of 64. k is a multiple of the
// format's block for the integer formats.
std::size_t act_row_bytes(ActFormat format, std::int64_t k);

// One cut of out[c][r] = sum_k weight[r][k] * act[c][k], for r in [0, n_rows) and c in [0, n_cols).
struct MatmulJob {
  const std::uint8_t* weight;    // (n_rows, k) blocks, first row of the cut
  std::size_t weight_row_bytes;  // from one row to the next
  std::int64_t n_rows;
  std::int64_t k;
  const std::uint8_t* const* acts;  // (n_cols) prepared activation rows
  std::int64_t n_cols;
  float* const* outs;     // (n_cols) outputs; outs[c][r], r from 0
  std::uint8_t* scratch;  // this thread's, matmul_scratch_bytes(k) bytes, 64-byte aligned
  // What this thread reads next: fetched ahead, behind the last rows. Null: nobody knows.
  const std::uint8_t* next = nullptr;
};

// A gather of columns interleaved for many-row kernels, made once and used by all threads that cut
// the same weight by rows. Same results as without it.
struct PackedCols {
  const std::uint8_t* data;
  std::int64_t n_cols;
};

struct MatmulKernel {
  ActFormat act = ActFormat::kF32;
  const char* name =
      nullptr;  // which code this is, for the dispatcher's test and `doctor`: "avx512vnni/q4_K"
  // Any number of columns; right for a few. acts are rows made by Table::prepare.
  void (*few)(const MatmulJob& job) = nullptr;
  // From `many_from` columns on, this is faster; takes the columns packed by Table::pack (acts is
  // not read).
  void (*many)(const MatmulJob& job, const PackedCols& cols) = nullptr;
  std::int64_t many_from = 0;
};

// How a cached row lies in memory: plain floats, or blocks of 32 as in quant/q8_0.h (d_k and d_v
// are multiples of 32 then). kBF16: the upper halves of floats, for attention_bf16 only.
enum class KvType { kF32, kF16, kQ8_0, kBF16 };

// Unnormalised attention of n_q queries that share one KV head, over cached rows [begin, end) of
// one sequence, which lie in one chunk: kAttentionChunk * c <= begin <= end <= kAttentionChunk * (c
// + 1). Key t of query i is visible when first[i] <= t < last[i]. Writes for each query the running
// maximum, the sum of exp and the weighted sum of values.
inline constexpr std::int64_t kAttentionChunk = 512;

struct AttentionJob {
  const float* q;  // (n_q, d_k), rows q_stride floats apart
  std::int64_t q_stride;
  std::int64_t n_q;
  std::int64_t d_k;
  std::int64_t d_v;
  float scale;
  KvType kv_type;
  const std::uint8_t* const*
      k_pages;  // page p holds rows [p * page_tokens, ...); the pointer is this KV head's row 0
  const std::uint8_t* const*
      v_pages;  // the same pages for MLA, where values are the first d_v columns of the key row
  std::size_t k_row_bytes;  // from one cached row to the next
  std::size_t v_row_bytes;
  std::int64_t page_tokens;  // a power of two that divides kAttentionChunk
  std::int64_t begin;
  std::int64_t end;
  const std::int64_t* first;  // (n_q)
  const std::int64_t* last;   // (n_q)
  float* maximum;             // (n_q), -inf where nothing was visible
  float* sum;                 // (n_q)
  float* out;                 // (n_q, d_v), rows out_stride floats apart
  std::int64_t out_stride;
  std::uint8_t* scratch;  // attention_scratch_bytes(d_k, d_v), this thread's
};

struct Table {
  const char* isa;

  // Matmul kernel of a weight type, indexed by quant id; every type with is_weight has one in every
  // table.
  MatmulKernel matmul[quant::kQtypeIdEnd];

  // x (n_rows, k) rows x_stride apart -> prepared rows at out, act_row_bytes apart.
  void (*prepare)(ActFormat format, const float* x, std::int64_t x_stride, std::int64_t n_rows,
                  std::int64_t k, std::uint8_t* out);
  // Bytes of, and the packing of, n_cols prepared rows for `many`.
  std::size_t (*packed_bytes)(ActFormat format, std::int64_t n_cols, std::int64_t k);
  void (*pack)(ActFormat format, const std::uint8_t* const* acts, std::int64_t n_cols,
               std::int64_t k, std::uint8_t* out);

  void (*attention)(const AttentionJob& job);
  // The same with products of bf16 (numbers of eight bits) and sums of float32, twice as fast; null
  // where the CPU has no such instruction, or MOESAIC_BF16=0. A query's result does not depend on
  // the call's others, but its bits are this function's own.
  void (*attention_bf16)(const AttentionJob& job) = nullptr;
  // Rounds to bf16 as attention_bf16 does: rows of KvType::kBF16 give what their floats give. Null
  // where that is.
  void (*to_bf16)(const float* x, std::int64_t n, std::uint16_t* out) = nullptr;
  // Joins chunk b into a, chunk order from low to high: (maximum, sum, out (d_v)) of one query.
  void (*attention_merge)(float* max_a, float* sum_a, float* out_a, const float* max_b,
                          const float* sum_b, const float* out_b, std::int64_t d_v);
  // out[i] /= sum, after adding the sink (one more logit without a value; -inf for none). Nothing
  // visible gives zeros.
  void (*attention_finish)(float* maximum, float* sum, float* out, std::int64_t d_v, float sink);

  // out = x / sqrt(mean(x^2) + eps) * weight; weight may be null (ones). In place allowed.
  void (*rms_norm)(const float* x, const float* weight, float eps, std::int64_t n, float* out);
  // Rotates the first n_rot of a head: interleaved pairs (2i, 2i+1) or halves (i, i + n_rot/2).
  // cos_sin: (n_rot/2, 2).
  void (*rope)(float* x, const float* cos_sin, std::int64_t n_rot, bool interleaved);
  void (*add)(const float* x, const float* y, std::int64_t n, float* out);  // out = x + y
  void (*add_scaled)(const float* x, float scale, std::int64_t n,
                     float* out);  // out = fma(scale, x, out)
  void (*scale)(float factor, std::int64_t n, float* x);
  void (*silu_mul)(const float* gate, const float* up, std::int64_t n,
                   float* out);  // silu(gate) * up
  // gpt-oss: g = min(gate, limit), u = clamp(up, -limit, limit): g * sigmoid(alpha * g) * (u + 1)
  void (*swiglu_oai)(const float* gate, const float* up, float alpha, float limit, std::int64_t n,
                     float* out);
  void (*sigmoid)(const float* x, std::int64_t n, float* out);
  void (*softmax)(const float* x, std::int64_t n, float* out);  // stable; in place allowed
  double (*log_sum_exp)(const float* x, std::int64_t n);        // double sums, fixed order
  void (*to_f16)(const float* x, std::int64_t n, std::uint16_t* out);
  void (*from_f16)(const std::uint16_t* x, std::int64_t n, float* out);
};

// Bytes a thread needs beside its outputs; for any type, any number of columns.
std::size_t matmul_scratch_bytes(std::int64_t k);
std::size_t attention_scratch_bytes(std::int64_t d_k, std::int64_t d_v);

// The tables this machine can run, slowest first ("generic" always).
std::span<const Table* const> available_tables();
// The fastest one, or the one named by MOESAIC_ISA (generic, avx2, avx512, avx512vnni); throws
// ArgumentError for an unknown name or one that this machine cannot run, naming those it can.
const Table& best_table();
const Table& table_by_name(const char* name);

}  // namespace moesaic::kernels
