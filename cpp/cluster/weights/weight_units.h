// The units in which weights are proven and moved: one matrix of a tensor (an expert, a head), or a
// whole tensor that has one, or whose matrices are small. Their digests are the leaves of a model's
// identity (content.h). Not for files: slice_file.h. Rules: RELIABILITY 6.
#pragma once

#include <compare>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "gguf/file.h"
#include "wire/messages.h"

namespace moesaic::cluster {

struct UnitKey {
  std::uint32_t tensor = 0;  // index in the directory of all parts
  std::uint32_t expert = 0;  // which matrix; 0 when the tensor is one unit
  auto operator<=>(const UnitKey&) const = default;
};
using UnitDigests = std::map<UnitKey, wire::Digest>;

// Matrices smaller than this are no units of their own: their digests would cost more than they
// tell. Part of the protocol: both sides must count alike.
inline constexpr std::uint64_t kLeastUnitBytes = 4096;

std::uint32_t n_units(const gguf::TensorInfo& tensor);
std::uint64_t unit_bytes(const gguf::TensorInfo& tensor);

// Indices of the named tensors in the directory, ascending, each once. Throws FormatError for a
// name that the file does not have.
std::vector<std::uint32_t> tensor_indices(const gguf::File& file,
                                          const std::vector<std::string>& names);
// The units of those tensors, in order.
std::vector<UnitKey> units_of(const gguf::File& file, const std::vector<std::uint32_t>& tensors);
std::vector<UnitKey> all_units(const gguf::File& file);
// "blk.3.ffn_up_exps.weight, expert 5", for messages.
std::string unit_name(const gguf::File& file, const UnitKey& unit);

// What is left of `wanted` when `known` is taken away.
std::vector<UnitKey> unknown_units(const std::vector<UnitKey>& wanted, const UnitDigests& known);

// Of the sorted names of a slice's tensors: with the identity it names a slice in the cache.
wire::Digest slice_descriptor(std::vector<std::string> names);

}  // namespace moesaic::cluster
