// Makes the digests of units as they lie in files, with several threads. Reads by pread and not
// through a mapping, so that a failing disk is an error and not a signal; what was read stays in
// the page cache for whoever maps it next. Not for remembering them: digest_book.h.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "cluster/weights/file_ops.h"
#include "cluster/weights/weight_units.h"

namespace moesaic::cluster {

struct HashPiece {
  std::size_t file = 0;  // index into paths
  std::uint64_t offset = 0;
  std::uint64_t n_bytes = 0;
};

struct HashJob {
  std::vector<std::string> paths;
  std::vector<HashPiece> pieces;
  const CancelFlag* cancel = nullptr;
  std::function<void(std::uint64_t done_bytes)> progress;  // on the calling thread
};

// The digest of each piece. Throws FileError, CancelledError (within some 10 ms).
std::vector<wire::Digest> hash_units(const HashJob& job, FileOps& ops);

}  // namespace moesaic::cluster
