// See slice_source.h. What it hands out is proven by whoever fetches it: its manifest knows all
// units.
#include "cluster/weights/slice_source.h"

#include <fcntl.h>

#include <utility>

#include "base/errors.h"

namespace moesaic::cluster {

SliceSource::SliceSource(FileOps& ops, const Content& content, std::string name)
    : ops_(ops), content_(content), name_(std::move(name)) {}

void SliceSource::add(const std::string& path) {
  try {
    Fd fd = open_file(ops_, path, O_RDONLY);
    std::optional<SliceInfo> info = read_any_slice_info(ops_, fd.get(), path, content_, name_);
    if (!info) return;
    UnitDigests claimed;
    for (std::size_t i = 0; i < info->digests.size(); ++i) {
      claimed.emplace(info->layout.units[i], info->digests[i]);
    }
    UnitDigests proven = proven_units(*info->layout.directory, content_, claimed);
    if (proven.empty()) return;
    slices_.push_back({path, std::move(fd), *std::move(info), std::move(proven)});
  } catch (const Error&) {  // found and set aside by whatever opens it as a slice
  }
}

std::optional<wire::Manifest> SliceSource::manifest(const wire::ManifestRequest& request,
                                                    const CancelFlag*) {
  if (request.identity != content_.identity || slices_.empty()) return std::nullopt;
  wire::Manifest manifest;
  manifest.identity = content_.identity;
  manifest.headers = content_.headers;
  manifest.name = request.name;
  for (const auto header : slices_[0].info.layout.directory->headers()) {
    manifest.header_bytes += header.size();
  }
  UnitDigests digests;
  for (const Slice& slice : slices_) digests.insert(slice.digests.begin(), slice.digests.end());
  for (const auto& [unit, digest] : digests) {
    manifest.units.push_back({unit.tensor, unit.expert, digest});
  }
  return manifest;
}

std::vector<std::uint8_t> SliceSource::fetch(const wire::BlobRequest& request,
                                             const CancelFlag* cancel) {
  if (cancel != nullptr) cancel->check();
  for (const Slice& slice : slices_) {
    const SlicePlace* place = slice.info.layout.find(request.tensor);
    if (place == nullptr || !slice.digests.contains({request.tensor, 0})) continue;
    if (request.offset > place->n_bytes || request.n_bytes > place->n_bytes - request.offset) {
      fail<ArgumentError>("[weights] ", slice.path, ": bytes ", request.offset, " + ",
                          request.n_bytes, " of a tensor of ", place->n_bytes);
    }
    std::vector<std::uint8_t> bytes(request.n_bytes);
    read_at(ops_, slice.fd.get(), bytes, place->offset + request.offset, slice.path);
    return bytes;
  }
  fail<IoError>("[weights] no slice of the cache has this tensor");
}

}  // namespace moesaic::cluster
