// libFuzzer target: any bytes as a GGUF file. Either a FormatError or a file of which everything
// can be touched, within 10 ms and without a single allocation above twice the input and 1 MB.
// Seeds: corpus/gguf_open/ (make_gguf_corpus.py).
#include <sanitizer/allocator_interface.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>

#include "base/errors.h"
#include "gguf/file.h"
#include "quant/qtype.h"

namespace {

std::size_t g_largest_allocation = 0;

// Sanitizers at -O1 slow the code down about so much; measured in CPU time, so that a busy machine
// does not matter.
constexpr double kSlowdown = 5;

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

[[noreturn]] void violated(const char* what) {
  std::fprintf(stderr, "property violated: %s\n", what);
  std::abort();
}

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
  __sanitizer_install_malloc_and_free_hooks(
      [](const volatile void*, std::size_t n_bytes) {
        g_largest_allocation = std::max(g_largest_allocation, n_bytes);
      },
      [](const volatile void*) {});
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  g_largest_allocation = 0;
  const double start = cpu_seconds();
  try {
    g_sink = touch(*moesaic::gguf::File::from_memory({data, size}, "fuzz.gguf"));
  } catch (const moesaic::FormatError& error) {
    g_sink = std::string(error.what()).size();
  }
  if (cpu_seconds() - start > 0.010 * kSlowdown) violated("more than 10 ms");
  if (g_largest_allocation > 2 * size + (std::size_t{1} << 20)) violated("too large an allocation");
  return 0;
}
