// The slices of models that a worker holds in memory: kept between coordinators, shared by
// deployments, given up for others when memory is short. Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "cluster/weights/identify.h"
#include "model/arch/model_file.h"
#include "model/run/weights.h"
#include "wire/messages.h"

namespace moesaic::cluster {

// What distinguishes one held slice from another.
struct SliceKey {
  wire::Digest identity{};  // of the model's content
  model::Slice slice;
  bool deterministic = false;  // without the weights of the decompressed form
  std::string overrides;       // of the file's keys, model::text_of()
};
bool operator==(const SliceKey& a, const SliceKey& b);

struct HeldSlice {
  SliceKey key;
  std::string name;                // of the file
  std::string source;              // "local copy", "cache", ...
  std::vector<std::string> paths;  // the files that it is mapped from; in memory: none
  FileStates states;               // of these, when they were proven
  model::ModelFile model;
  std::unique_ptr<backend::Backend> backend;
  model::ModelWeights weights;
  model::WeightBytes bytes;

  // Throws FormatError naming a file that is no longer what was proven: its mapping may show other
  // weights now.
  void check_files() const { check_mapped(paths, states); }
};

class HeldSlices {
 public:
  std::shared_ptr<HeldSlice> find(const SliceKey& key);  // null when it is not held
  void add(std::shared_ptr<HeldSlice> slice);
  // No later load gets it; deployments that use it keep it.
  void remove(const std::shared_ptr<HeldSlice>& slice);
  // Lets go slices that nobody uses, those used longest ago first, until all together are at most
  // `most` bytes; `keep` stays. Returns what is held then.
  std::uint64_t shrink(std::uint64_t most, const SliceKey& keep);
  // Lets go unused slices of a model, by its file's name or its identity in hex; of all
  // models when it is empty.
  void drop(const std::string& model);
  std::vector<std::shared_ptr<HeldSlice>> all() const;
  std::uint64_t n_bytes() const;

 private:
  std::uint64_t n_bytes_locked() const;

  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<HeldSlice>> slices_;  // the one used last at the end
};

}  // namespace moesaic::cluster
