// A whole model on this machine; see local_runner.h.
#include "model/local_runner.h"

#include <algorithm>
#include <optional>

#include "base/aligned_buffer.h"
#include "model/identity.h"
#include "model/sampler.h"
#include "model/step_results.h"

namespace moesaic::model {

std::unique_ptr<LocalRunner> LocalRunner::load(const std::shared_ptr<const gguf::File>& file,
                                               const LoadOptions& options) {
  validate(options);
  ModelFile model = understand(file);
  auto backend = backend::make_backend(options.backend, {.n_threads = options.threads});
  const std::int64_t kv_tokens =
      fit_kv_tokens(model, Slice::whole(model.config), options, *backend, available_memory_bytes());
  return std::unique_ptr<LocalRunner>(
      new LocalRunner(std::move(model), options, std::move(backend), kv_tokens));
}

LocalRunner::LocalRunner(ModelFile model, const LoadOptions& options,
                         std::unique_ptr<backend::Backend> backend, std::int64_t kv_tokens)
    : model_(std::move(model)),
      options_(options),
      backend_(std::move(backend)),
      pages_((kv_tokens + options.page_tokens - 1) / options.page_tokens, options.page_tokens) {
  options_.kv_tokens = kv_tokens;
  const Slice slice = Slice::whole(model_.config);
  memory_ = memory_need(model_, slice, options_, *backend_);
  weights_ = load_weights(*backend_, model_, slice,
                          {.decompressed_mla = !options.deterministic,
                           .prefault = options.prefault,
                           .progress = options.progress,
                           .cancel = options.cancel});
  kv_ = backend_->make_kv(kv_spec(model_.config, slice, options_, kv_tokens));
  forward_ = std::make_unique<Forward>(*backend_, model_.config, slice, weights_, *kv_, exchange_,
                                       forward_options(options_));
  options_.progress = nullptr;  // the caller's; their lives end with load()
  options_.cancel = nullptr;
}

void LocalRunner::release(const std::vector<std::int32_t>& pages) {
  if (!pages.empty()) backend_->kv_release(*kv_, pages);
}

void LocalRunner::close(SequenceId sequence) {
  std::vector<std::int32_t> released;
  pages_.close(sequence, released);
  release(released);
}

void LocalRunner::truncate(SequenceId sequence, std::int64_t n_tokens) {
  std::vector<std::int32_t> released;
  pages_.truncate(sequence, n_tokens, released);
  release(released);
}

std::int64_t LocalRunner::pages_needed(SequenceId sequence, std::int64_t start,
                                       std::int64_t n_rows) const {
  const KvPages::Write write{sequence, start, n_rows};
  return std::max<std::int64_t>(
      0, pages_.pages_needed(std::span(&write, 1)) - pages_.pages_freed(sequence, start));
}

std::vector<std::uint8_t> LocalRunner::save(SequenceId sequence) {
  const std::int64_t n = pages_.length(sequence);
  const std::size_t layer_bytes = static_cast<std::size_t>(n) * backend_->kv_row_bytes(kv_->spec());
  std::vector<std::uint8_t> bytes(layer_bytes * static_cast<std::size_t>(model_.config.n_layers));
  if (n == 0) return bytes;
  for (std::int64_t layer = 0; layer < model_.config.n_layers; ++layer) {
    backend_->kv_read(*kv_, layer, pages_.pages(sequence), 0, n,
                      bytes.data() + static_cast<std::size_t>(layer) * layer_bytes);
  }
  return bytes;
}

SequenceId LocalRunner::load(std::span<const std::uint8_t> bytes, std::int64_t n_tokens) {
  if (n_tokens < 0 || n_tokens > options_.n_ctx) {
    fail<ArgumentError>("[load_session] got ", n_tokens, " tokens, need 0 to n_ctx, ",
                        options_.n_ctx);
  }
  const std::size_t layer_bytes =
      static_cast<std::size_t>(n_tokens) * backend_->kv_row_bytes(kv_->spec());
  const std::size_t need = layer_bytes * static_cast<std::size_t>(model_.config.n_layers);
  if (bytes.size() != need) {
    fail<FormatError>("[load_session] cache: got ", bytes.size(), " bytes for ", n_tokens,
                      " tokens, need ", need);
  }
  const SequenceId sequence = pages_.open();
  if (n_tokens == 0) return sequence;
  try {
    const KvPages::Write write{sequence, 0, n_tokens};
    std::vector<KvPages::Copy> copies;
    pages_.prepare(std::span(&write, 1), backend_->kv_page_bytes(kv_->spec()), copies);
    for (std::int64_t layer = 0; layer < model_.config.n_layers; ++layer) {
      backend_->kv_restore(*kv_, layer, pages_.pages(sequence), 0, n_tokens,
                           bytes.data() + static_cast<std::size_t>(layer) * layer_bytes);
    }
    pages_.commit(write);
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

void LocalRunner::check(const Step& step) const {
  std::int64_t n_rows = 0;
  for (const SequenceStep& sequence : step.sequences) {
    const auto n = static_cast<std::int64_t>(sequence.tokens.size());
    const std::int64_t length = pages_.length(sequence.sequence);
    if (n < 1) fail<ArgumentError>("[run] tokens: got none, need at least one");
    if (sequence.start < 0 || sequence.start > length) {
      fail<ArgumentError>("[run] start: got ", sequence.start, ", need 0 to ", length,
                          ", the cached tokens of this sequence");
    }
    if (sequence.start + n > options_.n_ctx) {
      fail<ArgumentError>("[run] tokens: got positions up to ", sequence.start + n,
                          ", need at most n_ctx, ", options_.n_ctx,
                          "; load the model with a larger n_ctx");
    }
    for (const std::int32_t token : sequence.tokens) {
      if (token < 0 || token >= model_.config.vocab) {
        fail<ArgumentError>("[run] tokens: got ", token, ", need 0 to ", model_.config.vocab - 1);
      }
    }
    for (const Target& target : sequence.targets) {
      if (target.row < 0 || target.row >= n || target.token < 0 ||
          target.token >= model_.config.vocab) {
        fail<ArgumentError>("[run] targets: got row ", target.row, ", token ", target.token,
                            ", need a row below ", n, " and a token below ", model_.config.vocab);
      }
    }
    if (sequence.sampler != nullptr) model::validate(*sequence.sampler, model_.config.vocab);
    n_rows += n;
  }
  if (n_rows < 1 || n_rows > max_step_rows()) {
    fail<ArgumentError>("[run] step: got ", n_rows, " rows, need 1 to ", max_step_rows());
  }
  for (std::size_t i = 0; i < step.sequences.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (step.sequences[i].sequence == step.sequences[j].sequence) {
        fail<ArgumentError>("[run] step: sequence ", step.sequences[i].sequence,
                            " stands in it twice, need each once");
      }
    }
  }
}

// Drops what lies past each start and makes the pages of the step's rows each sequence's own.
void LocalRunner::claim(const Step& step) {
  writes_.clear();
  std::vector<std::int32_t> released;
  for (const SequenceStep& sequence : step.sequences) {
    pages_.truncate(sequence.sequence, sequence.start, released);
    writes_.push_back(
        {sequence.sequence, sequence.start, static_cast<std::int64_t>(sequence.tokens.size())});
  }
  release(released);
  std::vector<KvPages::Copy> copies;
  pages_.prepare(writes_, backend_->kv_page_bytes(kv_->spec()), copies);
  for (const KvPages::Copy& copy : copies) backend_->kv_copy_page(*kv_, copy.from, copy.to);
}

StepResult LocalRunner::run(const Step& step) {
  check(step);
  claim(step);
  tokens_.clear();
  rows_.clear();
  logits_rows_.clear();
  std::vector<Captures::Rows> captured;
  for (const SequenceStep& sequence : step.sequences) {
    const auto begin = static_cast<std::int64_t>(tokens_.size());
    const auto n = static_cast<std::int64_t>(sequence.tokens.size());
    rows_.push_back({begin, n, sequence.start, pages_.pages(sequence.sequence)});
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
  for (const KvPages::Write& write : writes_) pages_.commit(write);
  return results.finish();
}

}  // namespace moesaic::model
