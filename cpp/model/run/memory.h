// What a model takes before anything of it is allocated, and what to answer when that is too much.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "backend/backend.h"
#include "model/arch/model_file.h"
#include "model/run/forward.h"
#include "model/runner.h"

namespace moesaic::model {

struct LoadOptions {
  std::int64_t n_ctx = 4096;  // positions of one sequence
  // Of the pool, at least n_ctx; 0: twice n_ctx where that fits, so that prefixes can stay cached.
  std::int64_t kv_tokens = 0;
  bool deterministic = false;    // the same bytes for any number of rows, threads and neighbours
  std::string backend = "auto";  // as backend::make_backend takes it
  int threads = 0;               // 0: those this process may use
  backend::KvType kv_type = backend::KvType::kF16;
  std::int64_t max_step_rows = 512;
  std::int64_t page_tokens = 64;  // a power of two, at most 512
  // Positions whose decompressed keys and values are kept (MLA: backend::KvSpec::Kept). Negative:
  // what suits the weights, kept_keys(); whoever loads takes 0 where there is no memory for it.
  std::int64_t kept_tokens = -1;
  bool prefault = true;  // read all weights now
  std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes)> progress{};
  const CancelFlag* cancel = nullptr;
  Overrides overrides{};        // of the file's keys
  std::string where = "Model";  // the call that loads, for messages
};

// Throws ArgumentError naming the option, what it got and its range.
void validate(const LoadOptions& options);

// The cache of a slice's layers for a pool of kv_tokens, without what is kept besides, and with it.
backend::KvSpec kv_spec(const Config& config, const Slice& slice, const LoadOptions& options,
                        std::int64_t kv_tokens);
backend::KvSpec kv_spec(const ModelFile& model, const Slice& slice, const LoadOptions& options,
                        std::int64_t kv_tokens, const backend::Backend& backend);
// What a cache of any of the model's layers keeps: as much of n_ctx as an eighth of the weights of
// a layer has room for, and at most 256 MiB.
backend::KvSpec::Kept kept_keys(const ModelFile& model, const LoadOptions& options,
                                const backend::Backend& backend);
ForwardOptions forward_options(const LoadOptions& options);

// With options.kv_tokens 0, of a pool of n_ctx.
MemoryNeed memory_need(const ModelFile& model, const Slice& slice, const LoadOptions& options,
                       const backend::Backend& backend);
// The same for a whole model, on the backend that the options name.
MemoryNeed memory_need(const ModelFile& model, const LoadOptions& options);

// The options without kept keys where the need with them is above free_bytes.
LoadOptions with_room(const ModelFile& model, const Slice& slice, LoadOptions options,
                      const backend::Backend& backend, std::uint64_t free_bytes);

// options.kv_tokens as it will be. Throws OutOfMemoryError when the need is above free_bytes: what
// is needed for what, what is free, and which n_ctx would fit.
std::int64_t fit_kv_tokens(const ModelFile& model, const Slice& slice, const LoadOptions& options,
                           const backend::Backend& backend, std::uint64_t free_bytes);

}  // namespace moesaic::model
