// A GGUF file understood as a model: its family, its configuration, and the tensors of every layer,
// all checked against each other. Costs milliseconds and touches no weight. Not for loading.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gguf/file.h"
#include "model/config.h"
#include "model/file/overrides.h"
#include "model/file/tensor_list.h"

namespace moesaic::model {

struct ModelFile {
  std::shared_ptr<const gguf::File> file;
  Config config;
  TensorSpec token_embd;   // (vocab, d_model)
  TensorSpec output_norm;  // (d_model)
  TensorSpec output;       // (vocab, d_model); token_embd's when tied
  bool tied_output = false;
  std::vector<std::vector<TensorSpec>> layers;  // (n_layers)
};

// Tensors whose values understand() reads: they must be there in a file that has no weights.
std::vector<std::string> tensors_to_understand(const gguf::File& file);

// Throws FormatError naming file, key or tensor, what it got and what it needed; ArgumentError
// naming the overrides when it is them that do not fit. ModelFile.file has the overridden metadata.
ModelFile understand(std::shared_ptr<const gguf::File> file, const Overrides& overrides = {});

}  // namespace moesaic::model
