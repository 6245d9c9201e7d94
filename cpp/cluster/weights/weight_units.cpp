// See weight_units.h.
#include "cluster/weights/weight_units.h"

#include <algorithm>
#include <numeric>

#include "base/digest.h"
#include "base/errors.h"

namespace moesaic::cluster {
namespace {

void hash_number(Sha256& sha, std::uint64_t value) {
  std::uint8_t bytes[8];
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<std::uint8_t>(value >> (8 * i));
  sha.update(bytes, sizeof bytes);
}

}  // namespace

std::uint32_t n_units(const gguf::TensorInfo& tensor) {
  std::uint64_t n_matrices = 1;
  for (std::size_t i = 2; i < tensor.ne.size(); ++i) n_matrices *= tensor.ne[i];
  const bool worth_it =
      n_matrices > 1 && n_matrices <= UINT32_MAX && tensor.n_bytes / n_matrices >= kLeastUnitBytes;
  return worth_it ? static_cast<std::uint32_t>(n_matrices) : 1;
}

std::uint64_t unit_bytes(const gguf::TensorInfo& tensor) {
  return tensor.n_bytes / n_units(tensor);
}

std::vector<std::uint32_t> tensor_indices(const gguf::File& file,
                                          const std::vector<std::string>& names) {
  std::vector<std::uint32_t> indices;
  indices.reserve(names.size());
  for (const std::string& name : names) {
    const gguf::TensorInfo* tensor = file.find_tensor(name);
    if (tensor == nullptr) {
      fail<FormatError>("[weights] ", file.paths()[0], ": no tensor '", name,
                        "', which the slice needs; is it another model's file?");
    }
    indices.push_back(static_cast<std::uint32_t>(tensor - file.tensors().data()));
  }
  std::sort(indices.begin(), indices.end());
  indices.erase(std::unique(indices.begin(), indices.end()), indices.end());
  return indices;
}

std::vector<UnitKey> units_of(const gguf::File& file, const std::vector<std::uint32_t>& tensors) {
  std::vector<UnitKey> units;
  for (const std::uint32_t tensor : tensors) {
    const std::uint32_t n = n_units(file.tensors()[tensor]);
    for (std::uint32_t expert = 0; expert < n; ++expert) units.push_back({tensor, expert});
  }
  return units;
}

std::vector<UnitKey> all_units(const gguf::File& file) {
  std::vector<std::uint32_t> tensors(file.tensors().size());
  std::iota(tensors.begin(), tensors.end(), 0U);
  return units_of(file, tensors);
}

std::string unit_name(const gguf::File& file, const UnitKey& unit) {
  const gguf::TensorInfo& tensor = file.tensors()[unit.tensor];
  return n_units(tensor) == 1 ? tensor.name : strcat(tensor.name, ", expert ", unit.expert);
}

std::vector<UnitKey> unknown_units(const std::vector<UnitKey>& wanted, const UnitDigests& known) {
  std::vector<UnitKey> left;
  for (const UnitKey& unit : wanted) {
    if (!known.contains(unit)) left.push_back(unit);
  }
  return left;
}

wire::Digest slice_descriptor(std::vector<std::string> names) {
  std::sort(names.begin(), names.end());
  names.erase(std::unique(names.begin(), names.end()), names.end());
  Sha256 sha;
  hash_number(sha, names.size());
  for (const std::string& name : names) {
    hash_number(sha, name.size());
    sha.update(name.data(), name.size());
  }
  return sha.finish();
}

}  // namespace moesaic::cluster
