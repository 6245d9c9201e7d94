// Names of taps and taking them; see taps.h.
#include "model/taps.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "base/errors.h"

namespace moesaic::model {
namespace {

struct TapName {
  Tap tap;
  std::string_view name;  // without "blocks.N."
};
constexpr std::array<TapName, 8> kLayerTaps{{
    {Tap::kResidPre, "resid_pre"},
    {Tap::kAttnOut, "attn_out"},
    {Tap::kResidMid, "resid_mid"},
    {Tap::kRouterLogits, "router.logits"},
    {Tap::kRouterExperts, "router.experts"},
    {Tap::kRouterWeights, "router.weights"},
    {Tap::kMlpOut, "mlp_out"},
    {Tap::kResidPost, "resid_post"},
}};

bool is_router(Tap tap) {
  return tap == Tap::kRouterLogits || tap == Tap::kRouterExperts || tap == Tap::kRouterWeights;
}

// Calls visit(name, tap, layer) for every name of the model, in order of the forward pass.
template <typename Visit>
void visit_names(const Config& config, Visit visit) {
  visit(std::string("embed"), Tap::kEmbed, -1);
  for (std::int64_t i = 0; i < config.n_layers; ++i) {
    const bool moe = config.layers[static_cast<std::size_t>(i)].ffn == FfnKind::kMoe;
    for (const TapName& tap : kLayerTaps) {
      if (is_router(tap.tap) && !moe) continue;
      visit(strcat("blocks.", i, ".", tap.name), tap.tap, i);
    }
  }
  visit(std::string("final_norm"), Tap::kFinalNorm, -1);
  visit(std::string("logits"), Tap::kLogits, -1);
}

}  // namespace

std::vector<std::string> capture_names(const Config& config) {
  std::vector<std::string> names;
  visit_names(config,
              [&](std::string name, Tap, std::int64_t) { names.push_back(std::move(name)); });
  return names;
}

Captures::Captures(const Config& config, std::span<const std::string> names, std::vector<Rows> rows)
    : index_(slot(Tap::kEmbed, config.n_layers), -1),
      names_(names.begin(), names.end()),
      rows_(std::move(rows)),
      taken_(rows_.size(), std::vector<Captured>(names.size())) {
  std::size_t found = 0;
  visit_names(config, [&](const std::string& name, Tap tap, std::int64_t layer) {
    const auto at = std::find(names_.begin(), names_.end(), name);
    if (at == names_.end()) return;
    index_[slot(tap, layer)] = static_cast<std::int32_t>(at - names_.begin());
    ++found;
  });
  if (found != names_.size()) {
    const std::vector<std::string> known = capture_names(config);
    for (std::size_t i = 0; i < names_.size(); ++i) {
      if (std::find(known.begin(), known.end(), names_[i]) == known.end()) {
        fail<ArgumentError>("[run] capture: got '", names_[i], "', need one of the ", known.size(),
                            " names of this model, '", known.front(), "' to '", known.back(), "'");
      }
    }
    fail<ArgumentError>("[run] capture: a name is given twice, need each once");
  }
}

void Captures::take(backend::Backend& backend, Tap tap, std::int64_t layer, const backend::Mat& x) {
  const auto name = static_cast<std::size_t>(index_[slot(tap, layer)]);
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    Captured& out = taken_[i][name];
    out.n_rows = rows_[i].count;
    out.n_cols = x.cols;
    out.values.resize(static_cast<std::size_t>(out.n_rows * out.n_cols));
    const std::int64_t first = x.offset + rows_[i].begin * x.stride;
    backend.download(*x.buffer, static_cast<std::size_t>(first) * sizeof(float), out.values.data(),
                     out.values.size() * sizeof(float));
  }
}

void Captures::take_ints(backend::Backend& backend, Tap tap, std::int64_t layer,
                         const backend::Buffer& buffer, std::int64_t cols) {
  const auto name = static_cast<std::size_t>(index_[slot(tap, layer)]);
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    Captured& out = taken_[i][name];
    out.n_rows = rows_[i].count;
    out.n_cols = cols;
    out.ids.resize(static_cast<std::size_t>(out.n_rows * cols));
    backend.download(buffer, static_cast<std::size_t>(rows_[i].begin * cols) * sizeof(std::int32_t),
                     out.ids.data(), out.ids.size() * sizeof(std::int32_t));
  }
}

void Captures::take_row(Tap tap, std::int64_t row, std::span<const float> values) {
  const auto name = static_cast<std::size_t>(index_[slot(tap, -1)]);
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    if (row < rows_[i].begin || row >= rows_[i].begin + rows_[i].count) continue;
    Captured& out = taken_[i][name];
    out.n_rows = rows_[i].count;
    out.n_cols = static_cast<std::int64_t>(values.size());
    out.values.resize(static_cast<std::size_t>(out.n_rows * out.n_cols));
    std::copy(values.begin(), values.end(),
              out.values.begin() + (row - rows_[i].begin) * out.n_cols);
  }
}

std::vector<Captured> Captures::of(std::size_t which) {
  std::vector<Captured> out = std::move(taken_[which]);
  for (std::size_t i = 0; i < out.size(); ++i) out[i].name = names_[i];
  return out;
}

}  // namespace moesaic::model
