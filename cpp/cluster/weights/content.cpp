// See content.h.
#include "cluster/weights/content.h"

#include <string_view>

#include "base/digest.h"
#include "base/errors.h"
#include "model/arch/identity.h"

namespace moesaic::cluster {
namespace {

// Each kind of node begins with its own name, so that none can stand for another.
constexpr std::string_view kTensor = "moesaic tensor 1";
constexpr std::string_view kContent = "moesaic content 1";

void hash_number(Sha256& sha, std::uint64_t value) {
  std::uint8_t bytes[8];
  for (int i = 0; i < 8; ++i) bytes[i] = static_cast<std::uint8_t>(value >> (8 * i));
  sha.update(bytes, sizeof bytes);
}

wire::Digest identity_from(const wire::Digest& headers, const std::vector<wire::Digest>& tensors) {
  Sha256 sha;
  sha.update(kContent.data(), kContent.size());
  sha.update(headers.data(), headers.size());
  hash_number(sha, tensors.size());
  for (const wire::Digest& tensor : tensors) sha.update(tensor.data(), tensor.size());
  return sha.finish();
}

// False: a unit is missing.
bool tensor_digest(const gguf::File& file, std::uint32_t tensor, const UnitDigests& units,
                   wire::Digest& digest) {
  const std::uint32_t n = n_units(file.tensors()[tensor]);
  Sha256 sha;
  sha.update(kTensor.data(), kTensor.size());
  hash_number(sha, n);
  auto unit = units.lower_bound({tensor, 0});
  for (std::uint32_t expert = 0; expert < n; ++expert, ++unit) {
    if (unit == units.end() || unit->first != UnitKey{tensor, expert}) return false;
    sha.update(unit->second.data(), unit->second.size());
  }
  digest = sha.finish();
  return true;
}

}  // namespace

wire::Digest header_identity(const gguf::File& file) { return model::header_digest(file); }

Content make_content(const gguf::File& file, const UnitDigests& units) {
  Content content;
  content.headers = header_identity(file);
  content.tensors.resize(file.tensors().size());
  for (std::uint32_t tensor = 0; tensor < content.tensors.size(); ++tensor) {
    if (!tensor_digest(file, tensor, units, content.tensors[tensor])) {
      fail<InternalError>("[weights] ", file.tensors()[tensor].name, ": a digest is missing");
    }
  }
  content.identity = identity_from(content.headers, content.tensors);
  return content;
}

bool is_consistent(const Content& content) {
  return content.identity == identity_from(content.headers, content.tensors);
}

bool has_headers_of(const gguf::File& file, const Content& content) {
  return file.tensors().size() == content.tensors.size() &&
         header_identity(file) == content.headers;
}

Proof prove_tensor(const gguf::File& file, const Content& content, std::uint32_t tensor,
                   const UnitDigests& units) {
  wire::Digest digest;
  if (!tensor_digest(file, tensor, units, digest)) return Proof::kUnknown;
  return digest == content.tensors[tensor] ? Proof::kGood : Proof::kOther;
}

UnitDigests proven_units(const gguf::File& file, const Content& content,
                         const UnitDigests& claimed) {
  UnitDigests proven;
  for (auto unit = claimed.begin(); unit != claimed.end();) {
    const std::uint32_t tensor = unit->first.tensor;
    const bool is_good = tensor < content.tensors.size() &&
                         prove_tensor(file, content, tensor, claimed) == Proof::kGood;
    for (; unit != claimed.end() && unit->first.tensor == tensor; ++unit) {
      if (is_good && unit->first.expert < n_units(file.tensors()[tensor])) {
        proven.emplace_hint(proven.end(), *unit);
      }
    }
  }
  return proven;
}

std::string short_hex(const wire::Digest& digest) { return to_hex(digest).substr(0, 12); }

}  // namespace moesaic::cluster
