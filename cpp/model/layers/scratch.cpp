// Planning of a forward pass's memory; see scratch.h.
#include "model/layers/scratch.h"

#include <algorithm>

namespace moesaic::model {
namespace {

// Hands out matrices one behind the other, each at a multiple of 64 bytes.
class Bump {
 public:
  explicit Bump(std::int64_t begin) : at_(begin) {}
  backend::Mat take(std::int64_t rows, std::int64_t cols) {
    const backend::Mat mat{nullptr, at_, rows, cols, cols};
    at_ += (rows * cols + 15) / 16 * 16;
    return mat;
  }
  std::int64_t at() const { return at_; }

 private:
  std::int64_t at_;
};

std::int64_t plan_attention(const Config& config, std::int64_t n, std::int64_t begin,
                            ScratchPlan& plan) {
  Bump bump(begin);
  const MlaConfig& mla = config.mla;
  plan.q = bump.take(n, config.n_heads * config.d_head_k);
  plan.k = bump.take(n, config.kv_k_width());
  plan.v = bump.take(n, config.kv_v_width());
  if (mla.kv_lora > 0) {
    plan.q_lora = bump.take(n, mla.q_lora);
    plan.q_latent = bump.take(n, config.n_heads * (mla.kv_lora + mla.d_rope));
    plan.mixed = bump.take(n, config.n_heads * mla.kv_lora);
    plan.heads = bump.take(n, config.n_heads * mla.d_v);
  } else {
    plan.mixed = bump.take(n, config.n_heads * config.d_head_v);
  }
  return bump.at();
}

std::int64_t plan_ffn(const Config& config, const FfnKinds& kinds, std::int64_t n,
                      std::int64_t begin, ScratchPlan& plan) {
  Bump bump(begin);
  const MoeConfig& moe = config.moe;
  if (kinds.dense) {
    plan.gate = bump.take(n, config.d_ff);
    plan.up = bump.take(n, config.d_ff);
  }
  std::int64_t end = bump.at();
  if (kinds.moe) {
    bump = Bump(begin);
    plan.router = bump.take(n, moe.n_experts);
    plan.shared_gate = bump.take(n, moe.n_shared * moe.d_ff_expert);
    plan.shared_up = bump.take(n, moe.n_shared * moe.d_ff_expert);
    plan.slot_gate = bump.take(n * moe.n_active, moe.d_ff_expert);
    plan.slot_up = bump.take(n * moe.n_active, moe.d_ff_expert);
    plan.slot_down = bump.take(n * moe.n_active, config.d_model);
    plan.n_routing_slots = n * moe.n_active;
    end = std::max(end, bump.at());
  }
  return end;
}

void bind(ScratchPlan& plan, backend::Buffer* buffer) {
  for (backend::Mat* mat : {&plan.hidden, &plan.normed, &plan.partial, &plan.q, &plan.k, &plan.v,
                            &plan.q_lora, &plan.q_latent, &plan.mixed, &plan.heads, &plan.router,
                            &plan.gate, &plan.up, &plan.shared_gate, &plan.shared_up,
                            &plan.slot_gate, &plan.slot_up, &plan.slot_down, &plan.logits}) {
    mat->buffer = buffer;
  }
}

}  // namespace

std::int64_t head_rows(const Config& config, std::int64_t max_rows) {
  // 16 MiB of logits at a time, but enough rows that reading the head's weights is not the cost.
  constexpr std::int64_t kFloats = std::int64_t{4} << 20;
  constexpr std::int64_t kRows = 32;
  return std::min(std::max(kFloats / config.vocab, kRows), max_rows);
}

FfnKinds ffn_kinds(const Config& config, const Slice& slice) {
  FfnKinds kinds;
  for (std::int64_t l = slice.layer_begin; l < slice.layer_end; ++l) {
    const bool is_moe = config.layers[static_cast<std::size_t>(l)].ffn == FfnKind::kMoe;
    (is_moe ? kinds.moe : kinds.dense) = true;
  }
  return kinds;
}

ScratchPlan plan_scratch(const Config& config, const Slice& slice, std::int64_t max_rows) {
  ScratchPlan plan;
  Bump bump(0);
  plan.hidden = bump.take(max_rows, config.d_model);
  plan.normed = bump.take(max_rows, config.d_model);
  plan.partial = bump.take(max_rows, config.d_model);
  const std::int64_t shared = bump.at();  // attention, FFN and head follow each other in time
  std::int64_t end = plan_attention(config, max_rows, shared, plan);
  end = std::max(end, plan_ffn(config, ffn_kinds(config, slice), max_rows, shared, plan));
  if (slice.head) {
    Bump last(shared);
    plan.logits = last.take(head_rows(config, max_rows), config.vocab);
    end = std::max(end, last.at());
  }
  plan.n_floats = end;
  return plan;
}

std::uint64_t plan_bytes(const ScratchPlan& plan) {
  return static_cast<std::uint64_t>(plan.n_floats) * sizeof(float) +
         static_cast<std::uint64_t>(plan.n_routing_slots) * (sizeof(float) + sizeof(std::int32_t));
}

Scratch::Scratch(backend::Backend& backend, const Config& config, const Slice& slice,
                 std::int64_t max_rows)
    : plan_(plan_scratch(config, slice, max_rows)) {
  floats_ = backend.allocate(static_cast<std::size_t>(plan_.n_floats) * sizeof(float));
  const auto slots = static_cast<std::size_t>(std::max<std::int64_t>(plan_.n_routing_slots, 1));
  experts_ = backend.allocate(slots * sizeof(std::int32_t));
  weights_ = backend.allocate(slots * sizeof(float));
  bind(plan_, floats_.get());
}

}  // namespace moesaic::model
