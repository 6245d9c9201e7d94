// The shape of a model: a digest of its metadata and tensor directory, the same for a file and its
// split set. Not of the weights' bytes, which take minutes to read: cluster/weights/content.h.
#pragma once

#include <string>

#include "backend/backend.h"
#include "base/digest.h"
#include "gguf/file.h"

namespace moesaic::model {

// SHA-256 over every key but split.* and the alignment, every tensor's name, type and shape: the
// same for a file and its split set. Not of the weights' bytes.
Sha256Digest header_digest(const gguf::File& file);
// The same with the type of the cache, in hex.
std::string identity_of(const gguf::File& file, backend::KvType kv_type);

}  // namespace moesaic::model
