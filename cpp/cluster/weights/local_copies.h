// People's own copies of models in a folder: found by name, chosen by their headers, proven by the
// digests of their units. Not for slices of the cache: slice_cache.h.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cluster/weights/digest_book.h"
#include "cluster/weights/identify.h"
#include "cluster/weights/weight_store.h"

namespace moesaic::cluster {

class LocalCopies {
 public:
  using Log = std::function<void(const std::string& event, const std::string& text)>;
  // folder empty: there are none. n_read: where bytes read for digests are counted.
  LocalCopies(std::string folder, FileOps& ops, DigestBook& book, Log log,
              std::atomic<std::uint64_t>& n_read);

  // The files of this name whose headers are these (all zero: any). They may hold other weights.
  std::vector<LocalFile> find(const wire::Digest& headers, const std::string& name) const;

  // Makes the digests of the slice's units that the policy asks for, remembers them, and holds all
  // of them against the content that is asked for. Adds what was read to *n_read. Throws
  // FormatError naming the first tensor that differs, IoError when the file cannot be read or is no
  // longer what it was.
  void prove(const OpenSlice& request, const LocalFile& local, std::uint64_t* n_read);

 private:
  std::string folder_;
  FileOps& ops_;
  DigestBook& book_;
  Log log_;
  std::atomic<std::uint64_t>& n_read_;
};

}  // namespace moesaic::cluster
