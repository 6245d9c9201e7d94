// See file_kind.h. Signs: llama.cpp's writers, which set general.type only in newer files.
#include "model/file/file_kind.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>

#include "base/errors.h"

namespace moesaic::model {
namespace {

struct Kind {
  std::string_view type;           // general.type
  std::string_view arch;           // general.architecture
  std::string_view key_prefix;     // of any key
  std::string_view tensor_suffix;  // of the first tensor
  std::string_view what;
  std::string_view advice;
};
constexpr std::array<Kind, 5> kKinds{{
    {"adapter", "", "adapter.", ".lora_a", "a LoRA adapter",
     "merge it into its base model (llama.cpp's llama-export-lora does), and load the result"},
    {"mmproj", "clip", "clip.", "", "a projector that turns images or sound into rows (mmproj)",
     "load the language model's file that it belongs to"},
    {"imatrix", "", "imatrix.", ".in_sum2", "an importance matrix for quantizers",
     "load the model that it was measured on, or one quantized with it"},
    {"", "controlvector", "controlvector.", "", "a control vector",
     "load the model that it steers"},
    {"vocab", "", "", "", "a vocabulary", "load a file that has the model's weights too"},
}};

std::string_view text(const gguf::File& file, std::string_view key) {
  const gguf::Value* value = file.find(key);
  const bool is_text = value != nullptr && value->type() == gguf::ValueType::kString;
  return is_text ? value->as_string() : std::string_view();
}

bool is_of(const gguf::File& file, const Kind& kind) {
  if (!kind.type.empty() && text(file, "general.type") == kind.type) return true;
  const std::string_view arch = text(file, "general.architecture");
  if (!kind.arch.empty() && arch == kind.arch) return true;
  if (!kind.tensor_suffix.empty() && !file.tensors().empty() &&
      file.tensors().front().name.ends_with(kind.tensor_suffix)) {
    return true;
  }
  // Models have keys of their own besides: quantize.imatrix.* is of another prefix.
  return !kind.key_prefix.empty() && text(file, "general.type") != "model" &&
         std::any_of(file.metadata().begin(), file.metadata().end(), [&](const gguf::Value& value) {
           return value.key().starts_with(kind.key_prefix);
         });
}

}  // namespace

void refuse_other_kinds(const gguf::File& file) {
  const auto refuse = [&](std::string_view what, std::string_view advice) {
    const std::string path = file.paths().empty() ? "(memory)" : file.paths().front();
    fail<FormatError>("[model] ", path, ": it is ", what, ", not a model: ", advice);
  };
  for (const Kind& kind : kKinds) {
    if (is_of(file, kind)) refuse(kind.what, kind.advice);
  }
  const bool has_vocabulary = file.find("tokenizer.ggml.model") != nullptr;
  if (file.tensors().empty() && (has_vocabulary || file.find("general.architecture") != nullptr)) {
    refuse(has_vocabulary ? "a vocabulary without weights" : "metadata without weights",
           "load a file that has the model's weights too");
  }
}

}  // namespace moesaic::model
