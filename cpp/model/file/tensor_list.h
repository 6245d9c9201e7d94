// Which tensors a layer is made of: names, shapes, and where each goes. A family lists them
// (arch/<family>.cpp); the list is checked against the file's directory before anything is loaded.
// Not for bytes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "model/file/keys.h"

namespace moesaic::model {

using WeightPtr = std::unique_ptr<backend::Weight>;

// The weights of one layer; null where the family or the file has none. Shapes are (rows, cols), x
// (n, cols) -> y (n, rows); with a first number, that many matrices.
struct LayerWeights {
  WeightPtr attn_norm;  // (d_model)
  // Grouped attention; attn_q also of MLA without q-LoRA.
  WeightPtr attn_q, attn_q_bias;       // (n_heads * d_head_k, d_model)
  WeightPtr attn_k, attn_k_bias;       // (n_kv_heads * d_head_k, d_model)
  WeightPtr attn_v, attn_v_bias;       // (n_kv_heads * d_head_v, d_model)
  WeightPtr attn_q_norm, attn_k_norm;  // (d_head_k)
  WeightPtr attn_sinks;                // (n_heads)
  // MLA.
  WeightPtr attn_q_a, attn_q_a_norm;        // (q_lora, d_model); (q_lora)
  WeightPtr attn_q_b;                       // (n_heads * (d_nope + d_rope), q_lora)
  WeightPtr attn_kv_a, attn_kv_a_norm;      // (kv_lora + d_rope, d_model); (kv_lora)
  WeightPtr attn_k_b;                       // n_heads x (kv_lora, d_nope): absorbed keys
  WeightPtr attn_v_b;                       // n_heads x (d_v, kv_lora)
  WeightPtr attn_w_k;                       // n_heads x (d_nope, kv_lora): decompressed keys
  WeightPtr attn_output, attn_output_bias;  // (d_model, n_heads * d_v)

  WeightPtr ffn_norm;                   // (d_model)
  WeightPtr ffn_gate, ffn_gate_bias;    // (d_ff, d_model)
  WeightPtr ffn_up, ffn_up_bias;        // (d_ff, d_model)
  WeightPtr ffn_down, ffn_down_bias;    // (d_model, d_ff)
  WeightPtr router, router_bias;        // (n_experts, d_model); (n_experts)
  WeightPtr selection_bias;             // (n_experts)
  WeightPtr gate_exps, gate_exps_bias;  // n_experts x (d_ff_expert, d_model)
  WeightPtr up_exps, up_exps_bias;      // n_experts x (d_ff_expert, d_model)
  WeightPtr down_exps, down_exps_bias;  // n_experts x (d_model, d_ff_expert)
  WeightPtr gate_shexp, up_shexp;       // (n_shared * d_ff_expert, d_model)
  WeightPtr down_shexp;                 // (d_model, n_shared * d_ff_expert)
};

using LayerSlot = WeightPtr LayerWeights::*;

// How a weight comes out of its tensor.
enum class Origin {
  kMapped,      // as it lies in the file
  kTransposed,  // computed at load: each matrix transposed
};

// One weight of a layer and the part of a tensor that it is. The tensor is n_experts matrices of
// tensor_rows rows; the weight is rows [row_begin, row_begin + rows) of each (before transposing).
struct TensorSpec {
  LayerSlot slot = nullptr;  // null for the weights outside layers
  const gguf::TensorInfo* tensor = nullptr;
  std::int64_t n_experts = 1;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_begin = 0;
  std::int64_t tensor_rows = 0;
  Origin origin = Origin::kMapped;
  bool is_vector = false;  // float values that are added or multiplied by, not a matrix
  // "<name>.scale": one factor, or one per expert, of the products of this weight. Null: none.
  const gguf::TensorInfo* scale = nullptr;

  std::uint64_t mapped_bytes() const;   // of the tensor that are read
  std::uint64_t derived_bytes() const;  // of memory that a computed weight takes; 0 when mapped
};

// The type that a weight computed from one of `type` is held in, with rows of `cols`.
quant::Qtype derived_type(quant::Qtype type, std::int64_t cols);

// What a matrix of the file must look like.
struct Shape {
  std::int64_t n_experts = 1;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
};

// Collects the tensors of one layer (or, with layer < 0, of the model outside layers). Throws
// FormatError for a tensor that is missing, misshapen, or of a type no matmul takes.
class TensorList {
 public:
  TensorList(const Keys& keys, std::int64_t layer);

  const Keys& keys() const { return keys_; }
  std::int64_t layer() const { return layer_; }
  // Names are without "blk.N.".
  bool has(std::string_view name) const { return find(name) != nullptr; }

  void matrix(LayerSlot slot, std::string_view name, const Shape& shape);
  // Float values, any shape's rows: norms, biases, sinks.
  void vector(LayerSlot slot, std::string_view name, std::int64_t n, std::int64_t n_rows = 1);
  void optional_vector(LayerSlot slot, std::string_view name, std::int64_t n,
                       std::int64_t n_rows = 1);
  // Rows [row_begin, row_begin + n_rows) of each matrix of a tensor of the given shape.
  void rows_of(LayerSlot slot, std::string_view name, const Shape& shape, std::int64_t row_begin,
               std::int64_t n_rows, Origin origin = Origin::kMapped);
  // Values [begin, begin + n) of each row of a tensor of (n_rows, row) float values, if it is
  // there.
  void optional_part(LayerSlot slot, std::string_view name, std::int64_t row, std::int64_t begin,
                     std::int64_t n, std::int64_t n_rows = 1);
  // A tensor that may be there and is not needed.
  void ignore(std::string_view name);

  std::vector<TensorSpec>& specs() { return specs_; }
  // Throws FormatError when the file has a tensor of this layer that was not listed: what it is for
  // is not known, and the model would be another one without it.
  void check_all_listed(const std::vector<const gguf::TensorInfo*>& of_layer) const;

 private:
  std::string full(std::string_view name) const;
  const gguf::TensorInfo* find(std::string_view name) const;
  TensorSpec& add(LayerSlot slot, std::string_view name, const Shape& shape, bool is_vector);
  const gguf::TensorInfo* find_scale(std::string_view name, std::int64_t n_experts);

  const Keys& keys_;
  std::int64_t layer_;
  std::vector<TensorSpec> specs_;
  std::vector<const gguf::TensorInfo*> listed_;
};

}  // namespace moesaic::model
