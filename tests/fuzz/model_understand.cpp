// libFuzzer target: any bytes as a GGUF file that is understood as a model: its family, its
// configuration, the tensors of every layer. Either a FormatError or a model whose parts fit
// together, within 10 ms and without a single allocation above twice the input and 1 MB. The first
// byte is no part of the file: when it is odd, the rest is the headers of a file set, as a
// coordinator sends them. Seeds: corpus/model_understand/ (make_model_corpus.py).
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include "base/errors.h"
#include "check.h"
#include "gguf/file.h"
#include "model/arch/model_file.h"

namespace {

using moesaic::fuzz::violated;
using moesaic::gguf::File;

void check(const moesaic::model::ModelFile& model) {
  const auto& config = model.config;
  if (config.n_layers <= 0 || config.vocab <= 0) violated("a model of nothing");
  if (static_cast<std::int64_t>(config.layers.size()) != config.n_layers)
    violated("another number of layers");
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  moesaic::fuzz::install_hooks();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::span<const std::uint8_t> bytes(data + 1, size - 1);
  const moesaic::fuzz::Stopwatch stopwatch;
  try {
    const bool is_headers = data[0] % 2 == 1;
    auto file =
        is_headers ? File::from_headers(bytes, "fuzz.gguf") : File::from_memory(bytes, "fuzz.gguf");
    if (is_headers && !moesaic::model::tensors_to_understand(*file).empty()) return 0;
    check(moesaic::model::understand(std::move(file)));
  } catch (const moesaic::FormatError& error) {
    if (std::strlen(error.what()) == 0) violated("an error that says nothing");
  }
  moesaic::fuzz::check_allocations(size);
  return 0;
}
