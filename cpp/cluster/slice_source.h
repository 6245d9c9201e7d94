// The slices of a model that are in the cache, as a source for another slice that shares tensors
// with them: after a new plan only what is new comes over the net.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cluster/slice_file.h"
#include "cluster/weight_store.h"

namespace moesaic::cluster {

class SliceSource final : public BlobSource {
 public:
  SliceSource(FileOps& ops, const wire::Digest& identity, std::string name);
  // Does nothing for a file that is no slice of the model, or is damaged.
  void add(const std::string& path);
  bool empty() const { return slices_.empty(); }

  std::string name() const override { return "the cache"; }
  std::optional<wire::Manifest> manifest(const wire::Digest& identity, const std::string& name,
                                         bool want_header, const CancelFlag* cancel) override;
  std::vector<std::uint8_t> fetch(const wire::BlobRequest& request,
                                  const CancelFlag* cancel) override;

 private:
  struct Slice {
    std::string path;
    Fd fd;
    SliceInfo info;
  };
  FileOps& ops_;
  const wire::Digest identity_;
  const std::string name_;
  std::vector<Slice> slices_;
};

}  // namespace moesaic::cluster
