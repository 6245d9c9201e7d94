// A session on disk. Little endian, no padding:
//   magic "MOESESS1" | u32 version = 2 | u32 n_identity | u64 n_tokens | u64 n_kv_bytes
//   | identity (n_identity bytes) | tokens i32 (n_tokens) | KV (n_kv_bytes; canonical order: layer,
//   token) | SHA-256 of all before it (32 bytes)
// Nothing is allocated from a claimed size before it was held against the file's real one and the
// model's.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "engine/engine.h"

namespace moesaic::engine {

// Writes to a temporary name beside `path`, syncs, renames: a file that is there is whole. Throws
// IoError.
void write_session(const std::string& path, const std::string& identity,
                   const Engine::SavedSession& session, const CancelFlag* cancel = nullptr);

// Throws IoError when the system refuses, FormatError when the content is not a whole session of a
// model with these facts.
Engine::SavedSession read_session(const std::string& path, const EngineFacts& facts,
                                  const CancelFlag* cancel = nullptr);

}  // namespace moesaic::engine
