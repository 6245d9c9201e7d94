// The name of a model: a digest of its metadata and tensor directory, the same for a file and its
// split set. Not of the weights' bytes: reading them would take minutes.
#pragma once

#include <string>

#include "backend/backend.h"
#include "gguf/file.h"

namespace moesaic::model {

// SHA-256 in hex over every key but split.* and the alignment, every tensor's name, type and shape,
// and the type of the cache.
std::string identity_of(const gguf::File& file, backend::KvType kv_type);

}  // namespace moesaic::model
