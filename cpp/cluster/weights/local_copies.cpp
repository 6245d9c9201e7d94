// See local_copies.h.
#include "cluster/weights/local_copies.h"

#include <utility>

#include "base/digest.h"
#include "base/errors.h"
#include "cluster/weights/local_files.h"

namespace moesaic::cluster {
namespace {

// Every tensor of the slice against the content. The digests are of all its units.
void compare(const OpenSlice& request, const LocalFile& local,
             const std::vector<std::uint32_t>& tensors, const UnitDigests& digests) {
  for (const std::uint32_t tensor : tensors) {
    if (prove_tensor(*local.file, request.content, tensor, digests) == Proof::kGood) continue;
    fail<FormatError>(
        "[weights] ", local.paths[static_cast<std::size_t>(local.file->tensors()[tensor].file)],
        ": other weights under equal headers: its ", local.file->tensors()[tensor].name,
        " is not that of the model that is asked for (fingerprint ",
        short_hex(request.content.identity), "); compare the SHA-256 sums of the two files");
  }
}

}  // namespace

LocalCopies::LocalCopies(std::string folder, FileOps& ops, DigestBook& book, Log log,
                         std::atomic<std::uint64_t>& n_read)
    : folder_(std::move(folder)), ops_(ops), book_(book), log_(std::move(log)), n_read_(n_read) {}

std::vector<LocalFile> LocalCopies::find(const wire::Digest& headers,
                                         const std::string& name) const {
  std::vector<LocalFile> found;
  for (const std::string& path : files_named(folder_, name)) {
    try {
      LocalFile local = open_local_file(path);
      if (headers == wire::Digest{} || headers == local.headers) {
        found.push_back(std::move(local));
        continue;
      }
      log_("local", strcat(path, ": another file of this name, not used: its headers have digest ",
                           short_hex(local.headers), ", asked for is ", short_hex(headers)));
    } catch (const Error& error) {
      log_("local", strcat(path, ": not used: ", error.what()));
    }
  }
  return found;
}

void LocalCopies::prove(const OpenSlice& request, const LocalFile& local, std::uint64_t* n_read) {
  const auto tensors = tensor_indices(*local.file, request.tensors);
  const std::vector<UnitKey> wanted = units_of(*local.file, tensors);
  UnitDigests known = book_.find(local.states);
  // kNever spares reading what has been proven once. What has never been read could be anything.
  const std::vector<UnitKey> units =
      request.digests == wire::DigestPolicy::kAlways ? wanted : unknown_units(wanted, known);
  if (!units.empty()) {
    ReadOptions options;
    options.cancel = request.cancel;
    options.progress = [&, before = *n_read](std::uint64_t done, std::uint64_t total) {
      n_read_ += before + done - *n_read;
      *n_read = before + done;
      if (request.progress) request.progress(done, total, "verify");
    };
    const UnitDigests made = read_digests(local, units, ops_, options);
    for (const auto& [unit, digest] : made) {
      const auto before = known.find(unit);
      if (before != known.end() && before->second != digest) {
        book_.forget(local.states);
        fail<IoError>("[weights] ", local.paths[0], ": ", unit_name(*local.file, unit),
                      ": its bytes have changed though the file's times have not: the disk or the "
                      "memory is failing");
      }
    }
    book_.add(local.states, made);
    known.insert(made.begin(), made.end());
  }
  compare(request, local, tensors, known);
}

}  // namespace moesaic::cluster
