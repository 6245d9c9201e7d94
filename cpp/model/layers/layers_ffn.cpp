// The feed-forward part of a layer: dense, or routed experts with shared ones; see layers.h.
#include <array>
#include <vector>

#include "model/layers/layers.h"

namespace moesaic::model {
namespace {

using backend::Mat;
using backend::MatmulTarget;

// The least sum that chosen weights are divided by: the smallest normal half.
constexpr float kNormFloor = 6.103515625e-5F;

Mat first(const Mat& mat, std::int64_t n) { return mat.row_range(0, n); }

// The same memory as rows of so many columns, one after the other.
Mat with_cols(const Mat& mat, std::int64_t n_cols) {
  return {mat.buffer, mat.offset, mat.rows, n_cols, n_cols};
}

void run_dense(const LayerContext& context, const LayerPlace& place, const Mat& normed,
               const Mat& out) {
  backend::Backend& backend = context.backend;
  const LayerWeights& w = place.weights;
  const Mat gate = with_cols(first(context.scratch.plan().gate, context.rows.n), place.config.d_ff);
  const Mat up = with_cols(first(context.scratch.plan().up, context.rows.n), place.config.d_ff);
  backend.matmul(normed, std::array{MatmulTarget{w.ffn_gate.get(), w.ffn_gate_bias.get(), gate},
                                    MatmulTarget{w.ffn_up.get(), w.ffn_up_bias.get(), up}});
  backend.gated_activation(gate, up, context.config.activation, gate);
  backend.matmul(gate, std::array{MatmulTarget{w.ffn_down.get(), w.ffn_down_bias.get(), out}});
}

backend::RouterSpec router_spec(const MoeConfig& moe, std::int64_t n_active,
                                const LayerWeights& w) {
  return {.function = moe.function,
          .selection_bias = w.selection_bias.get(),
          .n_active = n_active,
          .n_groups = moe.n_groups,
          .n_groups_used = moe.n_groups_used,
          .group_score_top2 = moe.group_score_top2,
          .normalize = moe.normalize,
          .norm_floor = kNormFloor,
          .scale = moe.scale};
}

void take_router(const LayerContext& context, std::int64_t layer, const Mat& logits,
                 const backend::Routing& routing) {
  Captures& captures = *context.captures;
  const auto wants = [&](Tap tap) { return captures.wants(tap, layer); };
  if (wants(Tap::kRouterLogits)) captures.take(context.backend, Tap::kRouterLogits, layer, logits);
  if (wants(Tap::kRouterExperts)) {
    captures.take_ints(context.backend, Tap::kRouterExperts, layer, *routing.experts,
                       routing.n_active);
  }
  if (wants(Tap::kRouterWeights)) {
    const Mat weights{routing.weights, 0, routing.n, routing.n_active, routing.n_active};
    captures.take(context.backend, Tap::kRouterWeights, layer, weights);
  }
}

void run_moe(const LayerContext& context, const LayerPlace& place, const Mat& normed,
             const Mat& out) {
  backend::Backend& backend = context.backend;
  const Config& config = context.config;
  const LayerWeights& w = place.weights;
  const std::int64_t n = context.rows.n;
  const ScratchPlan& plan = context.scratch.plan();
  const bool shared = w.gate_shexp != nullptr;

  // Router and shared experts read the same rows: one preparation of them serves all three.
  const Mat logits = first(plan.router, n);
  const Mat shared_gate = first(plan.shared_gate, n);
  const Mat shared_up = first(plan.shared_up, n);
  const std::array targets{MatmulTarget{w.router.get(), w.router_bias.get(), logits},
                           MatmulTarget{w.gate_shexp.get(), nullptr, shared_gate},
                           MatmulTarget{w.up_shexp.get(), nullptr, shared_up}};
  backend.matmul(normed, std::span(targets).first(shared ? 3 : 1));

  const std::int64_t n_active = place.config.n_active;
  const backend::Routing routing = context.scratch.routing(config, n_active, n);
  backend.route(logits, router_spec(config.moe, n_active, w), routing);
  if (context.captures != nullptr) take_router(context, place.layer, logits, routing);

  const std::int64_t slots = n * n_active;
  const Mat gate = first(plan.slot_gate, slots);
  const Mat up = first(plan.slot_up, slots);
  const Mat down = first(plan.slot_down, slots);
  backend.grouped_matmul(normed, backend::GroupedInput::kRow, routing,
                         std::array{MatmulTarget{w.gate_exps.get(), w.gate_exps_bias.get(), gate},
                                    MatmulTarget{w.up_exps.get(), w.up_exps_bias.get(), up}});
  backend.gated_activation(gate, up, config.activation, gate);
  backend.grouped_matmul(gate, backend::GroupedInput::kSlot, routing,
                         std::array{MatmulTarget{w.down_exps.get(), w.down_exps_bias.get(), down}});
  if (shared) {
    backend.gated_activation(shared_gate, shared_up, config.activation, shared_gate);
    backend.matmul(shared_gate, std::array{MatmulTarget{w.down_shexp.get(), nullptr, out}});
  }
  backend.combine(down, routing, shared ? &out : nullptr, out);
}

}  // namespace

void run_ffn(const LayerContext& context, const LayerPlace& place, const backend::Mat& normed,
             const backend::Mat& out) {
  if (place.config.ffn == FfnKind::kMoe) {
    run_moe(context, place, normed, out);
  } else {
    run_dense(context, place, normed, out);
  }
}

}  // namespace moesaic::model
