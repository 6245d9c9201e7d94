// Which tables this machine can run, and the choice among them.
#include "kernels/table.h"

#include <algorithm>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "base/errors.h"
#include "kernels/act_layout.h"
#include "kernels/common/attention.h"
#include "kernels/common/attention_bf16.h"
#include "kernels/tables.h"

namespace moesaic::kernels {
namespace {

std::vector<const Table*> runnable_tables() {
  std::vector<const Table*> tables = {&generic::table()};
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool has_vnni = has_avx512 && __builtin_cpu_supports("avx512vnni") &&
                        __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("gfni");
  const auto add = [&tables](bool runs_here, const Table* (*table)()) {
    if (runs_here && table() != nullptr) tables.push_back(table());
  };
  add(has_avx2, avx2::table);
  add(has_avx512, avx512::table);
  add(has_vnni, avx512vnni::table);
  return tables;
}

}  // namespace

std::size_t act_row_bytes(ActFormat format, std::int64_t k) {
  if (format == ActFormat::kF32) return static_cast<std::size_t>((k + 15) / 16 * 64);
  const std::int64_t kp = padded_k(k);
  const std::int64_t n_bytes = kp + kp / kSumGroup * 2 + kp / scale_group(format) * 4;
  return static_cast<std::size_t>((n_bytes + 63) / 64 * 64);
}

std::size_t matmul_scratch_bytes(std::int64_t k) {
  return static_cast<std::size_t>(kPanelBytesPerK * padded_k(k)) + 4096;
}

std::size_t attention_scratch_bytes(std::int64_t d_k, std::int64_t d_v) {
  return std::max(sizeof(AttentionScratch), Bf16Layout(d_k, d_v).total());
}

std::span<const Table* const> available_tables() {
  static const std::vector<const Table*> tables = runnable_tables();
  return tables;
}

const Table& best_table() {
  const char* forced = std::getenv("MOESAIC_ISA");
  if (forced != nullptr && *forced != '\0') return table_by_name(forced);
  return *available_tables().back();
}

const Table& table_by_name(const char* name) {
  std::string names;
  for (const Table* table : available_tables()) {
    if (std::string_view(table->isa) == name) return *table;
    names += names.empty() ? "" : ", ";
    names += table->isa;
  }
  fail<ArgumentError>("[kernels] instruction set (MOESAIC_ISA): got '", name,
                      "', need one that this machine runs: ", names,
                      "; unset MOESAIC_ISA to take the fastest");
}

}  // namespace moesaic::kernels
