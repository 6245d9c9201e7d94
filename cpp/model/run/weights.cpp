// Loading of a slice; see weights.h.
#include "model/run/weights.h"

#include <algorithm>
#include <cmath>

#include "model/file/cancel_scope.h"

namespace moesaic::model {
namespace {

// The specs of a slice in the order of the forward pass, each with the place its weight goes to.
template <typename Visit>
void visit_slice(const ModelFile& model, const Slice& slice, bool decompressed_mla, Visit visit) {
  if (slice.embed) visit(model.token_embd, -1);
  for (std::int64_t i = slice.layer_begin; i < slice.layer_end; ++i) {
    for (const TensorSpec& spec : model.layers[static_cast<std::size_t>(i)]) {
      if (spec.slot == &LayerWeights::attn_w_k && !decompressed_mla) continue;
      visit(spec, i - slice.layer_begin);
    }
  }
  if (!slice.head) return;
  visit(model.output_norm, -1);
  if (!(model.tied_output && slice.embed)) visit(model.output, -1);
}

// The factors of a spec's experts, (n_experts); empty for none.
std::vector<float> read_scales(const ModelFile& model, const TensorSpec& spec) {
  if (spec.scale == nullptr) return {};
  std::vector<float> scales(static_cast<std::size_t>(spec.scale->n_elems));
  quant::traits(spec.scale->type)
      .decode(model.file->bytes(*spec.scale).data(), static_cast<std::int64_t>(scales.size()),
              scales.data());
  scales.resize(static_cast<std::size_t>(spec.n_experts), scales.front());
  for (const float scale : scales) {
    if (std::isfinite(scale)) continue;
    fail<FormatError>(
        "[model] ", model.file->paths().empty() ? "" : model.file->paths().front(), ": tensor ",
        spec.scale->name, ": got ", scale,
        ", need finite numbers; the file is damaged, or was made by a broken converter");
  }
  return scales;
}

WeightPtr load_mapped(backend::Backend& backend, const ModelFile& model, const TensorSpec& spec) {
  // Per-head matrices may lie in the file as one; the backend is shown them as they are meant.
  gguf::TensorInfo seen = *spec.tensor;
  seen.ne = {static_cast<std::uint64_t>(spec.cols), static_cast<std::uint64_t>(spec.tensor_rows),
             static_cast<std::uint64_t>(spec.n_experts)};
  backend::WeightSource source;
  source.file = model.file;
  source.tensor = &seen;
  source.n_experts = spec.n_experts;
  source.row_begin = spec.row_begin;
  source.n_rows = spec.rows;
  source.scales = read_scales(model, spec);
  return backend.load(source);
}

// Each matrix (rows, cols) of the file as (cols, rows), in memory of its own.
WeightPtr load_transposed(backend::Backend& backend, const ModelFile& model,
                          const TensorSpec& spec) {
  const quant::QtypeTraits& traits = quant::traits(spec.tensor->type);
  const std::uint64_t row_bytes =
      quant::row_bytes(spec.tensor->type, static_cast<std::uint64_t>(spec.cols));
  const std::uint8_t* bytes = model.file->bytes(*spec.tensor).data();
  const auto rows = static_cast<std::size_t>(spec.rows);
  const auto cols = static_cast<std::size_t>(spec.cols);
  const std::int64_t row_blocks = spec.cols / traits.block_elems;
  const std::vector<float> scales = read_scales(model, spec);
  std::vector<float> row(cols);
  std::vector<float> values(static_cast<std::size_t>(spec.n_experts) * rows * cols);
  for (std::size_t e = 0; e < static_cast<std::size_t>(spec.n_experts); ++e) {
    float* out = values.data() + e * rows * cols;
    const float scale = scales.empty() ? 1.0F : scales[e];
    for (std::size_t r = 0; r < rows; ++r) {
      const std::uint64_t at = e * static_cast<std::uint64_t>(spec.tensor_rows) +
                               static_cast<std::uint64_t>(spec.row_begin) + r;
      traits.decode(bytes + at * row_bytes, row_blocks, row.data());
      for (std::size_t c = 0; c < cols; ++c) out[c * rows + r] = scale * row[c];
    }
  }
  return backend.make_weight(derived_type(spec.tensor->type, spec.rows), spec.n_experts, spec.cols,
                             spec.rows, values);
}

// Where the weight of a spec outside layers goes.
WeightPtr& outer_slot(ModelWeights& weights, const ModelFile& model, const TensorSpec& spec) {
  if (&spec == &model.token_embd) return weights.token_embd;
  return &spec == &model.output_norm ? weights.output_norm : weights.output;
}

}  // namespace

WeightBytes weight_bytes(const ModelFile& model, const Slice& slice, bool decompressed_mla) {
  WeightBytes sum;
  visit_slice(model, slice, decompressed_mla, [&](const TensorSpec& spec, std::int64_t) {
    if (spec.origin == Origin::kMapped) sum.mapped += spec.mapped_bytes();
    sum.derived += spec.derived_bytes();
  });
  return sum;
}

std::vector<const gguf::TensorInfo*> slice_tensors(const ModelFile& model, const Slice& slice) {
  std::vector<const gguf::TensorInfo*> tensors;
  visit_slice(model, slice, true, [&](const TensorSpec& spec, std::int64_t) {
    tensors.push_back(spec.tensor);
    if (spec.scale != nullptr) tensors.push_back(spec.scale);
  });
  // All lie in one directory, so that their addresses are in file order.
  std::sort(tensors.begin(), tensors.end());
  tensors.erase(std::unique(tensors.begin(), tensors.end()), tensors.end());
  return tensors;
}

ModelWeights load_weights(backend::Backend& backend, const ModelFile& model, const Slice& slice,
                          const WeightOptions& options) {
  std::uint64_t total = 0;
  visit_slice(model, slice, options.decompressed_mla,
              [&](const TensorSpec& spec, std::int64_t) { total += spec.mapped_bytes(); });
  ModelWeights weights;
  weights.layers.resize(static_cast<std::size_t>(slice.n_layers()));
  std::uint64_t done = 0;
  if (options.progress) options.progress(0, total);
  const CancelScope cancel(backend, options.cancel);
  visit_slice(
      model, slice, options.decompressed_mla, [&](const TensorSpec& spec, std::int64_t layer) {
        if (options.cancel != nullptr) options.cancel->check();
        WeightPtr weight = spec.origin == Origin::kMapped ? load_mapped(backend, model, spec)
                                                          : load_transposed(backend, model, spec);
        if (options.prefault) backend.prefault(*weight);
        if (layer < 0) {
          outer_slot(weights, model, spec) = std::move(weight);
        } else {
          weights.layers[static_cast<std::size_t>(layer)].*spec.slot = std::move(weight);
        }
        done += spec.mapped_bytes();
        if (options.progress) options.progress(done, total);
      });
  model.file->check_intact();  // what was derived, and small weights that were copied
  return weights;
}

}  // namespace moesaic::model
