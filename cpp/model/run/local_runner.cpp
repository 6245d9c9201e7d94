// A whole model on this machine; see local_runner.h.
#include "model/run/local_runner.h"

#include <optional>

#include "base/aligned_buffer.h"
#include "model/arch/identity.h"
#include "model/file/merged_experts.h"
#include "model/run/step_check.h"
#include "model/run/step_results.h"

namespace moesaic::model {

std::unique_ptr<LocalRunner> LocalRunner::load(const std::shared_ptr<const gguf::File>& file,
                                               const LoadOptions& options) {
  validate(options);
  ModelFile model = understand(with_merged_experts(file), options.overrides);
  auto backend = backend::make_backend(options.backend, {.n_threads = options.threads});
  const Slice slice = Slice::whole(model.config);
  const std::uint64_t free_bytes = available_memory_bytes();
  const LoadOptions chosen = with_room(model, slice, options, *backend, free_bytes);
  const std::int64_t kv_tokens = fit_kv_tokens(model, slice, chosen, *backend, free_bytes);
  return std::unique_ptr<LocalRunner>(
      new LocalRunner(std::move(model), chosen, std::move(backend), kv_tokens));
}

LocalRunner::LocalRunner(ModelFile model, const LoadOptions& options,
                         std::unique_ptr<backend::Backend> backend, std::int64_t kv_tokens)
    : model_(std::move(model)), options_(options), backend_(std::move(backend)) {
  options_.kv_tokens = kv_tokens;
  const Slice slice = Slice::whole(model_.config);
  memory_ = memory_need(model_, slice, options_, *backend_);
  weights_ = load_weights(*backend_, model_, slice,
                          {.decompressed_mla = !options.deterministic,
                           .prefault = options.prefault,
                           .progress = options.progress,
                           .cancel = options.cancel});
  kv_ =
      std::make_unique<KvCache>(*backend_, kv_spec(model_, slice, options_, kv_tokens, *backend_));
  forward_ = std::make_unique<Forward>(*backend_, model_.config, slice, weights_, kv_->store(),
                                       exchange_, forward_options(options_));
  options_.progress = nullptr;  // the caller's; their lives end with load()
  options_.cancel = nullptr;
}

std::vector<std::uint8_t> LocalRunner::save(SequenceId sequence, const CancelFlag* cancel) {
  const std::int64_t n = length(sequence);
  const std::size_t layer_bytes = static_cast<std::size_t>(n) * kv_->row_bytes();
  std::vector<std::uint8_t> bytes(layer_bytes * static_cast<std::size_t>(model_.config.n_layers));
  if (n == 0) return bytes;
  for (std::int64_t layer = 0; layer < model_.config.n_layers; ++layer) {
    if (cancel != nullptr) cancel->check();
    kv_->read(sequence, layer, 0, n, bytes.data() + static_cast<std::size_t>(layer) * layer_bytes);
  }
  return bytes;
}

std::uint64_t LocalRunner::kv_token_bytes() const {
  return kv_->row_bytes() * static_cast<std::uint64_t>(model_.config.n_layers);
}

SequenceId LocalRunner::load(std::span<const std::uint8_t> bytes,
                             std::span<const std::int32_t> tokens, const CancelFlag* cancel) {
  const auto n_tokens = static_cast<std::int64_t>(tokens.size());
  if (n_tokens < 0 || n_tokens > options_.n_ctx) {
    fail<ArgumentError>("[load_session] got ", n_tokens, " tokens, need 0 to n_ctx, ",
                        options_.n_ctx);
  }
  const std::size_t layer_bytes = static_cast<std::size_t>(n_tokens) * kv_->row_bytes();
  const std::size_t need = static_cast<std::size_t>(n_tokens) * kv_token_bytes();
  if (bytes.size() != need) {
    fail<FormatError>("[load_session] cache: got ", bytes.size(), " bytes for ", n_tokens,
                      " tokens, need ", need);
  }
  const SequenceId sequence = open();
  if (n_tokens == 0) return sequence;
  try {
    const KvPages::Write write{sequence, 0, n_tokens};
    kv_->claim(std::span(&write, 1));
    for (std::int64_t layer = 0; layer < model_.config.n_layers; ++layer) {
      if (cancel != nullptr) cancel->check();
      kv_->restore(sequence, layer, 0, n_tokens,
                   bytes.data() + static_cast<std::size_t>(layer) * layer_bytes);
    }
    kv_->commit(std::span(&write, 1));
  } catch (...) {
    close(sequence);
    throw;
  }
  return sequence;
}

std::string LocalRunner::identity() const {
  if (identity_.empty()) identity_ = identity_of(*model_.file, options_.kv_type);
  return identity_;
}

std::vector<std::string> LocalRunner::capture_names() const {
  return model::capture_names(model_.config);
}

StepResult LocalRunner::run(const Step& step) {
  check_step(step, limits_of(*this));
  model_.file->check_intact();
  writes_.clear();
  for (const SequenceStep& sequence : step.sequences) {
    writes_.push_back(
        {sequence.sequence, sequence.start, static_cast<std::int64_t>(sequence.tokens.size())});
  }
  kv_->claim(writes_);
  tokens_.clear();
  rows_.clear();
  logits_rows_.clear();
  std::vector<Captures::Rows> captured;
  for (const SequenceStep& sequence : step.sequences) {
    const auto begin = static_cast<std::int64_t>(tokens_.size());
    const auto n = static_cast<std::int64_t>(sequence.tokens.size());
    rows_.push_back({begin, n, sequence.start, pages().pages(sequence.sequence)});
    if (sequence.capture) captured.push_back({begin, n});
    tokens_.insert(tokens_.end(), sequence.tokens.begin(), sequence.tokens.end());
  }
  list_logits_rows(step, logits_rows_);

  std::optional<Captures> captures;
  if (!step.capture.empty() && !captured.empty()) {
    captures.emplace(model_.config, step.capture, std::move(captured));
  }
  Captures* taps = captures ? &*captures : nullptr;
  StepResults results(step, model_.config.vocab, taps);
  forward_->run({.tokens = tokens_, .hidden = {}, .sequences = rows_, .cancel = step.cancel},
                {.logits_rows = logits_rows_, .logits = &results, .hidden = {}, .captures = taps});
  model_.file->check_intact();
  kv_->commit(writes_);
  return results.finish();
}

}  // namespace moesaic::model
