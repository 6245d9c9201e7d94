// The slices that are in the cache, as a source for another slice that shares tensors with them:
// after a new plan, or from a model to its fine-tune, only what is new comes over the net.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cluster/weights/slice_file.h"
#include "cluster/weights/weight_store.h"

namespace moesaic::cluster {

class SliceSource final : public BlobSource {
 public:
  SliceSource(FileOps& ops, const Content& content, std::string name);
  // Does nothing for a file that is damaged, or has no tensor of the content.
  void add(const std::string& path);
  bool empty() const { return slices_.empty(); }

  std::string name() const override { return "the cache"; }
  std::optional<wire::Manifest> manifest(const wire::ManifestRequest& request,
                                         const CancelFlag* cancel) override;
  std::vector<std::uint8_t> fetch(const wire::BlobRequest& request,
                                  const CancelFlag* cancel) override;

 private:
  struct Slice {
    std::string path;
    Fd fd;
    SliceInfo info;
    UnitDigests digests;  // proven ones
  };
  FileOps& ops_;
  const Content content_;
  const std::string name_;
  std::vector<Slice> slices_;
};

}  // namespace moesaic::cluster
