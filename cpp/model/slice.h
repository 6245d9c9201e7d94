// Which part of a model: what a stage of a cluster holds and runs.
#pragma once

#include <cstdint>

#include "model/config.h"

namespace moesaic::model {

// Layers [layer_begin, layer_end), the embedding, the head.
struct Slice {
  std::int64_t layer_begin = 0;
  std::int64_t layer_end = 0;
  bool embed = false;  // takes tokens, else hidden rows
  bool head = false;   // final norm and logits

  std::int64_t n_layers() const { return layer_end - layer_begin; }
  static Slice whole(const Config& config) { return {0, config.n_layers, true, true}; }
};

}  // namespace moesaic::model
