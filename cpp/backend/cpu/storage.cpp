// Handles of the CPU backend and the checks on the way to what is behind them.
#include "backend/cpu/storage.h"

#include <cstring>
#include <typeinfo>

#include "base/errors.h"
#include "quant/q8_0.h"

namespace moesaic::backend::cpu {

CpuWeight::CpuWeight(const WeightSource& source, const std::uint8_t* data, std::int64_t n_cols,
                     std::size_t expert_bytes)
    : file_(source.file),
      data_(data),
      type_(source.tensor->type),
      n_experts_(source.n_experts),
      rows_(source.n_rows),
      cols_(n_cols),
      row_bytes_(static_cast<std::size_t>(
          quant::row_bytes(source.tensor->type, static_cast<std::uint64_t>(n_cols)))),
      expert_bytes_(expert_bytes),
      scales_(source.scales) {}

CpuWeight::CpuWeight(quant::Qtype type, std::int64_t n_experts, std::int64_t rows,
                     std::int64_t cols, AlignedBuffer memory)
    : memory_(std::move(memory)),
      data_(memory_.data()),
      type_(type),
      n_experts_(n_experts),
      rows_(rows),
      cols_(cols),
      row_bytes_(
          static_cast<std::size_t>(quant::row_bytes(type, static_cast<std::uint64_t>(cols)))),
      expert_bytes_(static_cast<std::size_t>(rows) * row_bytes_) {}

const float* CpuWeight::floats() const {
  std::call_once(floats_once_, [this] {
    const std::size_t expert_floats = static_cast<std::size_t>(rows_ * cols_);
    AlignedBuffer values(static_cast<std::size_t>(n_experts_) * expert_floats * sizeof(float));
    const quant::QtypeTraits& type = quant::traits(type_);
    for (std::int64_t e = 0; e < n_experts_; ++e) {
      type.decode(expert(e), rows_ * cols_ / type.block_elems,
                  values.as<float>() + static_cast<std::size_t>(e) * expert_floats);
    }
    floats_ = std::move(values);
  });
  return floats_.as<float>();
}

std::size_t kv_bytes(KvType type, std::int64_t n) {
  const auto count = static_cast<std::size_t>(n);
  switch (type) {
    case KvType::kF32:
      return count * sizeof(float);
    case KvType::kF16:
      return count * sizeof(std::uint16_t);
    case KvType::kQ8_0:
      return count / 32 * sizeof(quant::BlockQ8_0);
  }
  fail<InternalError>("[cpu] cache type ", static_cast<int>(type));
}

CpuKv::CpuKv(const KvSpec& spec, bool keeps_bf16)
    : spec_(spec),
      k_row_bytes_(kv_bytes(spec.type, spec.k_width)),
      v_row_bytes_(kv_bytes(spec.type, spec.v_width)),
      kept_(spec, keeps_bf16) {
  for (std::int64_t layer = 0; layer < spec.n_layers; ++layer) {
    k_.emplace_back(k_page_bytes() * static_cast<std::size_t>(spec.n_pages));
    v_.emplace_back(v_page_bytes() * static_cast<std::size_t>(spec.n_pages));
  }
}

CpuBuffer& buffer_of(Buffer* buffer, const char* op, const char* what) {
  if (buffer == nullptr || typeid(*buffer) != typeid(CpuBuffer)) {
    fail<InternalError>("[cpu.", op, "] ", what, ": need a buffer of this backend");
  }
  return static_cast<CpuBuffer&>(*buffer);
}

View view(const Mat& mat, const char* op, const char* what) {
  if (mat.rows == 0) return {nullptr, 0, mat.cols, mat.stride};
  CpuBuffer& buffer = buffer_of(mat.buffer, op, what);
  const std::int64_t n_floats = static_cast<std::int64_t>(buffer.n_bytes() / sizeof(float));
  if (mat.rows < 0 || mat.cols < 0 || mat.offset < 0 || mat.stride < mat.cols ||
      mat.offset + (mat.rows - 1) * mat.stride + mat.cols > n_floats) {
    fail<InternalError>("[cpu.", op, "] ", what, ": (", mat.rows, ", ", mat.cols, ") at ",
                        mat.offset, " with stride ", mat.stride, " does not fit a buffer of ",
                        n_floats, " floats");
  }
  return {reinterpret_cast<float*>(buffer.data()) + mat.offset, mat.rows, mat.cols, mat.stride};
}

View view(const Mat& mat, std::int64_t rows, std::int64_t cols, const char* op, const char* what) {
  if (mat.rows != rows || mat.cols != cols) {
    fail<InternalError>("[cpu.", op, "] ", what, ": got (", mat.rows, ", ", mat.cols, "), need (",
                        rows, ", ", cols, ")");
  }
  return view(mat, op, what);
}

const CpuWeight& weight_of(const Weight* weight, const char* op, const char* what) {
  if (weight == nullptr || typeid(*weight) != typeid(CpuWeight)) {
    fail<InternalError>("[cpu.", op, "] ", what, ": need a weight of this backend");
  }
  return static_cast<const CpuWeight&>(*weight);
}

const float* vector_of(const Weight* weight, std::int64_t n, const char* op, const char* what) {
  const CpuWeight& vector = weight_of(weight, op, what);
  const bool is_vector = vector.n_experts() == 1 && (vector.rows() == 1 || vector.cols() == 1);
  if (!is_vector || vector.rows() * vector.cols() != n) {
    fail<InternalError>("[cpu.", op, "] ", what, ": got (", vector.n_experts(), ", ", vector.rows(),
                        ", ", vector.cols(), "), need (1, 1, ", n, ")");
  }
  return vector.floats();
}

CpuKv& kv_of(KvStore& kv, const char* op) {
  if (typeid(kv) != typeid(CpuKv)) {
    fail<InternalError>("[cpu.", op, "] kv: need a cache of this backend");
  }
  return static_cast<CpuKv&>(kv);
}

const CpuKv& kv_of(const KvStore& kv, const char* op) {
  return kv_of(const_cast<KvStore&>(kv), op);
}

void check_layer(const CpuKv& kv, std::int64_t layer, const char* op) {
  if (layer < 0 || layer >= kv.spec().n_layers) {
    fail<InternalError>("[cpu.", op, "] layer ", layer, " of a cache of ", kv.spec().n_layers);
  }
}

void check_sequences(const CpuKv& kv, std::span<const SequenceRows> sequences, std::int64_t n_rows,
                     const char* op) {
  const KvSpec& spec = kv.spec();
  for (const SequenceRows& sequence : sequences) {
    const std::int64_t end = sequence.start + sequence.n_rows;
    if (sequence.row_begin < 0 || sequence.n_rows < 0 || sequence.start < 0 ||
        sequence.row_begin + sequence.n_rows > n_rows) {
      fail<InternalError>("[cpu.", op, "] rows [", sequence.row_begin, ", +", sequence.n_rows,
                          ") at position ", sequence.start, " of a step of ", n_rows, " rows");
    }
    const std::int64_t n_needed = (end + spec.page_tokens - 1) / spec.page_tokens;
    if (static_cast<std::int64_t>(sequence.pages.size()) < n_needed) {
      fail<InternalError>("[cpu.", op, "] ", sequence.pages.size(), " pages of ", spec.page_tokens,
                          " tokens do not reach position ", end);
    }
    for (std::int64_t i = 0; i < n_needed; ++i) {
      const std::int32_t page = sequence.pages[static_cast<std::size_t>(i)];
      if (page < 0 || page >= spec.n_pages) {
        fail<InternalError>("[cpu.", op, "] page ", page, " of a pool of ", spec.n_pages);
      }
    }
  }
}

}  // namespace moesaic::backend::cpu
