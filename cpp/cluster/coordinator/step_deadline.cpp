// See step_deadline.h.
#include "cluster/coordinator/step_deadline.h"

#include <algorithm>
#include <vector>

#include "cluster/plan/plan_time.h"

namespace moesaic::cluster {
namespace {

constexpr double kFactor = 10;
// The first step may read its weights from a disk: never slower than this.
constexpr double kSlowDiskBytesPerS = 32e6;
constexpr double kLowReadBytesPerS = 1e9;
constexpr double kLowOpsPerS = 1e10;
constexpr double kMostSeconds = 3600;

}  // namespace

std::chrono::milliseconds step_deadline(const ModelCost& model, std::span<const NodeFacts> nodes,
                                        std::int64_t micro_batch_rows, std::int64_t n_ctx) {
  std::vector<LayerCost> layers = model.layers;
  layers.push_back(model.head);
  double longest = 0;
  for (const NodeFacts& facts : nodes) {
    NodeFacts node = facts;
    if (!(node.read_bytes_per_s > 0)) node.read_bytes_per_s = kLowReadBytesPerS;
    if (!(node.matmul_ops_per_s > 0)) node.matmul_ops_per_s = kLowOpsPerS;
    for (const LayerCost& layer : layers) {
      const double seconds = layer_seconds(
          model, layer, node, static_cast<double>(micro_batch_rows), static_cast<double>(n_ctx));
      longest = std::max(longest, kFactor * seconds + layer.weights_bytes / kSlowDiskBytesPerS);
    }
  }
  return std::chrono::milliseconds(
      static_cast<std::int64_t>(1e3 * std::min(longest, kMostSeconds)));
}

}  // namespace moesaic::cluster
