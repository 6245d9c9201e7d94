// The weights of a slice of a model: layers [layer_begin, layer_end), the embedding, the head. They
// stay in the file's mapping (or wherever the backend keeps them); only what must be computed takes
// memory of its own.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "backend/backend.h"
#include "base/cancel.h"
#include "model/arch/model_file.h"
#include "model/slice.h"

namespace moesaic::model {

struct ModelWeights {
  WeightPtr token_embd;   // (vocab, d_model), with embed
  WeightPtr output_norm;  // (d_model), with head
  WeightPtr output;       // (vocab, d_model), with head; null when tied and embedded here
  std::vector<LayerWeights> layers;  // of the slice

  const backend::Weight* head() const { return output ? output.get() : token_embd.get(); }
};

struct WeightOptions {
  bool decompressed_mla = true;  // also the weights of that form
  bool prefault = true;          // read everything now, so that the first step does not
  std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes)> progress;
  const CancelFlag* cancel = nullptr;
};

struct WeightBytes {
  std::uint64_t mapped = 0;
  std::uint64_t derived = 0;
};

// What load_weights will take, from the directory alone.
WeightBytes weight_bytes(const ModelFile& model, const Slice& slice, bool decompressed_mla);

// The tensors that a slice is loaded from, each once, in file order.
std::vector<const gguf::TensorInfo*> slice_tensors(const ModelFile& model, const Slice& slice);

// Throws CancelledError within a second of the flag being set.
ModelWeights load_weights(backend::Backend& backend, const ModelFile& model, const Slice& slice,
                          const WeightOptions& options);

}  // namespace moesaic::model
