// A file that is one tensor, in memory of its own: for measuring and comparing kernels with weights
// that no model file has.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "base/aligned_buffer.h"
#include "gguf/file.h"
#include "quant/qtype.h"

namespace moesaic::cluster {

class TensorFile final : public gguf::File {
 public:
  // (rows, cols) or (n_experts, rows, cols) of the type, filled with `pattern` (whole rows of it)
  // again and again.
  TensorFile(quant::Qtype type, std::int64_t rows, std::int64_t cols,
             std::span<const std::uint8_t> pattern, std::int64_t n_experts = 1) {
    const auto n_rows = static_cast<std::uint64_t>(rows * n_experts);
    const auto n_cols = static_cast<std::uint64_t>(cols);
    tensor_ = {.name = "tensor",
               .type = type,
               .ne = {n_cols, n_rows},
               .file = 0,
               .offset = 0,
               .n_bytes = quant::row_bytes(type, n_cols) * n_rows,
               .n_elems = n_cols * n_rows};
    if (n_experts > 1) {
      tensor_.ne = {n_cols, static_cast<std::uint64_t>(rows),
                    static_cast<std::uint64_t>(n_experts)};
    }
    bytes_ = AlignedBuffer(tensor_.n_bytes);
    for (std::uint64_t at = 0; at < tensor_.n_bytes; at += pattern.size()) {
      std::copy_n(pattern.data(), std::min<std::uint64_t>(pattern.size(), tensor_.n_bytes - at),
                  bytes_.data() + at);
    }
  }

  std::uint32_t version() const override { return 3; }
  std::uint64_t alignment() const override { return 64; }
  std::span<const gguf::Value> metadata() const override { return {}; }
  std::span<const gguf::TensorInfo> tensors() const override { return {&tensor_, 1}; }
  std::span<const std::string> paths() const override { return {&name_, 1}; }
  const gguf::Value* find(std::string_view) const override { return nullptr; }
  const gguf::TensorInfo* find_tensor(std::string_view name) const override {
    return name == tensor_.name ? &tensor_ : nullptr;
  }
  std::span<const std::uint8_t> bytes(const gguf::TensorInfo& tensor) const override {
    return {bytes_.data() + tensor.offset, tensor.n_bytes};
  }
  std::span<const std::span<const std::uint8_t>> headers() const override { return {}; }
  void check_intact() const override {}  // in memory
  std::vector<int> descriptors() const override { return {}; }

 private:
  std::string name_ = "(memory)";
  gguf::TensorInfo tensor_;
  AlignedBuffer bytes_;
};

}  // namespace moesaic::cluster
