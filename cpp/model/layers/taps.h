// Capture names and the arrays that a step's captures become. A tap that nobody asked for costs one
// look-up. Later the same names take edits. Not for globs: names are resolved before.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"
#include "model/runner.h"
#include "model/slice.h"

namespace moesaic::model {

enum class Tap {
  kEmbed,
  kResidPre,
  kAttnOut,
  kResidMid,
  kRouterLogits,
  kRouterExperts,
  kRouterWeights,
  kMlpOut,
  kResidPost,
  kFinalNorm,
  kLogits,
};
inline constexpr std::size_t kTapCount = 11;

// Every capture name of a model, in order of the forward pass.
std::vector<std::string> capture_names(const Config& config);

// Whether a slice makes what a capture name asks for; false for an unknown name.
bool makes_capture(const Config& config, const Slice& slice, std::string_view name);

// The rows of a step that captures are taken of, and what was asked.
class Captures {
 public:
  struct Rows {
    std::int64_t begin = 0;  // of the step
    std::int64_t count = 0;
  };
  // Throws ArgumentError for an unknown name.
  Captures(const Config& config, std::span<const std::string> names, std::vector<Rows> rows);

  bool wants(Tap tap, std::int64_t layer = -1) const { return index_[slot(tap, layer)] >= 0; }
  // Which rows of the step the next ones that are taken are; without it, all of them.
  void set_piece(std::int64_t first_row, std::int64_t n_rows);
  // x (n, cols): the piece's rows, contiguous; takes the wanted ones to the host.
  void take(backend::Backend& backend, Tap tap, std::int64_t layer, const backend::Mat& x);
  // Integers (n, cols) from index 0 of a buffer.
  void take_ints(backend::Backend& backend, Tap tap, std::int64_t layer,
                 const backend::Buffer& buffer, std::int64_t cols);
  // One row of the step from the host: logits.
  void take_row(Tap tap, std::int64_t row, std::span<const float> values);

  const std::vector<Rows>& rows() const { return rows_; }
  // The captures of the rows()[which], in the order of the names; moves them out.
  std::vector<Captured> of(std::size_t which);

 private:
  static std::size_t slot(Tap tap, std::int64_t layer) {
    return static_cast<std::size_t>(layer + 1) * kTapCount + static_cast<std::size_t>(tap);
  }
  std::vector<std::int32_t> index_;  // of a name by slot, -1: not wanted
  // Which of `wanted` are in the piece: rows [begin, begin + count) of the step; count 0: none.
  Rows in_piece(const Rows& wanted) const;

  std::vector<std::string> names_;
  std::vector<Rows> rows_;
  Rows piece_{0, std::numeric_limits<std::int64_t>::max()};
  std::vector<std::vector<Captured>> taken_;  // [which rows][name]
};

}  // namespace moesaic::model
