// See numerics.h.
#include "cluster/measure/numerics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "backend/backend.h"
#include "base/digest.h"
#include "cluster/measure/tensor_file.h"

namespace moesaic::cluster {
namespace {

using backend::Mat;
using quant::Qtype;

// Values of no meaning that are the same everywhere: no library function makes them.
class Values {
 public:
  std::uint32_t bits() {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<std::uint32_t>(state_ >> 32U);
  }
  float next() { return static_cast<float>(static_cast<std::int32_t>(bits())) / 2147483648.0F; }
  std::vector<float> many(std::int64_t n) {
    std::vector<float> values(static_cast<std::size_t>(n));
    for (float& value : values) value = next();
    return values;
  }

 private:
  std::uint64_t state_ = 20261121;
};

// Blocks of any bits that are numbers of some size: also for types that Moesaic only reads.
std::vector<std::uint8_t> some_blocks(const quant::QtypeTraits& traits, std::int64_t n,
                                      Values& values) {
  constexpr float kMost = 1e4F;
  const auto block_bytes = static_cast<std::size_t>(traits.block_bytes);
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(n) * block_bytes);
  std::vector<float> decoded(static_cast<std::size_t>(traits.block_elems));
  for (std::size_t at = 0; at < bytes.size(); at += block_bytes) {
    bool is_good = false;
    for (int tries = 0; tries < 1000 && !is_good; ++tries) {
      for (std::size_t i = 0; i < block_bytes; ++i) {
        bytes[at + i] = static_cast<std::uint8_t>(values.bits() >> 24U);
      }
      traits.decode(bytes.data() + at, 1, decoded.data());
      is_good = std::all_of(decoded.begin(), decoded.end(),
                            [](float x) { return std::isfinite(x) && std::abs(x) < kMost; });
    }
    if (!is_good) std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(at), block_bytes, 0);
  }
  return bytes;
}

class Numerics {
 public:
  Numerics() : backend_(backend::make_backend("cpu", {.n_threads = 1})) {
    backend_->reserve({.max_rows = kInputs,
                       .max_cols = kCols,
                       .max_slots = kInputs * kActive,
                       .max_slot_cols = kCols,
                       .max_n_ctx = kContext,
                       .n_heads = kHeads,
                       .d_k = kLora + kRotated,
                       .d_v = kLora,
                       .kv_lora = kLora});
  }

  std::vector<std::pair<std::string, wire::Digest>> parts() {
    for (const quant::QtypeTraits& traits : quant::all_qtypes()) {
      if (!traits.is_weight) continue;
      matmuls(traits);
      finish(strcat("matmul ", traits.name));
    }
    experts();
    finish("experts");
    for (const auto& [type, name] : {std::pair{backend::KvType::kF32, "f32"},
                                     {backend::KvType::kF16, "f16"},
                                     {backend::KvType::kQ8_0, "q8_0"}}) {
      grouped_attention(type);
      finish(strcat("attention ", name));
      latent_attention(type);
      finish(strcat("MLA attention ", name));
    }
    return std::move(parts_);
  }

 private:
  static constexpr std::int64_t kRows = 33;   // ragged on purpose
  static constexpr std::int64_t kCols = 512;  // whole blocks of every type
  static constexpr std::int64_t kInputs = 9;
  static constexpr std::int64_t kExperts = 5;
  static constexpr std::int64_t kActive = 2;
  static constexpr std::int64_t kHeads = 4;
  static constexpr std::int64_t kKvHeads = 2;
  static constexpr std::int64_t kHead = 64;
  static constexpr std::int64_t kLora = 64;
  static constexpr std::int64_t kRotated = 32;
  static constexpr std::int64_t kPage = 16;
  static constexpr std::int64_t kContext = 64;

