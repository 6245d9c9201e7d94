// Weights of the CPU backend: slices of the file's mapping, weights that are made, and the first
// touch.
#include <sys/mman.h>
#include <unistd.h>

#include "backend/cpu/cpu_backend.h"
#include "base/errors.h"

namespace moesaic::backend::cpu {
namespace {

constexpr std::size_t kTouchPieceBytes = std::size_t{1} << 20;

// An address range rounded out to whole pages, for madvise.
void will_need(const std::uint8_t* begin, std::size_t n_bytes) {
  const std::uintptr_t page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(begin);
  const std::uintptr_t first = address / page * page;
  // Advice only: where the system refuses, the touch below reads the pages one by one.
  madvise(reinterpret_cast<void*>(first), address + n_bytes - first, MADV_WILLNEED);
}

}  // namespace

std::unique_ptr<Weight> CpuBackend::load(const WeightSource& source) {
  if (source.file == nullptr || source.tensor == nullptr) {
    fail<InternalError>("[cpu.load] need a file and a tensor");
  }
  const gguf::TensorInfo& tensor = *source.tensor;
  const quant::QtypeTraits& type = quant::traits(tensor.type);
  if (!type.is_weight) {
    fail<FormatError>("[cpu.load] ", tensor.name, ": elements of type ", type.name,
                      " cannot be used as a weight; need a float or quantised type");
  }
  const auto dim = [&](std::size_t i) {
    return i < tensor.ne.size() ? static_cast<std::int64_t>(tensor.ne[i]) : std::int64_t{1};
  };
  const std::int64_t cols = dim(0);
  const std::int64_t rows = dim(1);
  const std::int64_t experts = dim(2);
  if (dim(3) != 1) {
    fail<FormatError>("[cpu.load] ", tensor.name, ": ", tensor.ne.size(),
                      " dimensions; a weight has at most 3");
  }
  if (source.n_experts < 1 || source.n_rows < 1 || source.expert_begin < 0 ||
      source.row_begin < 0 || source.expert_begin > experts - source.n_experts ||
      source.row_begin > rows - source.n_rows) {
    fail<InternalError>("[cpu.load] ", tensor.name, ": experts [", source.expert_begin, ", +",
                        source.n_experts, ") and rows [", source.row_begin, ", +", source.n_rows,
                        ") of (", experts, ", ", rows, ", ", cols, ")");
  }
  if (!source.scales.empty() &&
      source.scales.size() != static_cast<std::size_t>(source.n_experts)) {
    fail<InternalError>("[cpu.load] ", tensor.name, ": ", source.scales.size(), " scales for ",
                        source.n_experts, " experts");
  }
  const std::span<const std::uint8_t> bytes = source.file->bytes(tensor);
  const std::size_t row_bytes =
      static_cast<std::size_t>(quant::row_bytes(tensor.type, static_cast<std::uint64_t>(cols)));
  const std::size_t expert_bytes = row_bytes * static_cast<std::size_t>(rows);
  if (bytes.size() < expert_bytes * static_cast<std::size_t>(experts)) {
    fail<FormatError>("[cpu.load] ", tensor.name, ": ", bytes.size(), " bytes, need ",
                      expert_bytes * static_cast<std::size_t>(experts));
  }
  const std::uint8_t* data = bytes.data() +
                             expert_bytes * static_cast<std::size_t>(source.expert_begin) +
                             row_bytes * static_cast<std::size_t>(source.row_begin);
  return std::make_unique<CpuWeight>(source, data, cols, expert_bytes);
}

std::unique_ptr<Weight> CpuBackend::make_weight(quant::Qtype type, std::int64_t n_experts,
                                                std::int64_t rows, std::int64_t cols,
                                                std::span<const float> values) {
  const quant::QtypeTraits& traits = quant::traits(type);
  if (traits.encode == nullptr || !traits.is_weight) {
    fail<InternalError>("[cpu.make_weight] type ", traits.name, " cannot be encoded");
  }
  if (n_experts < 1 || rows < 1 || cols < 1 || cols % traits.block_elems != 0 ||
      static_cast<std::int64_t>(values.size()) != n_experts * rows * cols) {
    fail<InternalError>("[cpu.make_weight] (", n_experts, ", ", rows, ", ", cols, ") ", traits.name,
                        " from ", values.size(), " values");
  }
  const std::int64_t n_rows = n_experts * rows;
  const std::size_t row_bytes =
      static_cast<std::size_t>(quant::row_bytes(type, static_cast<std::uint64_t>(cols)));
  AlignedBuffer memory(static_cast<std::size_t>(n_rows) * row_bytes);
  parallel_for(n_rows, 1, n_rows * cols > (1 << 14), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      if (r % 64 == 0) check_cancel();
      traits.encode(values.data() + r * cols, cols / traits.block_elems,
                    memory.data() + static_cast<std::size_t>(r) * row_bytes);
    }
  });
  return std::make_unique<CpuWeight>(type, n_experts, rows, cols, std::move(memory));
}

void CpuBackend::prefault(const Weight& weight) {
  const CpuWeight& cpu_weight = weight_of(&weight, "prefault", "weight");
  if (!cpu_weight.is_mapped()) return;
  const std::size_t expert_bytes = cpu_weight.bytes_of_expert();
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::int64_t pieces_per_expert =
      static_cast<std::int64_t>((expert_bytes + kTouchPieceBytes - 1) / kTouchPieceBytes);
  for (std::int64_t e = 0; e < cpu_weight.n_experts(); ++e) {
    will_need(cpu_weight.expert(e), expert_bytes);
  }
  reset_claims();
  const std::int64_t n_pieces = pieces_per_expert * cpu_weight.n_experts();
  parallel(n_pieces > 1, [&](int, int) {
    for (std::int64_t i = claim(n_pieces); i >= 0; i = claim(n_pieces)) {
      check_cancel();
      const std::uint8_t* data = cpu_weight.expert(i / pieces_per_expert);
      const std::size_t begin = static_cast<std::size_t>(i % pieces_per_expert) * kTouchPieceBytes;
      const std::size_t end = std::min(begin + kTouchPieceBytes, expert_bytes);
      for (std::size_t at = begin; at < end; at += page) {
        static_cast<void>(*static_cast<const volatile std::uint8_t*>(data + at));
      }
      static_cast<void>(*static_cast<const volatile std::uint8_t*>(data + end - 1));
    }
  });
}

}  // namespace moesaic::backend::cpu
