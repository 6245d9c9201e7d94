// People's own copies of models in a folder: found by name, known by their headers, proven by the
// digests of their units. Not for slices of the cache: slice_cache.h.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cluster/digest_book.h"
#include "cluster/slice_pull.h"
#include "cluster/weight_store.h"

namespace moesaic::cluster {

struct LocalFile {
  std::shared_ptr<const gguf::File> file;
  std::vector<std::string> paths;
  FileStates states;
  wire::Digest identity{};
};

class LocalCopies {
 public:
  using Log = std::function<void(const std::string& event, const std::string& text)>;
  // folder empty: there are none. n_read: where bytes read for digests are counted.
  LocalCopies(std::string folder, FileOps& ops, DigestBook& book, Log log,
              std::atomic<std::uint64_t>& n_read);

  // The first file of this name whose headers give the identity (zero: the first that is one).
  std::optional<LocalFile> find(const wire::Digest& identity, const std::string& name) const;

  // Makes the digests of the slice's units that the policy asks for, compares them with those that
  // are remembered and with what the sources know, and remembers them. Adds what was read to
  // *n_read. Throws FormatError when a source knows others, IoError when the file cannot be read
  // or is no longer what it was.
  void prove(const OpenSlice& request, const LocalFile& local, std::uint64_t* n_read);

 private:
  UnitDigests hash(const OpenSlice& request, const LocalFile& local,
                   const std::vector<UnitKey>& units, std::uint64_t* n_read);

  std::string folder_;
  FileOps& ops_;
  DigestBook& book_;
  Log log_;
  std::atomic<std::uint64_t>& n_read_;
};

}  // namespace moesaic::cluster
