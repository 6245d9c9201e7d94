// Keys of an architecture that change what a model computes and that no family here implements.
// Not for keys that a family reads: arch/.
#pragma once

#include "model/config.h"
#include "model/file/keys.h"

namespace moesaic::model {

// Throws FormatError naming the key, its value and what it would change, where the value is not one
// that changes nothing. Without this the file would load and give other numbers than it should.
void refuse_unsupported_keys(const Keys& keys, const Config& config);

}  // namespace moesaic::model
