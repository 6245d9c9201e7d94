// What a model costs, layer by layer, in bytes and operations: the plan's only view of a model, so
// that it can be made from a file's headers, from a saved description, or on paper. Not for
// loading.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/memory.h"
#include "model/model_file.h"

namespace moesaic::cluster {

// One layer (or the embedding, or the head). "Row" is one token of one sequence.
struct LayerCost {
  double weights_bytes = 0;          // held, computed weights included
  double dense_bytes = 0;            // of them read by every step
  double expert_bytes = 0;           // of one routed expert; 0: none
  double ops_per_row = 0;            // multiplies and adds of matmuls, int8
  double attention_ops_per_key = 0;  // for each row and cached position
  double kv_bytes_per_token = 0;
};

struct ModelCost {
  std::string name;
  std::int64_t d_model = 0;
  std::int64_t vocab = 0;
  std::int64_t n_experts = 0;
  std::int64_t n_active = 0;
  std::int64_t n_ctx_train = 0;
  LayerCost embed;
  LayerCost head;
  std::vector<LayerCost> layers;
  double scratch_bytes_fixed = 0;    // of a stage, whatever the rows of a step
  double scratch_bytes_per_row = 0;  // of a step
};

ModelCost model_cost(const model::ModelFile& model, const model::LoadOptions& options);

}  // namespace moesaic::cluster
