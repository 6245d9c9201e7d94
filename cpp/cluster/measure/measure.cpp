// Rates of this machine; see measure.h. The weights are a few encoded rows repeated past the size
// of any cache; their values do not matter to the time.
#include "cluster/measure/measure.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "base/errors.h"
#include "cluster/measure/tensor_file.h"
#include "quant/qtype.h"

namespace moesaic::cluster {
namespace {

constexpr std::int64_t kCols = 2048;
constexpr std::int64_t kManyRows = 256;        // of activations
constexpr std::int64_t kComputeRows = 512;     // of weights, for each thread
constexpr std::int64_t kReadBytes = 48 << 20;  // of weights, of each type: past most caches
// Each type and rate is measured some times over half a second and more: what disturbs one of
// those moments is over, or elsewhere, at another.
constexpr int kRounds = 4;
constexpr std::chrono::milliseconds kPatience{12};  // for each type and rate, a round

// Experts' gates and ups, their downs, and what lies around them, by their share of a token's
// bytes.
struct Part {
  quant::Qtype type;
  double share;
};
constexpr std::array<Part, 4> kParts{{{quant::Qtype::kQ2_K, 0.44},
                                      {quant::Qtype::kQ3_K, 0.22},
                                      {quant::Qtype::kQ4_K, 0.27},
                                      {quant::Qtype::kQ6_K, 0.07}}};

std::vector<std::uint8_t> encoded_rows(quant::Qtype type) {
  constexpr std::int64_t kRows = 4;
  std::vector<float> values(kRows * kCols);
  std::uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525U + 1013904223U;
    value = static_cast<float>(state >> 8) / static_cast<float>(1 << 24) - 0.5F;
  }
  const quant::QtypeTraits& traits = quant::traits(type);
  std::vector<std::uint8_t> bytes(kRows * quant::row_bytes(type, kCols));
  traits.encode(values.data(), kRows * kCols / traits.block_elems, bytes.data());
  return bytes;
}

// Seconds of the fastest of several runs: the others were disturbed.
template <typename Run>
double fastest(const Run& run) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + kPatience;
  double least = 1e9;
  run();  // wakes threads, warms caches
  do {
    const auto begin = Clock::now();
    run();
    least = std::min(least, std::chrono::duration<double>(Clock::now() - begin).count());
  } while (Clock::now() < end);
  return least;
}

class Rig {
 public:
  Rig(int n_threads, const CancelFlag* cancel)
      : cancel_(cancel), backend_(backend::make_backend("cpu", {.n_threads = n_threads})) {
    backend_->reserve({.max_rows = kManyRows, .max_cols = kCols, .max_slots = kManyRows});
    const std::int64_t compute_rows = kComputeRows * backend_->info().n_threads;
    std::int64_t out_floats = kManyRows * compute_rows;
    for (const Part& part : kParts) {
      check_cancel();
      const auto rows = kReadBytes / static_cast<std::int64_t>(quant::row_bytes(part.type, kCols));
      const auto file = std::make_shared<TensorFile>(part.type, std::max(rows, compute_rows), kCols,
                                                     encoded_rows(part.type));
      read_.push_back(load(file, rows));
      compute_.push_back(load(file, compute_rows));
      out_floats = std::max(out_floats, rows);
    }
    x_ = backend_->allocate(kManyRows * kCols * sizeof(float));
    const std::vector<float> ones(kManyRows * kCols, 1.0F);
    backend_->upload(*x_, 0, ones.data(), ones.size() * sizeof(float));
    out_ = backend_->allocate(static_cast<std::size_t>(out_floats) * sizeof(float));
  }

  Rates rates() {
    std::array<double, kParts.size()> read_seconds{};
    std::array<double, kParts.size()> compute_seconds{};
    read_seconds.fill(1e9);
    compute_seconds.fill(1e9);
    for (int round = 0; round < kRounds; ++round) {
      for (std::size_t i = 0; i < kParts.size(); ++i) {
        read_seconds[i] = std::min(read_seconds[i], fastest([&] { run(*read_[i], 1); }));
        compute_seconds[i] =
            std::min(compute_seconds[i], fastest([&] { run(*compute_[i], kManyRows); }));
      }
    }
    // Of an average weight:
    double n_bytes = 0;
    double seconds = 0;
    double seconds_per_op = 0;
    for (std::size_t i = 0; i < kParts.size(); ++i) {
      const backend::Weight& read = *read_[i];
      const double per_weight = kParts[i].share / static_cast<double>(read.rows() * kCols);
      n_bytes += per_weight * static_cast<double>(read.n_bytes());
      seconds += per_weight * read_seconds[i];
      seconds_per_op += kParts[i].share * compute_seconds[i] /
                        (2.0 * kManyRows * static_cast<double>(compute_[i]->rows() * kCols));
    }
    return {.read_bytes_per_s = n_bytes / seconds, .matmul_ops_per_s = 1 / seconds_per_op};
  }

 private:
  void check_cancel() const {
    if (cancel_ != nullptr) cancel_->check();
  }

  std::unique_ptr<backend::Weight> load(const std::shared_ptr<const TensorFile>& file,
                                        std::int64_t rows) {
    backend::WeightSource source;
    source.file = file;
    source.tensor = file->tensors().data();
    source.n_rows = rows;
    return backend_->load(source);
  }

  // x (n, kCols) -> out (n, rows of the weight)
  void run(const backend::Weight& weight, std::int64_t n) {
    check_cancel();
    const backend::Mat x{x_.get(), 0, n, kCols, kCols};
    const backend::Mat out{out_.get(), 0, n, weight.rows(), weight.rows()};
    const backend::MatmulTarget target{&weight, nullptr, out};
    backend_->matmul(x, {&target, 1});
    backend_->synchronize();
  }

  const CancelFlag* cancel_;
  std::unique_ptr<backend::Backend> backend_;
  std::vector<std::unique_ptr<backend::Weight>> read_;     // by one row
  std::vector<std::unique_ptr<backend::Weight>> compute_;  // with by many rows
  std::unique_ptr<backend::Buffer> x_;
  std::unique_ptr<backend::Buffer> out_;
};

}  // namespace

Rates measure(int n_threads, const CancelFlag* cancel) { return Rig(n_threads, cancel).rates(); }

}  // namespace moesaic::cluster
