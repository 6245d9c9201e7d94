// Files of before April 2024 (the first Mixtral ones) hold each expert as a tensor of its own,
// blk.N.ffn_gate.E.weight. This shows such a file as one with the experts of a layer in one tensor,
// blk.N.ffn_gate_exps.weight, as the families know them. Their bytes cannot be mapped as one, so
// they are copied when they are first asked for: a model costs its experts' bytes of memory beside
// the page cache. Not for clusters, whose workers read ranges of the file itself.
#pragma once

#include <memory>

#include "gguf/file.h"

namespace moesaic::model {

// The file itself when it has no such tensors. Throws FormatError when experts of a layer differ in
// type or shape; gaps and counts are found by the family, which then lacks or does not know a
// tensor.
std::shared_ptr<const gguf::File> with_merged_experts(std::shared_ptr<const gguf::File> file);

}  // namespace moesaic::model
