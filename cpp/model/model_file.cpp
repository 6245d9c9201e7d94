// From a file's directory to a model's; see model_file.h.
#include "model/model_file.h"

#include <charconv>

#include "model/arch/registry.h"

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

}  // namespace

ModelFile understand(std::shared_ptr<const gguf::File> file) {
  const Keys keys(file);
  const arch::Family& family = arch::family_of(keys);
  ModelFile model;
  model.file = std::move(file);
  model.config = family.read(keys);
  read_outside(keys, model);

  const auto n_layers = static_cast<std::size_t>(model.config.n_layers);
  std::vector<std::vector<const gguf::TensorInfo*>> of_layer(n_layers);
  for (const gguf::TensorInfo& tensor : model.file->tensors()) {
    const std::int64_t layer = layer_of(tensor.name);
    if (layer >= 0 && layer < model.config.n_layers) {
      of_layer[static_cast<std::size_t>(layer)].push_back(&tensor);
    }
  }
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

}  // namespace moesaic::model
