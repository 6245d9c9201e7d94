// The memory a forward pass works in: one buffer of the backend, planned once for the largest step
// from the configuration and the slice, its parts overlaid where their lives do not meet. Nothing
// is allocated per step.
#pragma once

#include <cstdint>
#include <memory>

#include "backend/backend.h"
#include "model/config.h"
#include "model/slice.h"

namespace moesaic::model {

// Matrices with the rows of the largest step; a step takes the first n rows of each.
struct ScratchPlan {
  // Live through a layer.
  backend::Mat hidden;   // (n, d_model) the residual stream
  backend::Mat normed;   // (n, d_model)
  backend::Mat partial;  // (n, d_model) what attention or MLP adds
  // Attention.
  backend::Mat q;         // (n, n_heads * d_head_k)
  backend::Mat k;         // (n, kv_k_width): keys, or MLA's latent rows
  backend::Mat v;         // (n, kv_v_width)
  backend::Mat q_lora;    // (n, q_lora)
  backend::Mat q_latent;  // (n, n_heads * (kv_lora + d_rope)): absorbed queries
  backend::Mat mixed;     // (n, n_heads * kv_lora or d_head_v): attention's output
  backend::Mat heads;     // (n, n_heads * d_v): MLA, after attn_v_b
  // FFN.
  backend::Mat router;       // (n, n_experts)
  backend::Mat gate;         // (n, d_ff)
  backend::Mat up;           // (n, d_ff)
  backend::Mat shared_gate;  // (n, n_shared * d_ff_expert)
  backend::Mat shared_up;    // (n, n_shared * d_ff_expert)
  backend::Mat slot_gate;    // (n * n_active, d_ff_expert)
  backend::Mat slot_up;      // (n * n_active, d_ff_expert)
  backend::Mat slot_down;    // (n * n_active, d_model)
  // Head.
  backend::Mat logits;  // (head_rows, vocab)

  std::int64_t n_floats = 0;         // of the buffer
  std::int64_t n_routing_slots = 0;  // of each routing buffer
};

// Logits are made for at most this many rows at a time.
std::int64_t head_rows(const Config& config, std::int64_t max_rows);

// What kinds of feed-forward layers a slice has: one without experts needs no room for them.
struct FfnKinds {
  bool dense = false;
  bool moe = false;
};
FfnKinds ffn_kinds(const Config& config, const Slice& slice);

// Offsets without a buffer, of exactly the slice's layers; logits where it has the head.
ScratchPlan plan_scratch(const Config& config, const Slice& slice, std::int64_t max_rows);
std::uint64_t plan_bytes(const ScratchPlan& plan);

// The plan with its memory.
class Scratch {
 public:
  Scratch(backend::Backend& backend, const Config& config, const Slice& slice,
          std::int64_t max_rows);

  const ScratchPlan& plan() const { return plan_; }
  backend::Routing routing(const Config& config, std::int64_t n_active, std::int64_t n_rows) const {
    return {experts_.get(), weights_.get(), n_rows, n_active, config.moe.n_experts};
  }

 private:
  ScratchPlan plan_;
  std::unique_ptr<backend::Buffer> floats_;
  std::unique_ptr<backend::Buffer> experts_;
  std::unique_ptr<backend::Buffer> weights_;
};

}  // namespace moesaic::model
