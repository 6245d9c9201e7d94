// Tensor names and shapes against the file's directory; see tensor_list.h.
#include "model/file/tensor_list.h"

#include <algorithm>

namespace moesaic::model {
namespace {

std::string shape_text(const std::vector<std::uint64_t>& ne) {
  std::string text = "(";
  for (std::size_t i = 0; i < ne.size(); ++i) text += (i ? ", " : "") + std::to_string(ne[i]);
  return text + ")";
}

// The file's order, without trailing ones (but never empty).
std::vector<std::uint64_t> trimmed(std::vector<std::uint64_t> ne) {
  while (ne.size() > 1 && ne.back() == 1) ne.pop_back();
  return ne;
}

std::vector<std::uint64_t> file_order(const Shape& shape) {
  return trimmed({static_cast<std::uint64_t>(shape.cols), static_cast<std::uint64_t>(shape.rows),
                  static_cast<std::uint64_t>(shape.n_experts)});
}

// Older files hold per-head matrices as one: (cols, rows * n_experts). The bytes are the same.
bool same_shape(const std::vector<std::uint64_t>& got, const Shape& shape) {
  const Shape flat{1, shape.rows * shape.n_experts, shape.cols};
  return trimmed(got) == file_order(shape) || trimmed(got) == file_order(flat);
}

}  // namespace

quant::Qtype derived_type(quant::Qtype type, std::int64_t cols) {
  if (quant::is_float(type)) return type;
  return cols % quant::traits(quant::Qtype::kQ8_0).block_elems == 0 ? quant::Qtype::kQ8_0
                                                                    : quant::Qtype::kF16;
}

std::uint64_t TensorSpec::mapped_bytes() const {
  if (tensor_rows == 0) return 0;
  const std::uint64_t beside = scale == nullptr ? 0 : scale->n_bytes;
  return tensor->n_bytes / static_cast<std::uint64_t>(tensor_rows) *
             static_cast<std::uint64_t>(rows) +
         beside;
}

std::uint64_t TensorSpec::derived_bytes() const {
  if (origin == Origin::kMapped) return 0;
  const auto out_cols = static_cast<std::uint64_t>(rows);
  return static_cast<std::uint64_t>(n_experts * cols) *
         quant::row_bytes(derived_type(tensor->type, rows), out_cols);
}

TensorList::TensorList(const Keys& keys, std::int64_t layer) : keys_(keys), layer_(layer) {}

std::string TensorList::full(std::string_view name) const {
  return layer_ < 0 ? std::string(name) : strcat("blk.", layer_, ".", name);
}

const gguf::TensorInfo* TensorList::find(std::string_view name) const {
  return keys_.tensor(full(name));
}

TensorSpec& TensorList::add(LayerSlot slot, std::string_view name, const Shape& shape,
                            bool is_vector) {
  const gguf::TensorInfo* tensor = find(name);
  if (tensor == nullptr) {
    fail<FormatError>("[model] ", keys_.path(), ": tensor ", full(name), ": missing, family '",
                      keys_.arch(), "' needs it with shape ", shape_text(file_order(shape)),
                      " (row length first)");
  }
  if (!same_shape(tensor->ne, shape)) {
    fail<FormatError>("[model] ", keys_.path(), ": tensor ", tensor->name, ": got shape ",
                      shape_text(tensor->ne), ", need ", shape_text(file_order(shape)),
                      " (row length first) by the keys of '", keys_.arch(), "'");
  }
  const quant::QtypeTraits& traits = quant::traits(tensor->type);
  if (!traits.is_weight || (is_vector && !quant::is_float(tensor->type))) {
    fail<FormatError>("[model] ", keys_.path(), ": tensor ", tensor->name, ": got type ",
                      traits.name, ", need ",
                      is_vector ? "F32, F16 or BF16" : "a type that holds weights");
  }
  TensorSpec spec;
  spec.slot = slot;
  spec.tensor = tensor;
  spec.n_experts = shape.n_experts;
  spec.rows = shape.rows;
  spec.cols = shape.cols;
  spec.tensor_rows = shape.rows;
  spec.is_vector = is_vector;
  if (!is_vector) spec.scale = find_scale(name, shape.n_experts);
  specs_.push_back(spec);
  listed_.push_back(tensor);
  return specs_.back();
}

// The factor that belongs to a matrix. ".input_scale" is for engines that round activations to
// NVFP4; here they are not, so it changes nothing.
const gguf::TensorInfo* TensorList::find_scale(std::string_view name, std::int64_t n_experts) {
  constexpr std::string_view kEnd = ".weight";
  if (!name.ends_with(kEnd)) return nullptr;
  const std::string stem(name.substr(0, name.size() - kEnd.size()));
  ignore(stem + ".input_scale");
  const gguf::TensorInfo* scale = find(stem + ".scale");
  if (scale == nullptr) return nullptr;
  // Per-head matrices of attention are several matrices too, but have one factor.
  const bool has_experts = stem.ends_with("_exps") && n_experts > 1;
  const bool fits = scale->ne.size() <= 1 &&
                    (scale->n_elems == 1 ||
                     (has_experts && scale->n_elems == static_cast<std::uint64_t>(n_experts)));
  if (!fits || !quant::is_float(scale->type)) {
    fail<FormatError>("[model] ", keys_.path(), ": tensor ", scale->name, ": got ",
                      quant::traits(scale->type).name, " with shape ", shape_text(scale->ne),
                      ", need F32, F16 or BF16 with one value",
                      has_experts ? strcat(", or one for each of ", n_experts, " experts") : "");
  }
  listed_.push_back(scale);
  return scale;
}

void TensorList::matrix(LayerSlot slot, std::string_view name, const Shape& shape) {
  add(slot, name, shape, false);
}

void TensorList::vector(LayerSlot slot, std::string_view name, std::int64_t n,
                        std::int64_t n_rows) {
  add(slot, name, {1, n_rows, n}, true);
}

void TensorList::optional_vector(LayerSlot slot, std::string_view name, std::int64_t n,
                                 std::int64_t n_rows) {
  if (has(name)) vector(slot, name, n, n_rows);
}

void TensorList::rows_of(LayerSlot slot, std::string_view name, const Shape& shape,
                         std::int64_t row_begin, std::int64_t n_rows, Origin origin) {
  TensorSpec& spec = add(slot, name, shape, false);
  spec.row_begin = row_begin;
  spec.rows = n_rows;
  spec.origin = origin;
}

void TensorList::optional_part(LayerSlot slot, std::string_view name, std::int64_t row,
                               std::int64_t begin, std::int64_t n, std::int64_t n_rows) {
  if (!has(name)) return;
  // Shown as columns, one per row of the tensor, so that a part of a row is a range of rows.
  TensorSpec& spec = add(slot, name, {1, n_rows, row}, true);
  spec.n_experts = n_rows;
  spec.tensor_rows = row;
  spec.cols = 1;
  spec.row_begin = begin;
  spec.rows = n;
}

void TensorList::ignore(std::string_view name) {
  if (const gguf::TensorInfo* tensor = find(name)) listed_.push_back(tensor);
}

void TensorList::check_all_listed(const std::vector<const gguf::TensorInfo*>& of_layer) const {
  for (const gguf::TensorInfo* tensor : of_layer) {
    if (std::find(listed_.begin(), listed_.end(), tensor) == listed_.end()) {
      fail<FormatError>("[model] ", keys_.path(), ": tensor ", tensor->name, ": family '",
                        keys_.arch(),
                        "' has no such tensor; what it is for is unknown, and without it this "
                        "would be another model");
    }
  }
}

}  // namespace moesaic::model
