// What the files are that a coordinator deploys: read on this machine, or as workers say. Not for
// finding files. Thread-safe.
#pragma once

#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "cluster/weights/content.h"
#include "cluster/weights/identify.h"
#include "cluster/weights/slice_pull.h"
#include "cluster/weights/weight_store.h"

namespace moesaic::cluster {

// What the workers' files of a name are, when all of them agree; a slice that outlived its file
// counts where there is no file. Throws IoError when there is none, FormatError naming two that
// differ.
Content agreed_content(const Manifests& manifests, const std::string& name);

bool has_weights(const gguf::File& file);  // or only headers

class KnownContents {
 public:
  void remember(const std::shared_ptr<const gguf::File>& file, const Content& content);
  // Of a file on this machine, all that no digest is remembered of is read. Throws ArgumentError
  // for headers that no worker has sent.
  Content identify(const std::shared_ptr<const gguf::File>& file, WeightStore& store,
                   const ReadOptions& options);
  // In hex; "": not known.
  std::string fingerprint(const std::shared_ptr<const gguf::File>& file) const;

 private:
  Content find(const std::shared_ptr<const gguf::File>& file) const;

  mutable std::mutex mutex_;
  std::vector<std::pair<std::weak_ptr<const gguf::File>, Content>> contents_;
};

}  // namespace moesaic::cluster
