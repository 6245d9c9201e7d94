// Digest of a file's headers; see identity.h.
#include "model/arch/identity.h"

#include <bit>
#include <memory>
#include <string_view>

#include "base/digest.h"

namespace moesaic::model {
namespace {

class Hasher {
 public:
  void number(std::uint64_t value) {
    std::uint8_t bytes[8];
    for (int i = 0; i < 8; ++i) bytes[i] = static_cast<std::uint8_t>(value >> (8 * i));
    sha_.update(bytes, sizeof bytes);
  }
  void text(std::string_view value) {
    number(value.size());
    sha_.update(value.data(), value.size());
  }
  void value(const gguf::Value& value) {
    text(value.key());
    number(static_cast<std::uint64_t>(value.type()));
    switch (value.type()) {
      case gguf::ValueType::kString:
        text(value.as_string());
        break;
      case gguf::ValueType::kArray: {
        const gguf::ArrayView array = value.as_array();
        number(static_cast<std::uint64_t>(array.elem_type()));
        number(array.count());
        sha_.update(array.bytes().data(), array.bytes().size());
        break;
      }
      case gguf::ValueType::kF32:
      case gguf::ValueType::kF64:
        number(std::bit_cast<std::uint64_t>(value.as_float()));
        break;
      case gguf::ValueType::kBool:
        number(value.as_bool() ? 1 : 0);
        break;
      case gguf::ValueType::kU8:
      case gguf::ValueType::kU16:
      case gguf::ValueType::kU32:
      case gguf::ValueType::kU64:
        number(value.as_uint());
        break;
      case gguf::ValueType::kI8:
      case gguf::ValueType::kI16:
      case gguf::ValueType::kI32:
      case gguf::ValueType::kI64:
        number(static_cast<std::uint64_t>(value.as_int()));
        break;
    }
  }
  Sha256Digest finish() { return sha_.finish(); }

 private:
  Sha256 sha_;
};

std::string_view kv_text(backend::KvType type) {
  switch (type) {
    case backend::KvType::kF32:
      return "kv f32";
    case backend::KvType::kF16:
      return "kv f16";
    case backend::KvType::kQ8_0:
      return "kv q8_0";
  }
  fail<InternalError>("[identity] kv_type ", static_cast<int>(type));
}

}  // namespace

Sha256Digest header_digest(const gguf::File& file) {
  Hasher hasher;
  hasher.text("moesaic headers 1");
  for (const gguf::Value& value : file.metadata()) {
    if (value.key().starts_with("split.") || value.key() == "general.alignment") continue;
    hasher.value(value);
  }
  for (const gguf::TensorInfo& tensor : file.tensors()) {
    hasher.text(tensor.name);
    hasher.number(static_cast<std::uint64_t>(tensor.type));
    hasher.number(tensor.ne.size());
    for (const std::uint64_t n : tensor.ne) hasher.number(n);
  }
  return hasher.finish();
}

std::string overridden_identity(const std::string& content, const gguf::File& file,
                                const Overrides& overrides) {
  if (overrides.empty() || content.empty()) return content;
  const std::shared_ptr<const gguf::File> same(std::shared_ptr<const gguf::File>(), &file);
  const Sha256Digest headers = header_digest(*with_overrides(same, overrides));
  if (headers == header_digest(file)) return content;
  Hasher hasher;
  hasher.text("moesaic overrides 1");
  hasher.text(content);
  hasher.text(to_hex(headers));
  return to_hex(hasher.finish());
}

std::string identity_of(const gguf::File& file, backend::KvType kv_type) {
  Hasher hasher;
  hasher.text("moesaic model 2");
  hasher.text(to_hex(header_digest(file)));
  hasher.text(kv_text(kv_type));
  return to_hex(hasher.finish());
}

}  // namespace moesaic::model
