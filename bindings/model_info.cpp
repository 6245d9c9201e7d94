// A model's configuration as plain Python data, with or without loading it.
#include <pybind11/stl.h>

#include "bindings/engine_types.h"
#include "bindings/gguf_file.h"
#include "bindings/overrides.h"
#include "bindings/text.h"
#include "gguf/file.h"
#include "model/arch/model_file.h"
#include "model/file/merged_experts.h"
#include "model/run/memory.h"

namespace py = pybind11;

namespace moesaic::bindings {
namespace {

const char* router_name(backend::RouterFunction function) {
  switch (function) {
    case backend::RouterFunction::kSoftmax:
      return "softmax";
    case backend::RouterFunction::kSigmoid:
      return "sigmoid";
    case backend::RouterFunction::kSoftmaxSelected:
      return "softmax_selected";
  }
  return "unknown";
}

Dict config_dict(const model::Config& config) {
  Dict out;
  out["arch"] = readable(config.arch);
  out["name"] = readable(config.name);
  out["n_layers"] = config.n_layers;
  out["d_model"] = config.d_model;
  out["n_heads"] = config.n_heads;
  out["n_kv_heads"] = config.n_kv_heads;
  out["d_head_k"] = config.d_head_k;
  out["d_head_v"] = config.d_head_v;
  out["d_ff"] = config.d_ff;
  out["vocab"] = config.vocab;
  out["n_ctx_train"] = config.n_ctx_train;
  out["norm_eps"] = config.norm_eps;
  out["attention_scale"] = config.attention_scale;
  out["q_lora"] = config.mla.q_lora;
  out["kv_lora"] = config.mla.kv_lora;
  out["d_nope"] = config.mla.d_nope;
  out["d_rope"] = config.mla.d_rope;
  out["n_experts"] = config.moe.n_experts;
  out["n_active"] = config.moe.n_active;
  out["n_shared"] = config.moe.n_shared;
  out["d_ff_expert"] = config.moe.d_ff_expert;
  out["router"] = config.moe.n_experts > 0 ? router_name(config.moe.function) : "";
  out["n_expert_groups"] = config.moe.n_experts > 0 ? config.moe.n_groups : 0;
  out["n_expert_groups_used"] = config.moe.n_experts > 0 ? config.moe.n_groups_used : 0;
  py::list layers;
  for (const model::LayerConfig& layer : config.layers) {
    const bool is_moe = layer.ffn == model::FfnKind::kMoe;
    layers.append(py::make_tuple(layer.attention == model::AttentionKind::kMla ? "mla" : "grouped",
                                 is_moe ? "moe" : "dense", layer.window, is_moe ? 0 : layer.d_ff,
                                 layer.n_active));
  }
  out["layers"] = std::move(layers);
  return out;
}

model::ModelFile open_model(const py::bytes& path, const Dict& overrides) {
  return model::understand(model::with_merged_experts(gguf::File::open(std::string(path))),
                           overrides_from(overrides));
}

py::object plain(const gguf::Value& value) {
  switch (value.type()) {
    case gguf::ValueType::kString:
      return py::cast(readable(value.as_string()));
    case gguf::ValueType::kBool:
      return py::bool_(value.as_bool());
    case gguf::ValueType::kF32:
    case gguf::ValueType::kF64:
      return py::float_(value.as_float());
    case gguf::ValueType::kU64:
      return py::int_(value.as_uint());
    default:
      return py::int_(value.as_int());
  }
}

Dict overridden(const GGUFFile& file, const Dict& overrides) {
  const model::Overrides set_keys = overrides_from(overrides);
  const model::ModelFile model =
      model::understand(model::with_merged_experts(file.shared()), set_keys);
  const std::string prefix = model.config.arch + ".";
  Dict out;
  for (const model::Override& override : set_keys) {
    const std::string& name = override.name;
    const std::string key = name.starts_with(prefix) ? name : prefix + name;
    out[py::str(readable(key))] = plain(*model.file->find(key));
  }
  return out;
}

}  // namespace

void register_model_info(py::module_& m) {
  m.def("overridden", &overridden, py::arg("file"), py::arg("overrides"),
        "Whole names and values, as the file's types have them, of overrides that suit a file.");
  m.def(
      "describe",
      [](const py::bytes& path, const Dict& overrides) {
        return config_dict(open_model(path, overrides).config);
      },
      py::arg("path"), py::arg("overrides") = Dict(),
      "A file's configuration, read from its headers alone.");
  m.def(
      "engine_config",
      [](const EngineHandle& self) { return config_dict(self.engine->facts().config); },
      py::arg("engine"), "A loaded model's configuration.");
  m.def(
      "memory_need",
      [](const py::bytes& path, std::int64_t n_ctx, const Dict& overrides) {
        model::LoadOptions options;
        options.n_ctx = n_ctx;
        const model::MemoryNeed need = model::memory_need(open_model(path, overrides), options);
        Dict out;
        out["weights_bytes"] = need.weights_bytes;
        out["derived_bytes"] = need.derived_bytes;
        out["kv_bytes"] = need.kv_bytes;
        out["scratch_bytes"] = need.scratch_bytes;
        out["total_bytes"] = need.total();
        return out;
      },
      py::arg("path"), py::arg("n_ctx"), py::arg("overrides") = Dict(),
      "Bytes that running a file would take; nothing is loaded.");
}

}  // namespace moesaic::bindings
