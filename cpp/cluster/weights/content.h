// What a model is, weights included: a tree of digests over all its bytes. A leaf is a unit's
// SHA-256 (weight_units.h), a tensor's digest is over those of its units, and the identity is over
// the headers' digest and those of all tensors. Who knows the identity can check any part of the
// tree, from any source. Not for making unit digests: hash_units.h.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cluster/weights/weight_units.h"
#include "gguf/file.h"
#include "wire/messages.h"

namespace moesaic::cluster {

// Of the metadata and the directory of tensors, the same for a file and its split set.
wire::Digest header_identity(const gguf::File& file);

struct Content {
  wire::Digest identity{};            // all zero: not known
  wire::Digest headers{};             // header_identity()
  std::vector<wire::Digest> tensors;  // of each tensor, in the order of the directory
  bool is_known() const { return identity != wire::Digest{}; }
};

// units: of all tensors. Throws InternalError when one is missing.
Content make_content(const gguf::File& file, const UnitDigests& units);
// Whether headers and tensors give the identity.
bool is_consistent(const Content& content);
// Whether these headers are the content's, with as many tensors.
bool has_headers_of(const gguf::File& file, const Content& content);

// Whether the units of a tensor are all there and give its digest in the content.
enum class Proof { kGood, kUnknown, kOther };  // kUnknown: not all units are there
Proof prove_tensor(const gguf::File& file, const Content& content, std::uint32_t tensor,
                   const UnitDigests& units);
// Those of the claimed digests that belong to tensors which are proven good.
UnitDigests proven_units(const gguf::File& file, const Content& content,
                         const UnitDigests& claimed);

std::string short_hex(const wire::Digest& digest);  // for messages: 12 digits

}  // namespace moesaic::cluster
