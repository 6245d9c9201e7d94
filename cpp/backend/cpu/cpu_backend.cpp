// Construction, memory and the plan of scratch.
#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <cstring>

#include "backend/registry.h"
#include "base/errors.h"

namespace moesaic::backend {

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  return std::make_unique<cpu::CpuBackend>(options.n_threads);
}

namespace cpu {
namespace {

void check_range(std::size_t size, std::size_t offset, std::size_t n_bytes, const char* op) {
  if (offset > size || n_bytes > size - offset) {
    fail<InternalError>("[cpu.", op, "] bytes [", offset, ", +", n_bytes, ") of a buffer of ",
                        size);
  }
}

// What serves both: a backend may be shared by several forward passes, one at a time.
Backend::ScratchSpec larger_of(const Backend::ScratchSpec& a, const Backend::ScratchSpec& b) {
  const auto slot_cols = [](const Backend::ScratchSpec& spec) {
    return spec.max_slot_cols == 0 ? spec.max_cols : spec.max_slot_cols;
  };
  Backend::ScratchSpec spec;
  spec.max_rows = std::max(a.max_rows, b.max_rows);
  spec.max_cols = std::max(a.max_cols, b.max_cols);
  spec.max_slots = std::max(a.max_slots, b.max_slots);
  spec.max_slot_cols = std::max(slot_cols(a), slot_cols(b));
  spec.max_n_ctx = std::max(a.max_n_ctx, b.max_n_ctx);
  spec.n_heads = std::max(a.n_heads, b.n_heads);
  spec.d_k = std::max(a.d_k, b.d_k);
  spec.d_v = std::max(a.d_v, b.d_v);
  spec.kv_lora = std::max(a.kv_lora, b.kv_lora);
  return spec;
}

}  // namespace

CpuBackend::CpuBackend(int n_threads)
    : table_(kernels::best_table()), pool_(n_threads == 0 ? available_cpus() : n_threads) {}

DeviceInfo CpuBackend::info() const {
  return {"cpu", strcat(table_.isa, ", ", pool_.size(), pool_.size() == 1 ? " thread" : " threads"),
          pool_.size()};
}

std::unique_ptr<Buffer> CpuBackend::allocate(std::size_t n_bytes) {
  return std::make_unique<CpuBuffer>(n_bytes);
}

void CpuBackend::upload(Buffer& to, std::size_t offset_bytes, const void* from,
                        std::size_t n_bytes) {
  CpuBuffer& buffer = buffer_of(&to, "upload", "to");
  check_range(buffer.n_bytes(), offset_bytes, n_bytes, "upload");
  if (n_bytes > 0) std::memcpy(buffer.data() + offset_bytes, from, n_bytes);
}

void CpuBackend::download(const Buffer& from, std::size_t offset_bytes, void* to,
                          std::size_t n_bytes) {
  const CpuBuffer& buffer = buffer_of(const_cast<Buffer*>(&from), "download", "from");
  check_range(buffer.n_bytes(), offset_bytes, n_bytes, "download");
  if (n_bytes > 0) std::memcpy(to, buffer.data() + offset_bytes, n_bytes);
}

std::size_t CpuBackend::scratch_bytes(const ScratchSpec& spec) const {
  return plan_scratch(spec, table_, pool_.size()).total(pool_.size());
}

void CpuBackend::reserve(const ScratchSpec& wanted) {
  const ScratchSpec spec = larger_of(reserved_, wanted);
  const ScratchPlan plan = plan_scratch(spec, table_, pool_.size());
  AlignedBuffer scratch(plan.total(pool_.size()));
  // Now, and not in the first step that needs it: what was planned is taken, or refused, at load.
  if (scratch.size() > 0) std::memset(scratch.data(), 0, scratch.size());
  lists_.reserve(std::max({spec.max_rows, spec.max_slots, spec.max_rows * spec.n_heads}));
  items_.reserve(static_cast<std::size_t>(spec.max_rows * std::max<std::int64_t>(spec.n_heads, 1)));
  for (RopeTable& table : rope_tables_) {
    table.positions.reserve(static_cast<std::size_t>(spec.max_rows));
    table.cos_sin.reserve(static_cast<std::size_t>(plan.rope_floats));
  }
  scratch_ = std::move(scratch);
  plan_ = plan;
  reserved_ = spec;
}

std::int64_t CpuBackend::claim(std::int64_t end) {
  std::int64_t number = next_.load(std::memory_order_relaxed);
  while (number < end) {
    if (next_.compare_exchange_weak(number, number + 1, std::memory_order_relaxed)) return number;
  }
  return -1;
}

}  // namespace cpu
}  // namespace moesaic::backend
