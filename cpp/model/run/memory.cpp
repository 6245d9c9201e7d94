// Memory arithmetic before loading; see memory.h.
#include "model/run/memory.h"

#include <algorithm>
#include <iomanip>

#include "model/run/weights.h"

namespace moesaic::model {
namespace {

constexpr std::int64_t kMaxTokens = std::int64_t{1} << 30;  // positions and pages are int32

std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

void check_range(const std::string& where, const char* name, std::int64_t got, std::int64_t low,
                 std::int64_t high) {
  if (got < low || got > high) {
    fail<ArgumentError>("[", where, "] ", name, ": got ", got, ", need ", low, " to ", high);
  }
}

std::string in_mib(std::uint64_t bytes) {
  std::ostringstream out;
  out << std::fixed << std::setprecision(1) << static_cast<double>(bytes) / (1 << 20) << " MiB";
  return out.str();
}

MemoryNeed need_with(const ModelFile& model, const Slice& slice, LoadOptions options,
                     const backend::Backend& backend, std::int64_t n_ctx, std::int64_t kv_tokens) {
  options.n_ctx = n_ctx;
  options.kv_tokens = kv_tokens;
  return memory_need(model, slice, options, backend);
}

// The largest n_ctx, in whole pages, whose need with a pool of the same size fits; 0: none.
std::int64_t largest_n_ctx(const ModelFile& model, const Slice& slice, const LoadOptions& options,
                           const backend::Backend& backend, std::uint64_t free_bytes) {
  std::int64_t low = 0;
  std::int64_t high = options.n_ctx / options.page_tokens;
  while (low < high) {
    const std::int64_t middle = (low + high + 1) / 2;
    const std::int64_t tokens = middle * options.page_tokens;
    const MemoryNeed need = need_with(model, slice, options, backend, tokens, tokens);
    if (need.total() <= free_bytes) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low * options.page_tokens;
}

// A block of q8_0 lies within one head.
void check_kv_type(const Config& config, const LoadOptions& options) {
  if (options.kv_type != backend::KvType::kQ8_0) return;
  const bool is_mla = config.mla.kv_lora > 0;
  const std::int64_t d_k = is_mla ? config.kv_k_width() : config.d_head_k;
  const std::int64_t d_v = is_mla ? 0 : config.d_head_v;
  if (d_k % 32 == 0 && d_v % 32 == 0) return;
  fail<ArgumentError>("[", options.where, "] kv_type: got \"q8_0\" for a model with ",
                      is_mla ? "latent rows" : "heads", " of ", d_k,
                      is_mla ? "" : strcat(" (keys) and ", d_v, " (values)"),
                      " numbers, need multiples of 32: use kv_type=\"f16\"");
}

}  // namespace

void validate(const LoadOptions& options) {
  check_range(options.where, "n_ctx", options.n_ctx, 1, kMaxTokens);
  if (options.kv_tokens != 0) {
    check_range(options.where, "kv_tokens", options.kv_tokens, options.n_ctx, 4 * kMaxTokens);
  }
  check_range(options.where, "threads", options.threads, 0, 1024);
  check_range(options.where, "max_step_rows", options.max_step_rows, 1, 65536);
  check_range(options.where, "page_tokens", options.page_tokens, 1, 512);
  if ((options.page_tokens & (options.page_tokens - 1)) != 0) {
    fail<ArgumentError>("[", options.where, "] page_tokens: got ", options.page_tokens,
                        ", need a power of two");
  }
}

backend::KvSpec kv_spec(const Config& config, const Slice& slice, const LoadOptions& options,
                        std::int64_t kv_tokens) {
  check_kv_type(config, options);
  return {.n_layers = slice.n_layers(),
          .k_width = config.kv_k_width(),
          .v_width = config.kv_v_width(),
          .type = options.kv_type,
          .page_tokens = options.page_tokens,
          .n_pages = round_up(kv_tokens, options.page_tokens) / options.page_tokens};
}

backend::KvSpec::Kept kept_keys(const ModelFile& model, const LoadOptions& options,
                                const backend::Backend& backend) {
  constexpr std::uint64_t kShareOfWeights = 8;
  constexpr std::uint64_t kMostBytes = std::uint64_t{256} << 20;  // of a layer
  constexpr std::int64_t kGrain = 512;  // so that the end of n_ctx is not lost to a backend's cut
  const Config& config = model.config;
  // Without MLA there is nothing to decompress, and deterministic=True never does.
  if (config.mla.kv_lora == 0 || options.deterministic || model.layers.empty()) return {};
  std::uint64_t weights_bytes = 0;
  bool is_float_output = false;
  for (const std::vector<TensorSpec>& layer : model.layers) {
    for (const TensorSpec& spec : layer) {
      weights_bytes += spec.mapped_bytes();
      is_float_output |=
          spec.slot == &LayerWeights::attn_output && quant::is_float(spec.tensor->type);
    }
  }
  backend::KvSpec::Kept kept{.n_tokens = round_up(options.n_ctx, kGrain),
                             .n_heads = config.n_heads,
                             .d_k = config.d_head_k,
                             .d_v = config.mla.d_v,
                             .exact = options.kv_type == backend::KvType::kF32 || is_float_output};
  if (options.kept_tokens >= 0) {
    kept.n_tokens = std::min(kept.n_tokens, options.kept_tokens);
    return kept;
  }
  backend::KvSpec of_grain;
  of_grain.n_layers = 1;
  of_grain.kept = kept;
  of_grain.kept.n_tokens = kGrain;
  const std::uint64_t room =
      std::min(kMostBytes, weights_bytes / model.layers.size() / kShareOfWeights);
  const std::uint64_t n_grains = room / std::max<std::uint64_t>(backend.kv_kept_bytes(of_grain), 1);
  kept.n_tokens = std::min(kept.n_tokens, static_cast<std::int64_t>(n_grains) * kGrain);
  return kept;
}

backend::KvSpec kv_spec(const ModelFile& model, const Slice& slice, const LoadOptions& options,
                        std::int64_t kv_tokens, const backend::Backend& backend) {
  backend::KvSpec spec = kv_spec(model.config, slice, options, kv_tokens);
  spec.kept = kept_keys(model, options, backend);
  return spec;
}

ForwardOptions forward_options(const LoadOptions& options) {
  return {.max_rows = std::min(options.max_step_rows, round_up(options.n_ctx, options.page_tokens)),
          .n_ctx = options.n_ctx,
          .deterministic = options.deterministic};
}

MemoryNeed memory_need(const ModelFile& model, const Slice& slice, const LoadOptions& options,
                       const backend::Backend& backend) {
  const ForwardOptions forward = forward_options(options);
  const std::int64_t kv_tokens = options.kv_tokens == 0 ? options.n_ctx : options.kv_tokens;
  const backend::KvSpec kv = kv_spec(model, slice, options, kv_tokens, backend);
  const WeightBytes weights = weight_bytes(model, slice, !options.deterministic);
  const std::uint64_t logits =
      slice.head ? static_cast<std::uint64_t>(head_rows(model.config, forward.max_rows) *
                                              model.config.vocab) *
                       sizeof(float)
                 : 0;
  MemoryNeed need;
  need.weights_bytes = weights.mapped;
  need.derived_bytes = weights.derived;
  need.kv_bytes = static_cast<std::uint64_t>(kv.n_pages) * backend.kv_page_bytes(kv);
  need.scratch_bytes = plan_bytes(plan_scratch(model.config, slice, forward.max_rows)) +
                       backend.scratch_bytes(backend_scratch(model.config, slice, forward)) +
                       backend.kv_kept_bytes(kv) + logits;
  return need;
}

MemoryNeed memory_need(const ModelFile& model, const LoadOptions& options) {
  validate(options);
  const auto backend = backend::make_backend(options.backend, {.n_threads = options.threads});
  return memory_need(model, Slice::whole(model.config), options, *backend);
}

LoadOptions with_room(const ModelFile& model, const Slice& slice, LoadOptions options,
                      const backend::Backend& backend, std::uint64_t free_bytes) {
  if (memory_need(model, slice, options, backend).total() > free_bytes) options.kept_tokens = 0;
  return options;
}

std::int64_t fit_kv_tokens(const ModelFile& model, const Slice& slice, const LoadOptions& options,
                           const backend::Backend& backend, std::uint64_t free_bytes) {
  const auto fits = [&](std::int64_t kv_tokens) {
    return need_with(model, slice, options, backend, options.n_ctx, kv_tokens).total() <=
           free_bytes;
  };
  if (options.kv_tokens == 0 && fits(2 * options.n_ctx)) return 2 * options.n_ctx;
  const std::int64_t kv_tokens = options.kv_tokens == 0 ? options.n_ctx : options.kv_tokens;
  if (fits(kv_tokens)) return kv_tokens;

  const MemoryNeed need = need_with(model, slice, options, backend, options.n_ctx, kv_tokens);
  const std::int64_t n_ctx = largest_n_ctx(model, slice, options, backend, free_bytes);
  const std::string advice =
      n_ctx > 0 ? strcat("n_ctx=", n_ctx, " would fit")
                : strcat("not even n_ctx=", options.page_tokens,
                         " would fit: use a smaller model or a machine with more memory");
  throw OutOfMemoryError(
      strcat("[", options.where, "] ",
             model.file->paths().empty() ? "" : model.file->paths().front(), ": need ",
             in_mib(need.total()), " (weights ", in_mib(need.weights_bytes + need.derived_bytes),
             ", KV cache of ", kv_tokens, " tokens ", in_mib(need.kv_bytes), ", scratch ",
             in_mib(need.scratch_bytes), "), free ", in_mib(free_bytes), "; ", advice),
      need.total(), free_bytes);
}

}  // namespace moesaic::model
