// Fetches what is missing of a slice from several sources at once, each unit proven as it arrives
// against a digest that the model's content proves. Not for where the bytes go: slice_target.h.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "cluster/weights/slice_target.h"
#include "cluster/weights/weight_store.h"

namespace moesaic::cluster {

// What each source that has the model knows of it.
struct SourceManifest {
  std::shared_ptr<BlobSource> source;
  wire::Manifest manifest;
};
struct Manifests {
  std::vector<SourceManifest> found;  // in order of the sources
  std::vector<std::string> failures;  // "10.0.0.2:9777: cannot be reached: ..."
};
// Called with what a source that makes its identity says: how far it is. From several threads.
using ManifestProgress = std::function<void(const BlobSource& source, const wire::Manifest& news)>;
// Asks all at once: for the content or, when it is not known, by name, and then until each source
// has made its identity. Manifests that contradict themselves count as failures. Throws
// CancelledError only.
Manifests ask_manifests(const std::vector<std::shared_ptr<BlobSource>>& sources,
                        const Content& content, const std::string& name, const CancelFlag* cancel,
                        const ManifestProgress& progress = nullptr);

// The directory, fetched from the first source that delivers headers with this digest (all zero:
// with the one that its manifest names). Adds the fetched bytes to *n_bytes. Throws IoError naming
// what each said.
std::shared_ptr<const gguf::File> pull_headers(const Manifests& manifests,
                                               const wire::Digest& headers, const std::string& name,
                                               const CancelFlag* cancel,
                                               std::atomic<std::uint64_t>* n_bytes);

struct PullJob {
  const SliceLayout* layout = nullptr;
  const Content* content = nullptr;
  SliceTarget* target = nullptr;
  std::vector<std::size_t> units;  // of the layout, to be fetched
  const Manifests* manifests = nullptr;
  const CancelFlag* cancel = nullptr;
  std::atomic<std::uint64_t>* n_bytes = nullptr;  // fetched, added to
  std::function<void()> progress;                 // on the calling thread, some times a second
};
// Until all units are there. Throws IoError when no source has a tensor, FormatError when what
// comes is not the content's, from all that have it and once more, what a source threw when all are
// lost, CancelledError.
void pull_units(const PullJob& job);

}  // namespace moesaic::cluster
