// The shape of a model: a digest of its metadata and tensor directory, the same for a file and its
// split set. Not of the weights' bytes, which take minutes to read: cluster/weights/content.h.
#pragma once

#include <string>

#include "backend/backend.h"
#include "base/digest.h"
#include "gguf/file.h"
#include "model/file/overrides.h"

namespace moesaic::model {

// SHA-256 over every key but split.* and the alignment, every tensor's name, type and shape: the
// same for a file and its split set. Not of the weights' bytes.
Sha256Digest header_digest(const gguf::File& file);
// What a model is whose weights have the given identity, in hex, and which is loaded with
// overrides: the same where they change nothing.
std::string overridden_identity(const std::string& content, const gguf::File& file,
                                const Overrides& overrides);
// The headers' digest with the type of the cache, in hex.
std::string identity_of(const gguf::File& file, backend::KvType kv_type);

}  // namespace moesaic::model
