// The Runner whose layers are here: a whole model on one backend of this machine.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "model/arch/model_file.h"
#include "model/run/exchange.h"
#include "model/run/forward.h"
#include "model/run/memory.h"
#include "model/run/weights.h"
#include "model/runner.h"
#include "model/state/kv_cache.h"

namespace moesaic::model {

class LocalRunner final : public Runner {
 public:
  // Checks the file, then the memory, then loads. Throws FormatError, OutOfMemoryError,
  // ArgumentError, or CancelledError within a second of the flag being set.
  static std::unique_ptr<LocalRunner> load(const std::shared_ptr<const gguf::File>& file,
                                           const LoadOptions& options);

  backend::DeviceInfo device() const { return backend_->info(); }

  const Config& config() const override { return model_.config; }
  MemoryNeed memory() const override { return memory_; }
  std::int64_t n_ctx() const override { return options_.n_ctx; }
  std::int64_t kv_tokens() const override { return pages().n_pages() * pages().page_tokens(); }
  std::int64_t kv_tokens_free() const override { return pages().n_free() * pages().page_tokens(); }
  std::int64_t page_tokens() const override { return pages().page_tokens(); }
  std::int64_t max_step_rows() const override { return forward_options(options_).max_rows; }

  SequenceId open() override { return kv_->open(); }
  void close(SequenceId sequence) override { kv_->close(sequence); }
  std::int64_t length(SequenceId sequence) const override { return pages().length(sequence); }
  void truncate(SequenceId sequence, std::int64_t n_tokens) override {
    kv_->truncate(sequence, n_tokens);
  }
  SequenceId fork(SequenceId sequence, std::int64_t n_tokens) override {
    return kv_->fork(sequence, n_tokens);
  }
  std::int64_t pages_needed(SequenceId sequence, std::int64_t start,
                            std::int64_t n_rows) const override {
    return kv_->pages_needed(sequence, start, n_rows);
  }
  std::uint64_t kv_token_bytes() const override;
  std::vector<std::uint8_t> save(SequenceId sequence, const CancelFlag* cancel) override;
  SequenceId load(std::span<const std::uint8_t> bytes, std::span<const std::int32_t> tokens,
                  const CancelFlag* cancel) override;
  std::string identity() const override;
  std::vector<std::string> capture_names() const override;

  StepResult run(const Step& step) override;

 private:
  LocalRunner(ModelFile model, const LoadOptions& options,
              std::unique_ptr<backend::Backend> backend, std::int64_t kv_tokens);
  const KvPages& pages() const { return kv_->pages(); }

  ModelFile model_;
  LoadOptions options_;
  std::unique_ptr<backend::Backend> backend_;
  MemoryNeed memory_;
  ModelWeights weights_;
  std::unique_ptr<KvCache> kv_;
  NoExchange exchange_;
  std::unique_ptr<Forward> forward_;
  mutable std::string identity_;  // made when first asked for
  // Of the running step; kept for their memory.
  std::vector<KvPages::Write> writes_;
  std::vector<std::int32_t> tokens_;
  std::vector<backend::SequenceRows> rows_;
  std::vector<std::int32_t> logits_rows_;
};

}  // namespace moesaic::model
