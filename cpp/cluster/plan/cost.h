// What a model costs, layer by layer, in bytes and operations: the plan's only view of a model, so
// that it can be made from a file's headers, from a saved description, or on paper. Not for
// loading, and not for time: plan_time.h.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "model/arch/model_file.h"
#include "model/run/memory.h"

namespace moesaic::cluster {

// Matmuls are counted in operations of int8: a multiply-add is two. One of a weight that is held in
// floats, and those of attention, take as long as this many.
inline constexpr double kFloatOpCost = 3.6;  // KERNELS.md: 107 against 375 GOP/s a core
// MLA's attention of many rows where it may use bf16 products: 1.8 times as fast as with floats.
inline constexpr double kShortOpCost = 2.0;
// Grouped attention of one row, whose few queries share little: 83-110 GFLOP/s (bench/NOTES.md)
// where many rows reach 185.
inline constexpr double kOneRowOpCost = 7.0;
// What finding the points of a grid adds to a weight of the IQ types, in such operations.
inline constexpr double kGridUnpackOps = 22;  // KERNELS.md: 30 ps a weight and core

// What scores and mixed values cost a row for each cached position that it sees.
struct AttentionCost {
  double ops_per_key = 0;
  double ops_per_key_of_few = 0;  // when a step has few rows
  // MLA's other form, when it may be used: cheaper rows, after a matmul for each position and step.
  double decompressed_ops_per_key = 0;  // 0: it may not
  double decompress_ops_per_key = 0;
  double kept_tokens = 0;   // first positions that are decompressed once and not by every step
  std::int64_t window = 0;  // positions that a row sees at most; 0: all
  bool operator==(const AttentionCost&) const = default;
};

// One layer (or the embedding, or the head). "Row" is one token of one sequence.
struct LayerCost {
  double weights_bytes = 0;       // held, computed weights included
  double dense_bytes = 0;         // of them read by every step
  double dense_ops_per_row = 0;   // matmuls with them
  double dense_unpack_ops = 0;    // of types that unpack slowly, beyond what others take
  double expert_bytes = 0;        // of one routed expert; 0: none
  double expert_ops_per_row = 0;  // of one routed expert, for a row that chose it
  double expert_unpack_ops = 0;
  std::int64_t n_active = 0;  // experts that a row chooses
  double row_bytes = 0;       // float activations that a row's matmuls read and write
  double kv_bytes_per_token = 0;
  AttentionCost attention{};
  bool operator==(const LayerCost&) const = default;
};

// What scratch depends on. Of the layers, which kinds there are among them.
struct ScratchQuery {
  std::int64_t layer_begin = 0;
  std::int64_t layer_end = 0;
  std::int64_t rows = 0;  // of the largest step
  std::int64_t n_ctx = 0;
  int threads = 1;
  bool head = false;
};

struct ModelCost {
  std::string name;
  std::int64_t d_model = 0;
  std::int64_t vocab = 0;
  std::int64_t n_experts = 0;
  std::int64_t n_ctx_train = 0;
  std::int64_t page_tokens = 64;  // the cache is made of whole pages
  bool tied_head = false;         // a stage with embedding and head holds one table
  LayerCost embed;
  LayerCost head;
  std::vector<LayerCost> layers;
  // Exactly what a stage of these layers will allocate, but for the keys that are kept.
  std::function<double(const ScratchQuery&)> scratch_bytes;
  // Of the kept keys of one layer, where there is memory for them (model::kept_keys).
  std::function<double(std::int64_t n_ctx)> kept_bytes;
};

// Of `options`, n_ctx and kv_tokens have no effect: a plan brings its own.
ModelCost model_cost(const model::ModelFile& model, const model::LoadOptions& options);

}  // namespace moesaic::cluster
