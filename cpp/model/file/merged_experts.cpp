// A file whose single experts are seen as one tensor a layer; see merged_experts.h.
#include "model/file/merged_experts.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/aligned_buffer.h"
#include "base/errors.h"

namespace moesaic::model {
namespace {

// "blk.3.ffn_gate.0.weight" without its "0.weight", or "" for a tensor that is no first expert.
std::string_view stem_of(std::string_view name) {
  constexpr std::array<std::string_view, 3> kFirst{".ffn_gate.0.weight", ".ffn_up.0.weight",
                                                   ".ffn_down.0.weight"};
  if (!name.starts_with("blk.")) return {};
  for (const std::string_view end : kFirst) {
    if (name.ends_with(end))
      return name.substr(0, name.size() - std::string_view("0.weight").size());
  }
  return {};
}

// Experts of one layer's matrices as one tensor.
struct Merged {
  std::vector<const gguf::TensorInfo*> parts;  // in expert order
  AlignedBuffer bytes;                         // empty until they are asked for
};

class MergedFile final : public gguf::File {
 public:
  // The directory: every tensor but the parts, with each merged one where its first part was.
  explicit MergedFile(std::shared_ptr<const gguf::File> file) : file_(std::move(file)) {
    for (const gguf::TensorInfo& tensor : file_->tensors()) {
      const std::string_view stem = stem_of(tensor.name);
      if (!stem.empty()) merge(tensor, stem);
    }
    if (merged_.empty()) return;
    for (const gguf::TensorInfo& tensor : file_->tensors()) {
      const auto part = part_of_.find(&tensor);
      if (part == part_of_.end()) {
        tensors_.push_back(tensor);
      } else if (merged_.at(part->second).parts.front() == &tensor) {
        tensors_.push_back(merged_info(part->second));
      }
    }
    for (const gguf::TensorInfo& tensor : tensors_) by_name_.emplace(tensor.name, &tensor);
  }

  bool empty() const { return merged_.empty(); }

  std::uint32_t version() const override { return file_->version(); }
  std::uint64_t alignment() const override { return file_->alignment(); }
  std::span<const gguf::Value> metadata() const override { return file_->metadata(); }
  std::span<const gguf::TensorInfo> tensors() const override { return tensors_; }
  std::span<const std::string> paths() const override { return file_->paths(); }
  std::span<const std::span<const std::uint8_t>> headers() const override {
    return file_->headers();
  }
  void check_intact() const override { file_->check_intact(); }
  std::vector<int> descriptors() const override { return file_->descriptors(); }
  const gguf::Value* find(std::string_view key) const override { return file_->find(key); }

  const gguf::TensorInfo* find_tensor(std::string_view name) const override {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : found->second;
  }

  // Callers may pass a copy of the directory's entry: the name says which it is.
  std::span<const std::uint8_t> bytes(const gguf::TensorInfo& tensor) const override {
    const auto found = merged_.find(tensor.name);
    if (found == merged_.end()) return file_->bytes(tensor);
    Merged& merged = found->second;
    const std::scoped_lock lock(mutex_);
    if (merged.bytes.size() == 0) {
      AlignedBuffer all(merged.parts.size() * static_cast<std::size_t>(merged.parts[0]->n_bytes));
      std::size_t at = 0;
      for (const gguf::TensorInfo* part : merged.parts) {
        const std::span<const std::uint8_t> from = file_->bytes(*part);
        std::memcpy(all.data() + at, from.data(), from.size());
        at += from.size();
      }
      merged.bytes = std::move(all);
    }
    return {merged.bytes.data(), merged.bytes.size()};
  }

 private:
  void merge(const gguf::TensorInfo& first, std::string_view stem) {
    // "blk.3.ffn_gate." -> "blk.3.ffn_gate_exps.weight"
    std::string name = strcat(stem.substr(0, stem.size() - 1), "_exps.weight");
    // Both, or no matrices: the family refuses what is left.
    if (file_->find_tensor(name) != nullptr || first.ne.size() > 2) return;
    Merged merged;
    while (const gguf::TensorInfo* part =
               file_->find_tensor(strcat(stem, merged.parts.size(), ".weight"))) {
      if (part->type != first.type || part->ne != first.ne) {
        fail<FormatError>("[model] ", file_->paths().empty() ? "" : file_->paths().front(),
                          ": tensor ", part->name, ": its type or shape is not that of ",
                          first.name, ", need all experts of a layer alike");
      }
      merged.parts.push_back(part);
    }
    for (const gguf::TensorInfo* part : merged.parts) part_of_.emplace(part, name);
    merged_.emplace(std::move(name), std::move(merged));
  }

  gguf::TensorInfo merged_info(const std::string& name) const {
    const Merged& merged = merged_.at(name);
    const std::uint64_t n_experts = merged.parts.size();
    gguf::TensorInfo info = *merged.parts.front();
    info.name = name;
    info.ne.resize(2, 1);
    info.ne.push_back(n_experts);
    info.n_bytes *= n_experts;
    info.n_elems *= n_experts;
    return info;
  }

  std::shared_ptr<const gguf::File> file_;
  mutable std::map<std::string, Merged, std::less<>> merged_;  // by name
  std::map<const gguf::TensorInfo*, std::string> part_of_;     // the merged tensor's name
  std::vector<gguf::TensorInfo> tensors_;
  std::map<std::string_view, const gguf::TensorInfo*> by_name_;  // into tensors_
  mutable std::mutex mutex_;                                     // of the bytes in merged_
};

}  // namespace

std::shared_ptr<const gguf::File> with_merged_experts(std::shared_ptr<const gguf::File> file) {
  auto merged = std::make_shared<const MergedFile>(file);
  if (merged->empty()) return file;
  return merged;
}

}  // namespace moesaic::model
