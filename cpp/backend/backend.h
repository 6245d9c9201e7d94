// The operations a forward pass is written in, over memory and streams that belong to the backend.
// Model code holds handles (Buffer, Weight, KvStore) and never a pointer behind them, so that a GPU
// can stand here as well as the CPU. Operations enqueue in order on the backend's stream;
// download() and synchronize() wait. On the CPU they run at once. Not for model logic: which
// operation comes when is model/'s business.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/cancel.h"
#include "gguf/file.h"
#include "quant/qtype.h"

namespace moesaic::backend {

// Memory of the backend. Untouched parts cost no physical memory.
class Buffer {
 public:
  virtual ~Buffer() = default;
  virtual std::size_t n_bytes() const = 0;
};

// A float32 matrix inside a Buffer: element (r, c) lies at float index offset + r * stride + c.
struct Mat {
  Buffer* buffer = nullptr;
  std::int64_t offset = 0;  // floats
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;  // floats from one row to the next, >= cols

  Mat row_range(std::int64_t begin, std::int64_t count) const {
    return {buffer, offset + begin * stride, count, cols, stride};
  }
  Mat col_range(std::int64_t begin, std::int64_t count) const {
    return {buffer, offset + begin, rows, count, stride};
  }
  // The same memory as rows * n matrices of cols / n columns (heads of a row); needs stride ==
  // cols.
  Mat split_cols(std::int64_t n) const { return {buffer, offset, rows * n, cols / n, cols / n}; }
};

// A weight as the backend holds it: n_experts matrices of (rows, cols), where x (n, cols) -> y (n,
// rows). Vectors are one row. Plain weights have one expert; per-head matrices of MLA use "experts"
// as heads.
class Weight {
 public:
  virtual ~Weight() = default;
  virtual std::int64_t n_experts() const = 0;
  virtual std::int64_t rows() const = 0;
  virtual std::int64_t cols() const = 0;
  virtual quant::Qtype type() const = 0;
  virtual std::size_t n_bytes() const = 0;
};

// Where a weight comes from: a slice of a tensor of a file: experts [expert_begin, +n_experts), of
// each the rows [row_begin, +n_rows), of each row all columns.
struct WeightSource {
  std::shared_ptr<const gguf::File> file;
  const gguf::TensorInfo* tensor = nullptr;
  std::int64_t expert_begin = 0;
  std::int64_t n_experts = 1;
  std::int64_t row_begin = 0;
  std::int64_t n_rows = 0;
  // One factor per expert of the slice, (n_experts), that multiplies whatever the weight gives
  // (products before the bias, embedded rows); empty for none. NVFP4 files have them.
  std::vector<float> scales = {};
};

struct MatmulTarget {
  const Weight* weight = nullptr;  // (1, rows, cols)
  const Weight* bias = nullptr;    // (1, 1, rows) or (1, rows, 1) float values, or null
  Mat out;                         // (n, rows)
};

// Which experts each row goes to: experts int32 (n, n_active) and weights float (n, n_active), in
// slot order (the router's order: best first). Slot s of row r has index r * n_active + s.
struct Routing {
  Buffer* experts = nullptr;  // int32, from index 0
  Buffer* weights = nullptr;  // float32, from index 0
  std::int64_t n = 0;
  std::int64_t n_active = 0;
  std::int64_t n_experts = 0;
};

enum class GroupedInput {
  kRow,   // x is (n, cols): every slot of a row reads the row
  kSlot,  // x is (n * n_active, cols): every slot has its own
};

enum class RouterFunction {
  kSoftmax,          // softmax over all experts, then select
  kSigmoid,          // sigmoid of each, then select
  kSoftmaxSelected,  // select by logit, softmax over the selected
};

struct RouterSpec {
  RouterFunction function = RouterFunction::kSoftmax;
  const Weight* selection_bias = nullptr;  // (1, 1, n_experts): added for the selection only
  std::int64_t n_active = 0;
  std::int64_t n_groups = 1;  // expert groups; > 1 limits the choice to the best n_groups_used
  std::int64_t n_groups_used = 1;
  bool group_score_top2 =
      true;                 // a group scores by the sum of its best two (V3), else by its best (V2)
  bool normalize = false;   // divide by the sum of the selected weights
  float norm_floor = 0.0F;  // the least value of that sum
  float scale = 1.0F;       // then multiply
};

enum class Activation { kSilu, kSwigluOai };

struct ActivationSpec {
  Activation kind = Activation::kSilu;
  float alpha = 1.702F;  // kSwigluOai
  float limit = 7.0F;    // kSwigluOai
};

// Rotary embedding of one layer kind; cos_sin tables are made by the backend for the positions of a
// step.
struct RopeSpec {
  std::int64_t n_rot = 0;   // dimensions turned
  bool interleaved = true;  // pairs (2i, 2i+1), else halves (i, i + n_rot/2)
  std::vector<double>
      inverse_freqs;       // (n_rot / 2) radians per position, scaling (YaRN, rope_freqs) applied
  double magnitude = 1.0;  // multiplies cos and sin
};

// What a cached row is made of. kQ8_0: blocks of 32 values (34 bytes); the widths of heads, and of
// MLA's latent part, must be multiples of 32.
enum class KvType { kF32, kF16, kQ8_0 };

// The cache of a range of layers: pages of page_tokens rows. A row is k_width values and v_width
// values per layer; MLA has v_width 0 and reads values as the first columns of the key row.
struct KvSpec {
  std::int64_t n_layers = 0;
  std::int64_t k_width = 0;  // n_kv_heads * d_head, or kv_lora + rope for MLA
  std::int64_t v_width = 0;
  KvType type = KvType::kF16;
  std::int64_t page_tokens = 64;
  std::int64_t n_pages = 0;  // of the pool
  // MLA: decompressed keys and values that attention_decompressed may keep from step to step, of
  // the first positions of one sequence. Saves time, changes no result.
  struct Kept {
    std::int64_t n_tokens = 0;  // 0: none
    std::int64_t n_heads = 0;
    std::int64_t d_k = 0;
    std::int64_t d_v = 0;
    bool exact = true;  // as in the AttentionSpec of the calls that use them
  };
  Kept kept{};
};

class KvStore {
 public:
  virtual ~KvStore() = default;
  virtual const KvSpec& spec() const = 0;
};

// A finite number that the type of a KV cache cannot hold.
struct KvOverflow {
  std::int64_t position = 0;  // in its sequence
  bool is_key = true;         // else of a value
  float number = 0;
};

// Rows [row_begin, +n_rows) of the step belong to one sequence, at positions [start, start +
// n_rows); its cache lies in `pages`, of which those up to position start + n_rows are there.
struct SequenceRows {
  std::int64_t row_begin = 0;
  std::int64_t n_rows = 0;
  std::int64_t start = 0;
  std::span<const std::int32_t> pages;
};

struct AttentionSpec {
  std::int64_t n_heads = 0;
  std::int64_t n_kv_heads = 0;  // 1 for absorbed MLA
  std::int64_t d_k = 0;
  std::int64_t d_v = 0;
  float scale = 1.0F;
  std::int64_t window = 0;        // a key is visible when q - k < window; 0: all
  const Weight* sinks = nullptr;  // (1, 1, n_heads), or null
  // Products of float32: the same bits on every CPU. Otherwise a backend may multiply shorter
  // numbers (bf16) where that is faster, never so that a row's result depends on the others.
  bool exact = true;
};

struct DeviceInfo {
  std::string name;    // "cpu"
  std::string detail;  // "avx512vnni, 2 threads"
  int n_threads = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual DeviceInfo info() const = 0;

