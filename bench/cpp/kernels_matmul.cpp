// Every weight type x table: GB/s of weights for one column (from the second-level cache and from
// memory), int8 operations per second for many columns (panel and columns cache-resident, and with
// weights from memory: what a step of few rows for each expert sees).
#include <cstring>
#include <random>

#include "base/aligned_buffer.h"
#include "kernels/table.h"
#include "kernels_bench.h"

namespace moesaic::bench {
namespace {

using kernels::MatmulJob;
using kernels::MatmulKernel;
using kernels::Table;

// Random codes under ordinary float scales. MXFP4's exponents are set: random ones would make
// subnormal floats, which some machines multiply slowly.
AlignedBuffer random_bytes(std::size_t n_bytes) {
  AlignedBuffer out(n_bytes);
  std::mt19937_64 rng(1);
  for (std::size_t i = 0; i + 8 <= n_bytes; i += 8) {
    const std::uint64_t x = rng() & 0x3F3F3F3F3F3F3F3FULL;  // no f16 infinities or NaN
    std::memcpy(out.data() + i, &x, 8);
  }
  return out;
}

struct Bench {
  const Table& table;
  const quant::QtypeTraits& type;
  const MatmulKernel& kernel;
  std::int64_t k;

  std::size_t row_bytes() const {
    return static_cast<std::size_t>(k / type.block_elems * type.block_bytes);
  }

  // Seconds for n_matrices, one behind the other in memory, of n_rows x n_cols.
  double run(const AlignedBuffer& weights, std::int64_t n_rows, std::int64_t n_cols, bool many,
             double budget, std::int64_t n_matrices = 1) const {
    std::mt19937 rng(2);
    std::normal_distribution<float> normal;
    std::vector<float> x(static_cast<std::size_t>(n_cols * k));
    for (float& v : x) v = normal(rng);
    const std::size_t act_bytes = kernels::act_row_bytes(kernel.act, k);
    AlignedBuffer acts(act_bytes * static_cast<std::size_t>(n_cols));
    table.prepare(kernel.act, x.data(), k, n_cols, k, acts.data());
    AlignedBuffer out(static_cast<std::size_t>(n_cols * n_rows) * sizeof(float));
    AlignedBuffer scratch(kernels::matmul_scratch_bytes(k));
    AlignedBuffer packed(table.packed_bytes(kernel.act, n_cols, k) + 64);
    std::vector<const std::uint8_t*> rows;
    std::vector<float*> outs;
    for (std::int64_t c = 0; c < n_cols; ++c) {
      rows.push_back(acts.data() + static_cast<std::size_t>(c) * act_bytes);
      outs.push_back(out.as<float>() + c * n_rows);
    }
    MatmulJob job{weights.data(), row_bytes(), n_rows,      k,
                  rows.data(),    n_cols,      outs.data(), scratch.data()};
    return best_seconds(budget, [&] {
      for (std::int64_t i = 0; i < n_matrices; ++i) {
        const std::size_t bytes = static_cast<std::size_t>(n_rows) * row_bytes();
        job.weight = weights.data() + static_cast<std::size_t>(i) * bytes;
        job.next = i + 1 < n_matrices ? job.weight + bytes : nullptr;  // as MatmulRun says
        if (many) {
          table.pack(kernel.act, rows.data(), n_cols, k, packed.data());
          kernel.many(job, {packed.data(), n_cols});
        } else {
          kernel.few(job);
        }
      }
    });
  }
};

}  // namespace

void bench_matmul(const Options& options, const Ceilings& ceilings) {
  constexpr std::size_t kMemoryBytes = 200U << 20;
  AlignedBuffer weights = random_bytes(kMemoryBytes);
  for (const quant::QtypeTraits& type : quant::all_qtypes()) {
    if (!type.is_weight || (!options.type.empty() && options.type != type.name)) continue;
    if (options.k % type.block_elems != 0) continue;
    for (const Table* table : kernels::available_tables()) {
      if (!options.isa.empty() && options.isa != table->isa) continue;
      if (options.isa.empty() && std::strcmp(table->isa, "generic") == 0) continue;
      const MatmulKernel& kernel = table->matmul[static_cast<std::uint32_t>(type.type)];
      const Bench bench{*table, type, kernel, options.k};
      if (type.type == quant::Qtype::kMXFP4) {
        for (std::size_t i = 0; i < kMemoryBytes; i += 17) weights.data()[i] = 120;
      }
      const auto row_bytes = static_cast<std::int64_t>(bench.row_bytes());
      const std::int64_t cached_rows = (300 << 10) / row_bytes;
      const auto memory_rows = static_cast<std::int64_t>(kMemoryBytes) / row_bytes;
      const auto gb_per_s = [&](std::int64_t n_rows, double budget) {
        return static_cast<double>(n_rows * row_bytes) /
               bench.run(weights, n_rows, 1, false, budget) / 1e9;
      };
      const double cached = gb_per_s(cached_rows, options.seconds);
      const double memory = gb_per_s(memory_rows, options.seconds);
      std::printf(
          "{\"bench\": \"matmul_one_column\", \"kernel\": \"%s\", \"cache_gb_per_s\": %.1f, "
          "\"memory_gb_per_s\": %.1f, \"memory_share\": %.2f}\n",
          kernel.name, cached, memory, memory / ceilings.read_gb_per_s);
      for (const std::int64_t n_cols : {2, 4, 8, 12, 16, 32, 64, 256}) {
        if (!options.many_columns) break;
        constexpr std::int64_t kRows = 768;
        const double ops = 2.0 * static_cast<double>(kRows * options.k * n_cols) / 1e9;
        const double few =
            n_cols <= 8 ? ops / bench.run(weights, kRows, n_cols, false, options.seconds) : 0.0;
        const double many = ops / bench.run(weights, kRows, n_cols, true, options.seconds);
        const double ceiling = kernel.act == kernels::ActFormat::kF32 ? ceilings.f32_gflop_per_s
                                                                      : ceilings.int8_gop_per_s;
        const std::int64_t n_matrices = memory_rows / 2 / kRows;
        const double from_memory =
            ops * static_cast<double>(n_matrices) /
            bench.run(weights, kRows, n_cols, true, options.seconds, n_matrices);
        std::printf(
            "{\"bench\": \"matmul\", \"kernel\": \"%s\", \"columns\": %lld, "
            "\"few_gop_per_s\": %.0f, \"many_gop_per_s\": %.0f, \"share\": %.2f, "
            "\"many_from_memory_gop_per_s\": %.0f}\n",
            kernel.name, static_cast<long long>(n_cols), few, many,
            (few > many ? few : many) / ceiling, from_memory);
      }
      std::fflush(stdout);
    }
  }
}

}  // namespace moesaic::bench
