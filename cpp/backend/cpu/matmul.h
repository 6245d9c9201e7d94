// The one engine behind matmul, matmul_heads and grouped_matmul. Input rows are prepared once for
// each format that the targets take; output columns come in groups, one per matrix ("expert"); the
// work is cut by weight rows over the team. Which cut, block or wave an element falls into never
// changes its bits: that is the kernels' contract.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "backend/cpu/scratch.h"
#include "backend/cpu/storage.h"
#include "kernels/table.h"

namespace moesaic::backend::cpu {

class CpuBackend;

// Row p of the input is x + (p / inner) * stride + (p % inner) * inner_stride.
struct MatmulInput {
  const float* x = nullptr;
  std::int64_t n_rows = 0;
  std::int64_t k = 0;
  std::int64_t stride = 0;
  std::int64_t inner = 1;
  std::int64_t inner_stride = 0;
};

// Output row o is out + (o / inner) * stride + (o % inner) * inner_stride.
struct MatmulOutput {
  const CpuWeight* weight = nullptr;
  const float* bias = nullptr;  // (n_experts or 1, rows), or null
  float* out = nullptr;
  std::int64_t stride = 0;
  std::int64_t inner = 1;
  std::int64_t inner_stride = 0;
};

// One column of a group: which prepared row it reads, which output row it writes.
struct MatmulColumn {
  std::int32_t in = 0;
  std::int32_t out = 0;
};

// Columns [begin, end) go through matrix `expert`.
struct MatmulGroup {
  std::int64_t expert = 0;
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

inline constexpr int kMaxTargets = 8;
inline constexpr int kMaxFormats = 3;
inline constexpr std::size_t kNotPacked = static_cast<std::size_t>(-1);

// At most kBlockCols columns of one group, packed together.
struct MatmulBlock {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t group = 0;
  std::array<std::size_t, kMaxFormats> pack{kNotPacked, kNotPacked, kNotPacked};  // offsets
};

// All rows of one matrix of one target, over blocks [block_begin, block_end) of its group.
struct MatmulTask {
  int target = 0;
  std::int64_t expert = 0;
  std::int64_t block_begin = 0;
  std::int64_t block_end = 0;
  std::int64_t n_rows = 0;
  std::int64_t row_cost = 0;
  std::int64_t cost_begin = 0;   // of the tasks before it in the wave
  std::int64_t piece_rows = 0;   // rows of one claim
  std::int64_t piece_begin = 0;  // number of its first piece, over all waves
};

// What is packed, and then computed, between two barriers.
struct MatmulWave {
  std::int64_t block_begin = 0;
  std::int64_t block_end = 0;
  std::int64_t task_begin = 0;
  std::int64_t task_end = 0;
  std::int64_t cost = 0;
  std::int64_t piece_end = 0;
  bool packed = false;
};

// The lists of one call; they live in the backend so that their memory is kept from call to call.
struct MatmulLists {
  std::vector<MatmulColumn> columns;
  std::vector<MatmulGroup> groups;
  std::vector<MatmulBlock> blocks;
  std::vector<MatmulTask> tasks;
  std::vector<MatmulWave> waves;
  std::vector<std::int64_t> counts;  // (n_experts + 1), for sorting slots by expert
  void reserve(std::int64_t n_columns);
};

class MatmulRun {
 public:
  MatmulRun(CpuBackend& backend, const char* op, std::int64_t k);
  void add(const MatmulOutput& output);
  // Input rows that fit the plan's room for prepared rows: callers with more go in passes.
  std::int64_t max_input_rows() const;
  // Runs backend.lists_.columns and .groups, which the caller has filled.
  void run(const MatmulInput& input);

 private:
  struct Target {
    MatmulOutput output;
    const kernels::MatmulKernel* kernel = nullptr;
    int format = 0;  // index into formats_
  };
  struct Format {
    kernels::ActFormat format = kernels::ActFormat::kF32;
    std::size_t row_bytes = 0;     // of a prepared row
    std::int64_t many_from = 0;    // the least of its targets; max when none packs
    std::uint8_t* rows = nullptr;  // prepared rows
  };

  void plan();
  void plan_wave(std::int64_t block_begin, std::int64_t block_end);
  void prepare(const MatmulInput& input, std::int64_t begin, std::int64_t end) const;
  void pack(const MatmulWave& wave, int member, int n_members) const;
  void compute_cut(const MatmulWave& wave, int member, int n_members) const;
  void compute_claims(const MatmulWave& wave, int member, int n_members) const;
  // next: what this member reads after them, for kernels of many columns; null: not known.
  void compute_rows(const MatmulTask& task, std::int64_t begin, std::int64_t end,
                    const std::uint8_t* next, Arena arena) const;
  const std::uint8_t* rows_of(const MatmulTask& task, std::int64_t row) const;
  // Of the wave's task of that number; null past its end.
  const std::uint8_t* first_of(const MatmulWave& wave, std::int64_t task) const;

  CpuBackend& backend_;
  const char* op_;
  std::int64_t k_;
  std::array<Target, kMaxTargets> targets_;
  int n_targets_ = 0;
  std::array<Format, kMaxFormats> formats_;
  int n_formats_ = 0;
  std::uint8_t* packs_ = nullptr;
};

}  // namespace moesaic::backend::cpu
