// What stands behind the handles of the CPU backend: buffers, weights (views into the file's
// mapping, or memory of their own) and KV pages; and the checked ways from a handle to a pointer.
// Not for operations.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kept_keys.h"
#include "base/aligned_buffer.h"

namespace moesaic::backend::cpu {

class CpuBuffer final : public Buffer {
 public:
  explicit CpuBuffer(std::size_t n_bytes) : memory_(n_bytes) {}
  std::size_t n_bytes() const override { return memory_.size(); }
  std::uint8_t* data() { return memory_.data(); }
  const std::uint8_t* data() const { return memory_.data(); }

 private:
  AlignedBuffer memory_;
};

// Rows lie row_bytes apart, experts expert_bytes apart; both possibly at odd addresses (a file's
// alignment may be anything), so kernels load unaligned.
class CpuWeight final : public Weight {
 public:
  CpuWeight(const WeightSource& source, const std::uint8_t* data, std::int64_t n_cols,
            std::size_t expert_bytes);
  CpuWeight(quant::Qtype type, std::int64_t n_experts, std::int64_t rows, std::int64_t cols,
            AlignedBuffer memory);

  std::int64_t n_experts() const override { return n_experts_; }
  std::int64_t rows() const override { return rows_; }
  std::int64_t cols() const override { return cols_; }
  quant::Qtype type() const override { return type_; }
  std::size_t n_bytes() const override {
    return static_cast<std::size_t>(n_experts_ * rows_) * row_bytes_;
  }

  std::size_t row_bytes() const { return row_bytes_; }
  const std::uint8_t* expert(std::int64_t e) const {
    return data_ + static_cast<std::size_t>(e) * expert_bytes_;
  }
  std::size_t bytes_of_expert() const { return static_cast<std::size_t>(rows_) * row_bytes_; }
  bool is_mapped() const { return file_ != nullptr; }
  // Multiplies the products of expert e, before the bias.
  float scale(std::int64_t e) const {
    return scales_.empty() ? 1.0F : scales_[static_cast<std::size_t>(e)];
  }
  // All values as floats (n_experts, rows, cols), decoded at the first call: for norms, biases and
  // sinks.
  const float* floats() const;

 private:
  std::shared_ptr<const gguf::File> file_;  // keeps the mapping alive
  AlignedBuffer memory_;                    // of a weight that was made
  const std::uint8_t* data_ = nullptr;      // first row of the first expert
  quant::Qtype type_;
  std::int64_t n_experts_ = 0;
  std::int64_t rows_ = 0;
  std::int64_t cols_ = 0;
  std::size_t row_bytes_ = 0;
  std::size_t expert_bytes_ = 0;
  std::vector<float> scales_;  // (n_experts), or empty
  mutable std::once_flag floats_once_;
  mutable AlignedBuffer floats_;
};

// Per layer one slab for keys and one for values: (n_pages, page_tokens, width) elements of the
// cache's type.
class CpuKv final : public KvStore {
 public:
  CpuKv(const KvSpec& spec, bool keeps_bf16);
  const KvSpec& spec() const override { return spec_; }

  std::size_t k_row_bytes() const { return k_row_bytes_; }
  std::size_t v_row_bytes() const { return v_row_bytes_; }
  std::size_t k_page_bytes() const {
    return k_row_bytes_ * static_cast<std::size_t>(spec_.page_tokens);
  }
  std::size_t v_page_bytes() const {
    return v_row_bytes_ * static_cast<std::size_t>(spec_.page_tokens);
  }
  std::uint8_t* k_page(std::int64_t layer, std::int32_t page) {
    return k_[static_cast<std::size_t>(layer)].data() +
           static_cast<std::size_t>(page) * k_page_bytes();
  }
  const std::uint8_t* k_page(std::int64_t layer, std::int32_t page) const {
    return const_cast<CpuKv*>(this)->k_page(layer, page);
  }
  std::uint8_t* v_page(std::int64_t layer, std::int32_t page) {
    return v_[static_cast<std::size_t>(layer)].data() +
           static_cast<std::size_t>(page) * v_page_bytes();
  }
  const std::uint8_t* v_page(std::int64_t layer, std::int32_t page) const {
    return const_cast<CpuKv*>(this)->v_page(layer, page);
  }
  AlignedBuffer& k_slab(std::int64_t layer) { return k_[static_cast<std::size_t>(layer)]; }
  AlignedBuffer& v_slab(std::int64_t layer) { return v_[static_cast<std::size_t>(layer)]; }
  // Also for whoever only reads the cache: what is kept can be made again.
  KeptKeys& kept() const { return kept_; }

 private:
  KvSpec spec_;
  std::size_t k_row_bytes_ = 0;
  std::size_t v_row_bytes_ = 0;
  std::vector<AlignedBuffer> k_;
  std::vector<AlignedBuffer> v_;  // empty buffers for MLA
  mutable KeptKeys kept_;
};

// Bytes of n values as the cache holds them; n is a multiple of 32 for kQ8_0.
std::size_t kv_bytes(KvType type, std::int64_t n);

// A Mat with its memory: row r begins at data + r * stride.
struct View {
  float* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;
  float* row(std::int64_t r) const { return data + r * stride; }
};

// The ways in. Each throws InternalError naming the operation when the handle is null, belongs to
// another backend, or does not have the shape that the operation needs.
View view(const Mat& mat, const char* op, const char* what);
View view(const Mat& mat, std::int64_t rows, std::int64_t cols, const char* op, const char* what);
const CpuWeight& weight_of(const Weight* weight, const char* op, const char* what);
CpuBuffer& buffer_of(Buffer* buffer, const char* op, const char* what);
CpuKv& kv_of(KvStore& kv, const char* op);
const CpuKv& kv_of(const KvStore& kv, const char* op);
// The floats of a vector weight of n values: a row, or the part of one that is shown as a column.
const float* vector_of(const Weight* weight, std::int64_t n, const char* op, const char* what);
void check_layer(const CpuKv& kv, std::int64_t layer, const char* op);
// Every sequence lies inside the n_rows of the step, and its pages reach its last row and lie in
// the pool.
void check_sequences(const CpuKv& kv, std::span<const SequenceRows> sequences, std::int64_t n_rows,
                     const char* op);

}  // namespace moesaic::backend::cpu
