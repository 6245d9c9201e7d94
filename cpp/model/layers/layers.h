// What one layer computes, in a backend's operations: attention (grouped, MLA absorbed, MLA
// decompressed) and FFN (dense, experts with shared ones), shared by all families; which of them a
// layer is stands in its LayerConfig, which weights it has in its LayerWeights. Not for residuals,
// norms before them, or exchanges: forward.cpp.
#pragma once

#include <cstdint>
#include <span>

#include "backend/backend.h"
#include "model/config.h"
#include "model/file/tensor_list.h"
#include "model/layers/scratch.h"
#include "model/layers/taps.h"

namespace moesaic::model {

// Neighbouring sequences of a step that take the same form of MLA; row_begin of `sequences` counts
// from the run's first row.
struct MlaRun {
  bool decompressed = false;
  std::int64_t row_begin = 0;
  std::int64_t n_rows = 0;
  std::span<const backend::SequenceRows> sequences;
};

// The rows of a step, as the layers see them.
struct StepRows {
  std::int64_t n = 0;
  std::span<const backend::SequenceRows> sequences;  // in order, together all n rows
  std::span<const std::int32_t> positions;           // (n)
  std::span<const MlaRun> mla_runs;                  // all sequences, for models with MLA
};

// What stays the same over the layers of a forward pass.
struct LayerContext {
  backend::Backend& backend;
  const Config& config;
  const Scratch& scratch;
  backend::KvStore& kv;
  const StepRows& rows;
  Captures* captures = nullptr;  // null: none
  bool exact = true;             // products of float32 in attention: the same bits on any CPU
};

// One layer's place: its number in the model, in the cache, and what it is.
struct LayerPlace {
  std::int64_t layer = 0;     // of the model
  std::int64_t kv_layer = 0;  // of the cache's layers
  const LayerConfig& config;
  const LayerWeights& weights;
};

// normed (n, d_model) -> out (n, d_model), before the residual; writes the rows into the cache.
void run_attention(const LayerContext& context, const LayerPlace& place, const backend::Mat& normed,
                   const backend::Mat& out);
void run_ffn(const LayerContext& context, const LayerPlace& place, const backend::Mat& normed,
             const backend::Mat& out);

// Whether the decompressed form of MLA is cheaper for n_rows queries over n_keys cached rows, by
// multiply-adds. matmul_cost: of a multiply-add with a weight, in those of attention.
bool prefer_decompressed(const Config& config, std::int64_t n_rows, std::int64_t n_keys,
                         double matmul_cost);
// matmul_cost for the type of attn_v_b: eight-bit dots cost about a third of attention's floats
// (measured with 16 heads of Kimi's sizes: the forms meet at 60 rows, with float weights at 180).
double mla_matmul_cost(quant::Qtype type);

}  // namespace moesaic::model
