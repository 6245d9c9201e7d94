// From a file's directory to a model's; see model_file.h.
#include "model/arch/model_file.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <string>

#include "model/arch/registry.h"
#include "model/file/file_kind.h"
#include "model/file/unread_keys.h"

namespace moesaic::model {
namespace {

// The layer a tensor belongs to by its name "blk.N.", or -1.
std::int64_t layer_of(std::string_view name) {
  constexpr std::string_view kPrefix = "blk.";
  if (!name.starts_with(kPrefix)) return -1;
  std::int64_t layer = -1;
  const char* begin = name.data() + kPrefix.size();
  const char* end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(begin, end, layer);
  return error == std::errc() && rest != end && *rest == '.' ? layer : -1;
}

void read_outside(const Keys& keys, ModelFile& model) {
  const Config& config = model.config;
  TensorList list(keys, -1);
  const Shape table{1, config.vocab, config.d_model};
  list.matrix(nullptr, "token_embd.weight", table);
  list.vector(nullptr, "output_norm.weight", config.d_model);
  model.tied_output = !list.has("output.weight");
  list.matrix(nullptr, model.tied_output ? "token_embd.weight" : "output.weight", table);
  model.token_embd = list.specs()[0];
  model.output_norm = list.specs()[1];
  model.output = list.specs()[2];
}

// Tensors outside layers that would change what the model computes, and that no family here has.
// Others (parts for images, for instance) are not the text model's business.
void refuse_unknown_outside(const Keys& keys, const gguf::TensorInfo& tensor) {
  constexpr std::array<std::string_view, 8> kKnown{
      "token_embd.weight", "token_embd.scale", "token_embd.input_scale", "output_norm.weight",
      "output.weight",     "output.scale",     "output.input_scale",     "rope_freqs.weight"};
  const std::string_view name = tensor.name;
  if (std::find(kKnown.begin(), kKnown.end(), name) != kKnown.end()) return;
  if (name.starts_with("token_") || name.starts_with("output") || name.starts_with("rope_")) {
    fail<FormatError>("[model] ", keys.path(), ": tensor ", name, ": family '", keys.arch(),
                      "' has no such tensor; without it this would be another model");
  }
}

// The tensors of each layer. Throws FormatError for layers that block_count does not count.
std::vector<std::vector<const gguf::TensorInfo*>> by_layer(const Keys& keys,
                                                           std::int64_t n_layers) {
  const std::int64_t n_blocks = keys.count("block_count");  // with nextn blocks, which are skipped
  std::vector<std::vector<const gguf::TensorInfo*>> tensors(static_cast<std::size_t>(n_layers));
  for (const gguf::TensorInfo& tensor : keys.file()->tensors()) {
    const std::int64_t layer = layer_of(tensor.name);
    if (layer < 0) {
      refuse_unknown_outside(keys, tensor);
    } else if (layer < n_layers) {
      tensors[static_cast<std::size_t>(layer)].push_back(&tensor);
    } else if (layer >= n_blocks) {
      keys.bad("block_count", n_blocks,
               "more than " + std::to_string(layer) + ", for tensor " + tensor.name);
    }
  }
  return tensors;
}

}  // namespace

std::vector<std::string> tensors_to_understand(const gguf::File& file) {
  constexpr const char* kRopeFreqs = "rope_freqs.weight";  // rope.cpp
  if (file.find_tensor(kRopeFreqs) == nullptr) return {};
  return {kRopeFreqs};
}

namespace {

ModelFile understand_with(std::shared_ptr<const gguf::File> file, const Overrides& overrides) {
  refuse_other_kinds(*file);
  file = with_overrides(std::move(file), overrides);
  const Keys keys(file);
  const arch::Family& family = arch::family_of(keys);
  ModelFile model;
  model.file = std::move(file);
  model.config = family.read(keys);
  check_have_effect(keys, model.config, overrides);
  refuse_unread_keys(keys, model.config);
  read_outside(keys, model);

  const auto n_layers = static_cast<std::size_t>(model.config.n_layers);
  const auto of_layer = by_layer(keys, model.config.n_layers);
  model.layers.reserve(n_layers);
  for (std::size_t i = 0; i < n_layers; ++i) {
    TensorList list(keys, static_cast<std::int64_t>(i));
    family.list_layer(list, model.config);
    list.ignore("attn_rot_embd.weight");  // frequencies that old files carry; made from keys
    list.check_all_listed(of_layer[i]);
    model.layers.push_back(std::move(list.specs()));
  }
  return model;
}

}  // namespace

ModelFile understand(std::shared_ptr<const gguf::File> file, const Overrides& overrides) {
  try {
    return understand_with(file, overrides);
  } catch (const FormatError& error) {
    if (overrides.empty()) throw;
    understand_with(file, {});  // the file's own fault comes first
    fail<ArgumentError>("[overrides] ", text_of(overrides), ": ", error.what());
  }
}

}  // namespace moesaic::model