  void finish(std::string name) {
    parts_.emplace_back(std::move(name), digest_.finish());
    digest_ = Sha256();
    buffers_.clear();
  }
  Mat mat(std::int64_t rows, std::int64_t cols) {
    const auto n_bytes = static_cast<std::size_t>(rows * cols) * sizeof(float);
    buffers_.push_back(backend_->allocate(n_bytes));
    return {buffers_.back().get(), 0, rows, cols, cols};
  }
  Mat some(std::int64_t rows, std::int64_t cols) {
    const Mat made = mat(rows, cols);
    const std::vector<float> values = values_.many(rows * cols);
    backend_->upload(*made.buffer, 0, values.data(), values.size() * sizeof(float));
    return made;
  }
  void add(const Mat& result) {
    std::vector<float> values(static_cast<std::size_t>(result.rows * result.cols));
    backend_->download(*result.buffer, static_cast<std::size_t>(result.offset) * sizeof(float),
                       values.data(), values.size() * sizeof(float));
    digest_.update(values.data(), values.size() * sizeof(float));
  }

  // (n_experts, rows, kCols). Made of blocks, not encoded from values: that takes much longer.
  std::unique_ptr<backend::Weight> some_weight(const quant::QtypeTraits& traits,
                                               std::int64_t n_experts, std::int64_t rows) {
    const std::int64_t n_blocks = n_experts * rows * kCols / traits.block_elems;
    const std::vector<std::uint8_t> bytes = some_blocks(traits, n_blocks, values_);
    const auto file = std::make_shared<TensorFile>(traits.type, rows, kCols, bytes, n_experts);
    backend::WeightSource source;
    source.file = file;
    source.tensor = file->tensors().data();
    source.n_experts = n_experts;
    source.n_rows = rows;
    return backend_->load(source);
  }

  // One row (decode's kernels) and several (prefill's).
  void matmuls(const quant::QtypeTraits& traits) {
    const auto weight = some_weight(traits, 1, kRows);
    const Mat x = some(kInputs, kCols);
    const Mat y = mat(kInputs, kRows);
    for (const std::int64_t n : {std::int64_t{1}, kInputs}) {
      const backend::MatmulTarget target{weight.get(), nullptr, y.row_range(0, n)};
      backend_->matmul(x.row_range(0, n), {&target, 1});
      add(target.out);
    }
  }

  void experts() {
    const Mat x = some(kInputs, kCols);
    const Mat normed = mat(kInputs, kCols);
    backend_->rms_norm(x, nullptr, 1e-5F, normed);
    backend_->gated_activation(normed, x, {}, normed);
    backend_->gated_activation(normed, x, {.kind = backend::Activation::kSwigluOai}, normed);
    add(normed);
    const auto n_slots = static_cast<std::size_t>(kInputs * kActive);
    buffers_.push_back(backend_->allocate(n_slots * sizeof(std::int32_t)));
    backend::Buffer* const ids = buffers_.back().get();
    buffers_.push_back(backend_->allocate(n_slots * sizeof(float)));
    backend::Buffer* const weights = buffers_.back().get();
    const backend::Routing routing{ids, weights, kInputs, kActive, kExperts};
    const auto matrices = some_weight(quant::traits(Qtype::kQ4_K), kExperts, kCols);
    for (const auto function :
         {backend::RouterFunction::kSoftmax, backend::RouterFunction::kSigmoid,
          backend::RouterFunction::kSoftmaxSelected}) {
      backend::RouterSpec spec;
      spec.function = function;
      spec.n_active = kActive;
      spec.normalize = true;
      backend_->route(some(kInputs, kExperts), spec, routing);
      const Mat slots = mat(kInputs * kActive, kCols);
      const backend::MatmulTarget target{matrices.get(), nullptr, slots};
      backend_->grouped_matmul(x, backend::GroupedInput::kRow, routing, {&target, 1});
      const Mat sum = mat(kInputs, kCols);
      backend_->combine(slots, routing, &x, sum);
      add(sum);
    }
  }