  // --- memory
  virtual std::unique_ptr<Buffer> allocate(std::size_t n_bytes) = 0;
  virtual void upload(Buffer& to, std::size_t offset_bytes, const void* from,
                      std::size_t n_bytes) = 0;
  virtual void download(const Buffer& from, std::size_t offset_bytes, void* to,
                        std::size_t n_bytes) = 0;  // waits
  virtual void synchronize() = 0;
  // The flag that running operations look at; they throw CancelledError within some 10 ms of its
  // being set. May be null.
  virtual void set_cancel(const CancelFlag* cancel) = 0;

  // --- weights
  virtual std::unique_ptr<Weight> load(const WeightSource& source) = 0;
  // A weight that is computed and not read: (n_experts, rows, cols) floats, held as `type`.
  virtual std::unique_ptr<Weight> make_weight(quant::Qtype type, std::int64_t n_experts,
                                              std::int64_t rows, std::int64_t cols,
                                              std::span<const float> values) = 0;
  // Brings the weight's bytes into memory (first touch, by all threads); for progress bars.
  virtual void prefault(const Weight& weight) = 0;

  // --- rows
  virtual void embed(const Weight& table, std::span<const std::int32_t> tokens,
                     const Mat& out) = 0;  // (n, d_model)
  virtual void copy(const Mat& x, const Mat& out) = 0;
  virtual void gather_rows(const Mat& x, std::span<const std::int32_t> rows, const Mat& out) = 0;
  virtual void add(const Mat& x, const Mat& y, const Mat& out) = 0;
  // Each row: x / sqrt(mean(x^2) + eps) * weight. weight (1, 1, cols), or null for ones. In place
  // allowed.
  virtual void rms_norm(const Mat& x, const Weight* weight, float eps, const Mat& out) = 0;
  // x (n, n_heads * d_head), d_head floats a head: turns [rot_begin, rot_begin + n_rot) of each
  // head of row r by positions[r].
  virtual void rope(const Mat& x, std::int64_t d_head, std::int64_t rot_begin, const RopeSpec& spec,
                    std::span<const std::int32_t> positions) = 0;
  virtual void gated_activation(const Mat& gate, const Mat& up, const ActivationSpec& spec,
                                const Mat& out) = 0;

