// Names of taps and taking them; see taps.h.
#include "model/layers/taps.h"

#include <algorithm>
#include <array>
#include <charconv>
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

constexpr std::array<TapName, 3> kOuterTaps{
    {{Tap::kEmbed, "embed"}, {Tap::kFinalNorm, "final_norm"}, {Tap::kLogits, "logits"}}};

bool is_router(Tap tap) {
  return tap == Tap::kRouterLogits || tap == Tap::kRouterExperts || tap == Tap::kRouterWeights;
}

// The tap and layer of a name; nothing for a name that this model does not have.
std::optional<std::pair<Tap, std::int64_t>> parse(const Config& config, std::string_view name) {
  for (const TapName& tap : kOuterTaps) {
    if (name == tap.name) return std::pair(tap.tap, std::int64_t{-1});
  }
  constexpr std::string_view kBlocks = "blocks.";
  if (!name.starts_with(kBlocks)) return std::nullopt;
  std::int64_t layer = -1;
  const char* begin = name.data() + kBlocks.size();
  const char* end = name.data() + name.size();
  const auto [rest, error] = std::from_chars(begin, end, layer);
  if (error != std::errc() || rest == end || *rest != '.' || layer < 0 ||
      layer >= config.n_layers || name != strcat(kBlocks, layer, std::string_view(rest, end))) {
    return std::nullopt;
  }
  const bool moe = config.layers[static_cast<std::size_t>(layer)].ffn == FfnKind::kMoe;
  for (const TapName& tap : kLayerTaps) {
    if (std::string_view(rest + 1, end) == tap.name && (moe || !is_router(tap.tap))) {
      return std::pair(tap.tap, layer);
    }
  }
  return std::nullopt;
}

}  // namespace

std::vector<std::string> capture_names(const Config& config) {
  std::vector<std::string> names{"embed"};
  for (std::int64_t i = 0; i < config.n_layers; ++i) {
    const bool moe = config.layers[static_cast<std::size_t>(i)].ffn == FfnKind::kMoe;
    for (const TapName& tap : kLayerTaps) {
      if (moe || !is_router(tap.tap)) names.push_back(strcat("blocks.", i, ".", tap.name));
    }
  }
  names.insert(names.end(), {"final_norm", "logits"});
  return names;
}

bool makes_capture(const Config& config, const Slice& slice, std::string_view name) {
  const auto found = parse(config, name);
  if (!found) return false;
  const auto [tap, layer] = *found;
  if (tap == Tap::kEmbed) return slice.embed;
  if (tap == Tap::kFinalNorm || tap == Tap::kLogits) return slice.head;
  return layer >= slice.layer_begin && layer < slice.layer_end;
}

Captures::Captures(const Config& config, std::span<const std::string> names, std::vector<Rows> rows)
    : index_(slot(Tap::kEmbed, config.n_layers), -1),
      names_(names.begin(), names.end()),
      rows_(std::move(rows)),
      taken_(rows_.size(), std::vector<Captured>(names.size())) {
  for (std::size_t i = 0; i < names_.size(); ++i) {
    const auto found = parse(config, names_[i]);
    if (!found) {
      fail<ArgumentError>(
          "[run] capture: got '", names_[i], "', need a name like embed, ",
          "blocks.N.resid_post (N below ", config.n_layers,
          "), blocks.N.router.experts (of layers with experts), final_norm, logits");
    }
    std::int32_t& index = index_[slot(found->first, found->second)];
    if (index >= 0) fail<ArgumentError>("[run] capture: '", names_[i], "' is given twice");
    index = static_cast<std::int32_t>(i);
  }
}

void Captures::set_piece(std::int64_t first_row, std::int64_t n_rows) {
  piece_ = {first_row, n_rows};
}

Captures::Rows Captures::in_piece(const Rows& wanted) const {
  const std::int64_t begin = std::max(wanted.begin, piece_.begin);
  const std::int64_t end = wanted.begin + wanted.count;
  const std::int64_t until = end - piece_.begin < piece_.count ? end : piece_.begin + piece_.count;
  return {begin, std::max<std::int64_t>(0, until - begin)};
}

void Captures::take(backend::Backend& backend, Tap tap, std::int64_t layer, const backend::Mat& x) {
  const auto name = static_cast<std::size_t>(index_[slot(tap, layer)]);
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    Captured& out = taken_[i][name];
    out.n_rows = rows_[i].count;
    out.n_cols = x.cols;
    out.values.resize(static_cast<std::size_t>(out.n_rows * out.n_cols));
    const Rows rows = in_piece(rows_[i]);
    if (rows.count == 0) continue;
    const std::int64_t first = x.offset + (rows.begin - piece_.begin) * x.stride;
    backend.download(*x.buffer, static_cast<std::size_t>(first) * sizeof(float),
                     out.values.data() + (rows.begin - rows_[i].begin) * x.cols,
                     static_cast<std::size_t>(rows.count * x.cols) * sizeof(float));
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
    const Rows rows = in_piece(rows_[i]);
    if (rows.count == 0) continue;
    const std::int64_t first = (rows.begin - piece_.begin) * cols;
    backend.download(buffer, static_cast<std::size_t>(first) * sizeof(std::int32_t),
                     out.ids.data() + (rows.begin - rows_[i].begin) * cols,
                     static_cast<std::size_t>(rows.count * cols) * sizeof(std::int32_t));
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
