// See held_slices.h.
#include "cluster/weights/held_slices.h"

#include <algorithm>

#include "base/digest.h"

namespace moesaic::cluster {

bool operator==(const SliceKey& a, const SliceKey& b) {
  return a.identity == b.identity && a.slice.layer_begin == b.slice.layer_begin &&
         a.slice.layer_end == b.slice.layer_end && a.slice.embed == b.slice.embed &&
         a.slice.head == b.slice.head && a.deterministic == b.deterministic &&
         a.overrides == b.overrides;
}

std::shared_ptr<HeldSlice> HeldSlices::find(const SliceKey& key) {
  const std::scoped_lock lock(mutex_);
  const auto found = std::find_if(slices_.begin(), slices_.end(),
                                  [&](const auto& each) { return each->key == key; });
  if (found == slices_.end()) return nullptr;
  std::rotate(found, found + 1, slices_.end());
  return slices_.back();
}

void HeldSlices::add(std::shared_ptr<HeldSlice> slice) {
  const std::scoped_lock lock(mutex_);
  slices_.push_back(std::move(slice));
}

void HeldSlices::remove(const std::shared_ptr<HeldSlice>& slice) {
  const std::scoped_lock lock(mutex_);
  std::erase(slices_, slice);
}

std::uint64_t HeldSlices::shrink(std::uint64_t most, const SliceKey& keep) {
  std::vector<std::shared_ptr<HeldSlice>> gone;  // unmapped after the lock
  const std::scoped_lock lock(mutex_);
  for (auto it = slices_.begin(); it != slices_.end() && n_bytes_locked() > most;) {
    if (it->use_count() > 1 || (*it)->key == keep) {
      ++it;
      continue;
    }
    gone.push_back(std::move(*it));
    it = slices_.erase(it);
  }
  return n_bytes_locked();
}

void HeldSlices::drop(const std::string& model) {
  std::vector<std::shared_ptr<HeldSlice>> gone;  // unmapped after the lock
  const std::scoped_lock lock(mutex_);
  for (auto it = slices_.begin(); it != slices_.end();) {
    const HeldSlice& slice = **it;
    const bool meant = model.empty() || slice.name == model || to_hex(slice.key.identity) == model;
    if (!meant || it->use_count() > 1) {
      ++it;
      continue;
    }
    gone.push_back(std::move(*it));
    it = slices_.erase(it);
  }
}

std::vector<std::shared_ptr<HeldSlice>> HeldSlices::all() const {
  const std::scoped_lock lock(mutex_);
  return slices_;
}

std::uint64_t HeldSlices::n_bytes() const {
  const std::scoped_lock lock(mutex_);
  return n_bytes_locked();
}

std::uint64_t HeldSlices::n_bytes_locked() const {
  std::uint64_t sum = 0;
  for (const auto& slice : slices_) sum += slice->bytes.mapped + slice->bytes.derived;
  return sum;
}

}  // namespace moesaic::cluster
