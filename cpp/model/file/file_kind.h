// GGUF files that people have beside a model and that are not one. Not for models of families that
// are not here: arch/registry.h.
#pragma once

#include "gguf/file.h"

namespace moesaic::model {

// Throws FormatError that says what the file is and what to do, for a LoRA adapter, a projector of
// images or sound, an importance matrix, a control vector and a vocabulary without weights.
void refuse_other_kinds(const gguf::File& file);

}  // namespace moesaic::model
