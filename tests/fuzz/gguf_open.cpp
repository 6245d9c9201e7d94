// libFuzzer target: any bytes as a GGUF file. Either a FormatError or a file of which everything
// can be touched, within 10 ms and without a single allocation above twice the input and 1 MB.
// Seeds: corpus/gguf_open/ (make_gguf_corpus.py).
#include <cstddef>
#include <cstdint>
#include <string>

#include "base/errors.h"
#include "check.h"
#include "gguf/file.h"
#include "quant/qtype.h"

namespace {

using moesaic::fuzz::violated;

// Reads all that a caller could: metadata by every getter, tensors' bytes, and a block of each
// decoded.
std::uint64_t touch(const moesaic::gguf::File& file) {
  using moesaic::gguf::ValueType;
  std::uint64_t sum = file.version() + file.alignment();
  for (const moesaic::gguf::Value& value : file.metadata()) {
    if (file.find(value.key()) != &value) violated("a key does not lead to its value");
    switch (value.type()) {
      case ValueType::kString:
        for (const char c : value.as_string()) sum += static_cast<unsigned char>(c);
        break;
      case ValueType::kArray: {
        const moesaic::gguf::ArrayView array = value.as_array();
        for (const std::uint8_t byte : array.bytes()) sum += byte;
        if (array.elem_type() == ValueType::kString) {
          for (const std::string_view text : array.strings()) sum += text.size();
        }
        break;
      }
      case ValueType::kBool:
        sum += value.as_bool() ? 1 : 0;
        break;
      case ValueType::kF32:
      case ValueType::kF64:
        sum += value.as_float() > 0 ? 1 : 0;
        break;
      default:
        sum += static_cast<std::uint64_t>(value.as_float() > 0);
    }
  }
  for (const moesaic::gguf::TensorInfo& tensor : file.tensors()) {
    if (file.find_tensor(tensor.name) != &tensor) violated("a name does not lead to its tensor");
    const auto bytes = file.bytes(tensor);
    if (bytes.size() != tensor.n_bytes) violated("a tensor has other bytes than its size");
    for (const std::uint8_t byte : bytes) sum += byte;
    float block[256];
    moesaic::quant::traits(tensor.type).decode(bytes.data(), 1, block);
    sum += tensor.n_rows();
  }
  return sum;
}

}  // namespace

std::uint64_t g_sink = 0;  // keeps the reads; external, so that they cannot be dropped

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  moesaic::fuzz::install_hooks();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const moesaic::fuzz::Stopwatch stopwatch;
  try {
    g_sink = touch(*moesaic::gguf::File::from_memory({data, size}, "fuzz.gguf"));
  } catch (const moesaic::FormatError& error) {
    g_sink = std::string(error.what()).size();
  }
  moesaic::fuzz::check_allocations(size);
  return 0;
}
