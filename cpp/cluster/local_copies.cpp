// See local_copies.h.
#include "cluster/local_copies.h"

#include <future>
#include <utility>

#include "base/digest.h"
#include "base/errors.h"
#include "cluster/hash_units.h"
#include "cluster/local_files.h"

namespace moesaic::cluster {
namespace {

void compare(const LocalFile& local, const UnitDigests& made, const Manifests& others) {
  for (const SourceManifest& other : others.found) {
    for (const wire::UnitDigest& theirs : other.manifest.units) {
      const auto ours = made.find({theirs.tensor, theirs.expert});
      if (ours == made.end() || ours->second == theirs.sha256) continue;
      fail<FormatError>("[weights] ", local.paths[0], ": ", unit_name(*local.file, ours->first),
                        " differs from the same on ", other.source->name(),
                        ": one of the two files is damaged; compare their SHA-256 sums and "
                        "replace the bad one");
    }
  }
}

}  // namespace

LocalCopies::LocalCopies(std::string folder, FileOps& ops, DigestBook& book, Log log,
                         std::atomic<std::uint64_t>& n_read)
    : folder_(std::move(folder)), ops_(ops), book_(book), log_(std::move(log)), n_read_(n_read) {}

std::optional<LocalFile> LocalCopies::find(const wire::Digest& identity,
                                           const std::string& name) const {
  for (const std::string& path : files_named(folder_, name)) {
    try {
      LocalFile local;
      local.file = gguf::File::open(path);
      local.paths.assign(local.file->paths().begin(), local.file->paths().end());
      // Opened between two looks that agree: what is mapped is what the states are of.
      local.states = file_states(local.paths);
      local.file = gguf::File::open(path);
      if (file_states(local.paths) != local.states) fail<IoError>("it changes at this moment");
      local.identity = header_identity(*local.file);
      if (identity == wire::Digest{} || identity == local.identity) return local;
      log_("local",
           strcat(path, ": another file of this name, not used: its headers have identity ",
                  to_hex(local.identity).substr(0, 12), ", asked for is ",
                  to_hex(identity).substr(0, 12)));
    } catch (const Error& error) {
      log_("local", strcat(path, ": not used: ", error.what()));
    }
  }
  return std::nullopt;
}

void LocalCopies::prove(const OpenSlice& request, const LocalFile& local, std::uint64_t* n_read) {
  const auto tensors = tensor_indices(*local.file, request.tensors);
  const std::vector<UnitKey> wanted = units_of(*local.file, tensors);
  const UnitDigests known = book_.find(local.states);
  if (request.digests == wire::DigestPolicy::kNever) return;
  const std::vector<UnitKey> units =
      request.digests == wire::DigestPolicy::kAlways ? wanted : unknown_units(wanted, known);
  if (units.empty()) return;
  std::future<Manifests> others = std::async(std::launch::async, [&] {
    return ask_manifests(request.sources, local.identity, request.name, request.cancel);
  });
  const UnitDigests made = hash(request, local, units, n_read);
  for (const auto& [unit, digest] : made) {
    const auto before = known.find(unit);
    if (before != known.end() && before->second != digest) {
      book_.forget(local.states);
      fail<IoError>(unit_name(*local.file, unit),
                    ": its bytes have changed though the file's times have not: the disk or the "
                    "memory is failing");
    }
  }
  compare(local, made, others.get());
  book_.add(local.states, made);
}

UnitDigests LocalCopies::hash(const OpenSlice& request, const LocalFile& local,
                              const std::vector<UnitKey>& units, std::uint64_t* n_read) {
  let_stamps_settle(local.states);
  HashJob job;
  job.paths = local.paths;
  job.cancel = request.cancel;
  std::uint64_t total = 0;
  for (const UnitKey& unit : units) {
    const gguf::TensorInfo& tensor = local.file->tensors()[unit.tensor];
    const std::uint64_t n = unit_bytes(tensor);
    job.pieces.push_back(
        {static_cast<std::size_t>(tensor.file), tensor.offset + unit.expert * n, n});
    total += n;
  }
  job.progress = [&](std::uint64_t done) {
    n_read_ += done - *n_read;
    *n_read = done;
    if (request.progress) request.progress(done, total, "verify");
  };
  const std::vector<wire::Digest> digests = hash_units(job, ops_);
  if (file_states(job.paths) != local.states) {
    fail<IoError>("[weights] ", local.paths[0], ": changed while it was read");
  }
  UnitDigests made;
  for (std::size_t i = 0; i < units.size(); ++i) made[units[i]] = digests[i];
  return made;
}

}  // namespace moesaic::cluster
