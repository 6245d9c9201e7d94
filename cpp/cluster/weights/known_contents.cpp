// See known_contents.h.
#include "cluster/weights/known_contents.h"

#include <algorithm>

#include "base/digest.h"
#include "base/errors.h"

namespace moesaic::cluster {

// What the workers' files of a name are, when all of them agree; a slice that outlived its file
// counts where there is no file.
Content agreed_content(const Manifests& manifests, const std::string& name) {
  const SourceManifest* first = nullptr;
  const bool any_file =
      std::any_of(manifests.found.begin(), manifests.found.end(),
                  [](const SourceManifest& found) { return found.manifest.is_file; });
  for (const SourceManifest& found : manifests.found) {
    if (any_file && !found.manifest.is_file) continue;
    if (first == nullptr) {
      first = &found;
    } else if (found.manifest.identity != first->manifest.identity) {
      fail<FormatError>("[Cluster.load] ", name,
                        ": the workers have different models of this name: ", first->source->name(),
                        " has the one with fingerprint ", short_hex(first->manifest.identity), ", ",
                        found.source->name(), " has ", short_hex(found.manifest.identity),
                        "; make the copies equal, or give the path of one on this machine");
    }
  }
  if (first == nullptr) {
    std::string said;
    for (const std::string& failure : manifests.failures) said += strcat("; ", failure);
    fail<IoError>("[Cluster.load] ", name,
                  ": no such file here, and no worker has it under its --models folder; copy it to "
                  "one of them, or give a path on this machine",
                  said);
  }
  return {first->manifest.identity, first->manifest.headers, first->manifest.tensors};
}

bool has_weights(const gguf::File& file) {
  try {
    for (const gguf::TensorInfo& tensor : file.tensors()) file.bytes(tensor);
    return !file.tensors().empty();
  } catch (const Error&) {
    return false;
  }
}

void KnownContents::remember(const std::shared_ptr<const gguf::File>& file,
                             const Content& content) {
  const std::lock_guard lock(mutex_);
  std::erase_if(contents_, [&](const auto& each) {
    return each.first.expired() || each.first.lock() == file;
  });
  contents_.emplace_back(file, content);
}

Content KnownContents::find(const std::shared_ptr<const gguf::File>& file) const {
  const std::lock_guard lock(mutex_);
  for (const auto& [known, content] : contents_) {
    if (known.lock() == file) return content;
  }
  return {};
}

Content KnownContents::identify(const std::shared_ptr<const gguf::File>& file, WeightStore& store,
                                const ReadOptions& options) {
  if (has_weights(*file)) {
    const Content content = store.identify(file, options);
    remember(file, content);
    return content;
  }
  Content content = find(file);
  if (content.is_known()) return content;
  fail<ArgumentError>(
      "[Cluster.load] a file without weights, which this cluster's workers did not "
      "send; load it by its name");
}

std::string KnownContents::fingerprint(const std::shared_ptr<const gguf::File>& file) const {
  const Content content = find(file);
  return content.is_known() ? to_hex(content.identity) : "";
}

}  // namespace moesaic::cluster