  // A cache of three pages, the last one in part full, and rows at its end.
  struct Cached {
    std::unique_ptr<backend::KvStore> store;
    std::array<std::int32_t, 3> pages{2, 0, 1};
    backend::SequenceRows rows;
  };
  Cached cached(backend::KvType type, std::int64_t k_width, std::int64_t v_width,
                std::int64_t d_head, bool interleaved) {
    Cached made;
    backend::KvSpec spec;
    spec.n_layers = 1;
    spec.k_width = k_width;
    spec.v_width = v_width;
    spec.type = type;
    spec.page_tokens = kPage;
    spec.n_pages = 3;
    made.store = backend_->make_kv(spec);
    backend::RopeSpec rope;
    rope.n_rot = kRotated;
    rope.interleaved = interleaved;
    for (std::int64_t i = 0; i < kRotated / 2; ++i) {
      rope.inverse_freqs.push_back(1.0 / static_cast<double>(1 + 3 * i));
    }
    for (std::int64_t start = 0; start + kInputs <= 3 * kPage; start += kInputs) {
      std::array<std::int32_t, kInputs> positions{};
      for (std::int64_t i = 0; i < kInputs; ++i) {
        positions[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(start + i);
      }
      const Mat k = some(kInputs, k_width);
      backend_->rope(k, d_head, d_head - kRotated, rope, positions);
      const Mat v = v_width > 0 ? some(kInputs, v_width) : Mat{};
      made.rows = {0, kInputs, start, made.pages};
      backend_->kv_write(*made.store, 0, {&made.rows, 1}, k, v_width > 0 ? &v : nullptr);
      add(k);
    }
    return made;
  }
  void attend(Cached& cache, backend::AttentionSpec spec) {
    cache.rows.pages = cache.pages;
    const Mat q = some(kInputs, spec.n_heads * spec.d_k);
    const Mat out = mat(kInputs, spec.n_heads * spec.d_v);
    backend_->attention(*cache.store, 0, spec, {&cache.rows, 1}, q, out);
    add(out);
    backend::SequenceRows last = cache.rows;  // one row, as decode has it
    last.start += kInputs - 1;
    last.n_rows = 1;
    backend_->attention(*cache.store, 0, spec, {&last, 1}, q.row_range(0, 1), out.row_range(0, 1));
    add(out.row_range(0, 1));
  }
  void grouped_attention(backend::KvType type) {
    Cached cache = cached(type, kKvHeads * kHead, kKvHeads * kHead, kHead, false);
    backend::AttentionSpec spec;
    spec.n_heads = kHeads;
    spec.n_kv_heads = kKvHeads;
    spec.d_k = kHead;
    spec.d_v = kHead;
    spec.scale = 0.125F;
    attend(cache, spec);
    spec.window = 11;
    attend(cache, spec);
  }
  void latent_attention(backend::KvType type) {
    Cached cache = cached(type, kLora + kRotated, 0, kLora + kRotated, true);
    backend::AttentionSpec spec;
    spec.n_heads = kHeads;
    spec.n_kv_heads = 1;
    spec.d_k = kLora + kRotated;
    spec.d_v = kLora;
    spec.scale = 0.1F;
    attend(cache, spec);
  }

  std::unique_ptr<backend::Backend> backend_;
  std::vector<std::unique_ptr<backend::Buffer>> buffers_;
  Values values_;
  Sha256 digest_;
  std::vector<std::pair<std::string, wire::Digest>> parts_;
};

}  // namespace

std::vector<std::pair<std::string, wire::Digest>> numerics_parts() { return Numerics().parts(); }

wire::Digest numerics_digest(const std::string& release) {
  static const auto parts = numerics_parts();
  Sha256 sha;
  for (const auto& [name, digest] : parts) sha.update(digest.data(), digest.size());
  sha.update(release.data(), release.size());
  return sha.finish();
}

}  // namespace moesaic::cluster
