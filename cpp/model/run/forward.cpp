// The forward pass of a slice; see forward.h.
#include "model/run/forward.h"

#include <algorithm>
#include <array>

#include "model/file/cancel_scope.h"

namespace moesaic::model {

using backend::Mat;
using backend::SequenceRows;

backend::Backend::ScratchSpec backend_scratch(const Config& config, const Slice& slice,
                                              const ForwardOptions& options) {
  const MlaConfig& mla = config.mla;
  const bool is_mla = mla.kv_lora > 0;
  const FfnKinds kinds = ffn_kinds(config, slice);
  backend::Backend::ScratchSpec spec;
  spec.max_rows = options.max_rows;
  spec.max_cols =
      std::max({config.d_model, config.n_heads * config.d_head_v, mla.q_lora, mla.kv_lora});
  if (kinds.dense) spec.max_cols = std::max(spec.max_cols, config.d_ff);
  if (kinds.moe) {
    const std::int64_t shared = config.moe.n_shared * config.moe.d_ff_expert;
    spec.max_cols = std::max({spec.max_cols, config.moe.d_ff_expert, shared});
    spec.max_slots = options.max_rows * config.moe.n_active;
    spec.max_slot_cols = config.moe.d_ff_expert;
  }
  spec.max_n_ctx = options.n_ctx;
  spec.n_heads = config.n_heads;
  spec.d_k = is_mla ? mla.kv_lora + mla.d_rope : config.d_head_k;
  spec.d_v = is_mla ? mla.kv_lora : config.d_head_v;
  spec.kv_lora = mla.kv_lora;
  return spec;
}

Forward::Forward(backend::Backend& backend, const Config& config, const Slice& slice,
                 const ModelWeights& weights, backend::KvStore& kv, Exchange& exchange,
                 const ForwardOptions& options)
    : backend_(backend),
      config_(config),
      slice_(slice),
      weights_(weights),
      kv_(kv),
      exchange_(exchange),
      options_(options),
      scratch_(backend, config, slice, options.max_rows) {
  backend_.reserve(backend_scratch(config, slice, options));
  positions_.reserve(static_cast<std::size_t>(options.max_rows));
  if (slice.head) {
    logits_.resize(static_cast<std::size_t>(head_rows(config, options.max_rows) * config.vocab));
  }
}

bool Forward::takes_decompressed(const SequenceRows& rows) const {
  if (options_.deterministic || weights_.layers.empty()) return false;
  const LayerWeights& any = weights_.layers.front();
  return any.attn_w_k != nullptr &&
         prefer_decompressed(config_, rows.n_rows, rows.start + rows.n_rows,
                             mla_matmul_cost(any.attn_v_b->type()));
}

// Checks the rows and makes what the layers need to know of them; returns their number.
std::int64_t Forward::set_rows(const ForwardInput& input) {
  positions_.clear();
  decompressed_.clear();
  whole_ = input.sequences;
  std::int64_t n = 0;
  for (std::size_t i = 0; i < input.sequences.size(); ++i) {
    const SequenceRows& rows = input.sequences[i];
    if (rows.row_begin != n || rows.n_rows < 1 || rows.start < 0) {
      fail<InternalError>("[Forward.run] sequence ", i, ": got rows ", rows.row_begin, " + ",
                          rows.n_rows, " at ", rows.start, ", need them in order from row ", n);
    }
    if (n + rows.n_rows > options_.max_rows) {
      fail<ArgumentError>("[Forward.run] got ", n + rows.n_rows, " rows or more, need at most ",
                          options_.max_rows, " a step");
    }
    if (rows.start + rows.n_rows > options_.n_ctx) {
      fail<ArgumentError>("[Forward.run] sequence ", i, ": got positions up to ",
                          rows.start + rows.n_rows, ", need at most n_ctx, ", options_.n_ctx);
    }
    n += rows.n_rows;
    for (std::int64_t r = 0; r < rows.n_rows; ++r) {
      positions_.push_back(static_cast<std::int32_t>(rows.start + r));
    }
    decompressed_.push_back(takes_decompressed(rows) ? 1 : 0);
  }
  const std::size_t got = slice_.embed ? input.tokens.size() : input.hidden.size();
  const std::int64_t need = slice_.embed ? n : n * config_.d_model;
  if (n == 0 || got != static_cast<std::size_t>(need)) {
    fail<ArgumentError>("[Forward.run] got ", got, slice_.embed ? " tokens" : " hidden values",
                        " for ", n, " rows, need ", need, " and at least one row");
  }
  return n;
}

// Rows [begin, end) of the step; good until the next piece.
StepRows Forward::piece(std::int64_t begin, std::int64_t end) {
  cut_.clear();
  shifted_.clear();
  runs_.clear();
  shifted_.reserve(whole_.size());  // the runs point into it
  for (std::size_t i = 0; i < whole_.size(); ++i) {
    SequenceRows rows = whole_[i];
    const std::int64_t first = std::max(rows.row_begin, begin);
    const std::int64_t last = std::min(rows.row_begin + rows.n_rows, end);
    if (first >= last) continue;
    rows.start += first - rows.row_begin;
    rows.row_begin = first - begin;
    rows.n_rows = last - first;
    cut_.push_back(rows);
    const bool decompressed = decompressed_[i] != 0;
    if (runs_.empty() || runs_.back().decompressed != decompressed) {
      runs_.push_back({decompressed, rows.row_begin, 0, {shifted_.data() + shifted_.size(), 0}});
    }
    MlaRun& run = runs_.back();
    run.n_rows += rows.n_rows;
    run.sequences = {run.sequences.data(), run.sequences.size() + 1};
    rows.row_begin -= run.row_begin;
    shifted_.push_back(rows);
  }
  const auto at = static_cast<std::size_t>(begin);
  return {end - begin, cut_, std::span(positions_).subspan(at, static_cast<std::size_t>(end) - at),
          runs_};
}

void Forward::enter(const ForwardInput& input, std::int64_t n) {
  const Mat hidden = scratch_.plan().hidden.row_range(0, n);
  if (slice_.embed) {
    backend_.embed(*weights_.token_embd, input.tokens, hidden);
  } else {
    backend_.upload(*hidden.buffer, static_cast<std::size_t>(hidden.offset) * sizeof(float),
                    input.hidden.data(), input.hidden.size_bytes());
  }
}

// begin: the piece's first row of the step. Its rows of the residual stream are in place; all else
// in the scratch is the piece's own.
void Forward::run_piece(const LayerContext& context, std::int64_t layer, std::int64_t begin) {
  const ScratchPlan& plan = scratch_.plan();
  const std::int64_t n = context.rows.n;
  const Mat hidden = plan.hidden.row_range(begin, n);
  const Mat normed = plan.normed.row_range(0, n);
  const Mat partial = plan.partial.row_range(0, n);
  const LayerWeights& weights =
      weights_.layers[static_cast<std::size_t>(layer - slice_.layer_begin)];
  const LayerPlace place{layer, layer - slice_.layer_begin,
                         config_.layers[static_cast<std::size_t>(layer)], weights};
  const auto tap = [&](Tap which, const Mat& mat) {
    if (context.captures != nullptr && context.captures->wants(which, layer)) {
      context.captures->take(backend_, which, layer, mat);
    }
  };
  const auto exchange = [&](ExchangePoint point) {
    exchange_.start(backend_, layer, point, partial);
    exchange_.wait();
  };

  tap(Tap::kResidPre, hidden);
  backend_.rms_norm(hidden, weights.attn_norm.get(), config_.norm_eps, normed);
  run_attention(context, place, normed, partial);
  exchange(ExchangePoint::kAttention);
  tap(Tap::kAttnOut, partial);
  backend_.add(hidden, partial, hidden);
  tap(Tap::kResidMid, hidden);
  backend_.rms_norm(hidden, weights.ffn_norm.get(), config_.norm_eps, normed);
  run_ffn(context, place, normed, partial);
  exchange(ExchangePoint::kMlp);
  tap(Tap::kMlpOut, partial);
  backend_.add(hidden, partial, hidden);
  tap(Tap::kResidPost, hidden);
}

void Forward::run(const ForwardInput& input, const ForwardOutput& output) {
  const std::int64_t n = set_rows(input);
  const CancelScope cancel(backend_, input.cancel);
  enter(input, n);
  if (slice_.embed && output.captures != nullptr && output.captures->wants(Tap::kEmbed)) {
    output.captures->take(backend_, Tap::kEmbed, -1, scratch_.plan().hidden.row_range(0, n));
  }
  run_layers(input, output.captures, n);
  leave(input, output, n);
}

// Layer by layer, and within a layer piece by piece: its weights are read from memory once for
// pieces that follow each other. A piece sees the keys of those before it in the cache.
void Forward::run_layers(const ForwardInput& input, Captures* captures, std::int64_t n) {
  for (std::int64_t layer = slice_.layer_begin; layer < slice_.layer_end; ++layer) {
    for (std::int64_t begin = 0, end = 0; begin < n; begin = end) {
      if (layer > slice_.layer_begin || begin > 0) pause(input);
      if (input.cancel != nullptr) input.cancel->check();
      const std::int64_t most = input.piece_rows ? input.piece_rows() : n;
      end = std::min(n, begin + std::clamp<std::int64_t>(most, 1, n));
      if (captures != nullptr) captures->set_piece(begin, end - begin);
      const StepRows rows = piece(begin, end);
      run_piece({backend_, config_, scratch_, kv_, rows, captures, options_.deterministic}, layer,
                begin);
    }
  }
  if (captures != nullptr) captures->set_piece(0, n);
}

// What a piece needs of those before it is in scratch_ and the cache, both this pass's own.
void Forward::pause(const ForwardInput& input) {
  if (!input.between_pieces) return;
  backend_.synchronize();
  input.between_pieces();
  backend_.set_cancel(input.cancel);  // another pass may have lent its own
}

void Forward::leave(const ForwardInput& input, const ForwardOutput& output, std::int64_t n) {
  if (!output.hidden.empty()) {
    const Mat hidden = scratch_.plan().hidden.row_range(0, n);
    if (output.hidden.size() != static_cast<std::size_t>(n * config_.d_model)) {
      fail<InternalError>("[Forward.run] hidden: got room for ", output.hidden.size(),
                          " values, need ", n * config_.d_model);
    }
    backend_.download(*hidden.buffer, static_cast<std::size_t>(hidden.offset) * sizeof(float),
                      output.hidden.data(), output.hidden.size_bytes());
  }
  if (!slice_.head) {
    backend_.synchronize();
    return;
  }
  if (output.captures != nullptr && output.captures->wants(Tap::kFinalNorm)) {
    const ScratchPlan& plan = scratch_.plan();
    const Mat normed = plan.normed.row_range(0, n);
    backend_.rms_norm(plan.hidden.row_range(0, n), weights_.output_norm.get(), config_.norm_eps,
                      normed);
    output.captures->take(backend_, Tap::kFinalNorm, -1, normed);
  }
  make_logits(input, output);
  backend_.synchronize();
}

// Only the rows that want logits pass the final norm and the head, a few at a time.
void Forward::make_logits(const ForwardInput& input, const ForwardOutput& output) {
  const ScratchPlan& plan = scratch_.plan();
  const auto vocab = static_cast<std::size_t>(config_.vocab);
  std::span<const std::int32_t> left = output.logits_rows;
  while (!left.empty()) {
    pause(input);
    const auto rows = left.first(std::min(left.size(), static_cast<std::size_t>(plan.logits.rows)));
    left = left.subspan(rows.size());
    const auto n = static_cast<std::int64_t>(rows.size());
    const Mat normed = plan.normed.row_range(0, n);
    const Mat logits = plan.logits.row_range(0, n);
    backend_.gather_rows(plan.hidden, rows, normed);
    backend_.rms_norm(normed, weights_.output_norm.get(), config_.norm_eps, normed);
    backend_.matmul(normed, std::array{backend::MatmulTarget{weights_.head(), nullptr, logits}});
    backend_.download(*logits.buffer, static_cast<std::size_t>(logits.offset) * sizeof(float),
                      logits_.data(), rows.size() * vocab * sizeof(float));
    for (std::size_t i = 0; i < rows.size(); ++i) {
      output.logits->take(rows[i], std::span(logits_).subspan(i * vocab, vocab));
    }
  }
}

}  // namespace moesaic::model