  // --- matmul
  // All targets read the same x (n, cols), which is prepared once.
  virtual void matmul(const Mat& x, std::span<const MatmulTarget> targets) = 0;
  // x (n, n_heads * cols) -> out (n, n_heads * rows), head h by expert h of the weight. x heads are
  // x_head_stride floats apart
  // (>= cols), so that a part of each head can be read.
  virtual void matmul_heads(const Mat& x, std::int64_t x_head_stride, const Weight& weight,
                            const Mat& out, std::int64_t out_head_stride) = 0;

  // --- experts
  virtual void route(const Mat& logits, const RouterSpec& spec, const Routing& out) = 0;
  // out (n * n_active, rows) in slot order; bias (1, n_experts, rows), (n_experts, rows, 1) or
  // null. All targets read the same x.
  virtual void grouped_matmul(const Mat& x, GroupedInput input, const Routing& routing,
                              std::span<const MatmulTarget> targets) = 0;
  // out (n, d) = base + sum over slots, in slot order, of weight * x (n * n_active, d); base may be
  // null (zeros).
  virtual void combine(const Mat& x, const Routing& routing, const Mat* base, const Mat& out) = 0;

  // --- attention
  virtual std::unique_ptr<KvStore> make_kv(const KvSpec& spec) = 0;
  virtual std::size_t kv_page_bytes(const KvSpec& spec) const = 0;  // one page over all layers
  virtual std::size_t kv_kept_bytes(const KvSpec& spec) const = 0;  // of spec.kept, all layers
  // Rows of the step into the cache: k (n, k_width), v (n, v_width) or null for MLA. Returns the
  // first number (in order of rows, k before v) that did not fit: these rows are then of no use.
  virtual std::optional<KvOverflow> kv_write(KvStore& kv, std::int64_t layer,
                                             std::span<const SequenceRows> sequences, const Mat& k,
                                             const Mat* v) = 0;
  // Copies page `from` to page `to`, all layers (a fork in the middle of a page).
  virtual void kv_copy_page(KvStore& kv, std::int32_t from, std::int32_t to) = 0;
  // Rows [begin, end) of a sequence in canonical order (token, k then v) of one layer as stored, to
  // and from the host.
  virtual std::size_t kv_row_bytes(const KvSpec& spec) const = 0;  // of one layer
  virtual void kv_read(const KvStore& kv, std::int64_t layer, std::span<const std::int32_t> pages,
                       std::int64_t begin, std::int64_t end, std::uint8_t* out) = 0;
  virtual void kv_restore(KvStore& kv, std::int64_t layer, std::span<const std::int32_t> pages,
                          std::int64_t begin, std::int64_t end, const std::uint8_t* in) = 0;
  // Gives the physical memory of pages that nobody uses back.
  virtual void kv_release(KvStore& kv, std::span<const std::int32_t> pages) = 0;

  // q (n, n_heads * d_k) -> out (n, n_heads * d_v), causal by position, over the cache (rows of
  // this step were written before). Head h reads KV head h / (n_heads / n_kv_heads).
  virtual void attention(const KvStore& kv, std::int64_t layer, const AttentionSpec& spec,
                         std::span<const SequenceRows> sequences, const Mat& q, const Mat& out) = 0;
  // The decompressed form of MLA for many rows: keys and values of each head are made per block of
  // the cache from the latent rows (c: the first kv_lora values, then the rotated part): k = [w_k c
  // | k_pe], v = w_v c. w_k (n_heads, d_nope, kv_lora), w_v (n_heads, d_v, kv_lora); q (n, n_heads
  // * (d_nope + d_rope)).
  virtual void attention_decompressed(const KvStore& kv, std::int64_t layer,
                                      const AttentionSpec& spec,
                                      std::span<const SequenceRows> sequences, const Weight& w_k,
                                      const Weight& w_v, const Mat& q, const Mat& out) = 0;

  // --- plan
  // Scratch of the backend itself for steps of at most max_rows rows: planned once by reserve(),
  // never allocated per step.
  struct ScratchSpec {
    std::int64_t max_rows = 0;       // rows of a step
    std::int64_t max_cols = 0;       // the longest matmul input
    std::int64_t max_slots = 0;      // rows * n_active
    std::int64_t max_slot_cols = 0;  // the longest grouped_matmul input by slot; 0: max_cols
    std::int64_t max_n_ctx = 0;
    std::int64_t n_heads = 0;
    std::int64_t d_k = 0;
    std::int64_t d_v = 0;
    std::int64_t kv_lora = 0;  // 0: no MLA
  };
  virtual std::size_t scratch_bytes(const ScratchSpec& spec) const = 0;
  // Never shrinks: several forward passes may share a backend, one at a time.
  virtual void reserve(const ScratchSpec& spec) = 0;
};

struct BackendOptions {
  int n_threads = 0;  // 0: available_cpus()
};

// "auto" | "cpu"; throws ArgumentError for an unknown or missing backend, naming those that are
// there.
std::unique_ptr<Backend> make_backend(std::string_view name, const BackendOptions& options);
std::vector<std::string> available_backends();

// CPU tables ("generic", "avx2", ...) that this build has and this machine can run, slowest first,
// and the one in use.
std::vector<std::string> available_isas();
std::string current_isa();

}  // namespace moesaic::backend
