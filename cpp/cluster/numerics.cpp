// See numerics.h.
#include "cluster/numerics.h"

#include <array>
#include <cmath>
#include <vector>

#include "backend/backend.h"
#include "base/digest.h"

namespace moesaic::cluster {
namespace {

// Values of no meaning that are the same everywhere: no library function makes them.
class Values {
 public:
  float next() {
    state_ = state_ * 6364136223846793005ULL + 1442695040888963407ULL;
    return static_cast<float>(static_cast<std::int32_t>(state_ >> 32U)) / 2147483648.0F;
  }
  std::vector<float> many(std::size_t n) {
    std::vector<float> values(n);
    for (float& value : values) value = next();
    return values;
  }

 private:
  std::uint64_t state_ = 20261121;
};

wire::Digest compute() {
  constexpr std::int64_t kRows = 33;   // ragged on purpose
  constexpr std::int64_t kCols = 512;  // whole blocks of every type
  constexpr std::int64_t kInputs = 9;
  const auto backend = backend::make_backend("cpu", {.n_threads = 1});
  backend->reserve({.max_rows = kInputs, .max_cols = kCols, .max_slots = kInputs});
  Values values;
  const std::vector<float> x = values.many(kInputs * kCols);
  const auto in = backend->allocate(x.size() * sizeof(float));
  backend->upload(*in, 0, x.data(), x.size() * sizeof(float));
  const auto out = backend->allocate(kInputs * kCols * sizeof(float));
  const backend::Mat x_mat{in.get(), 0, kInputs, kCols, kCols};
  const backend::Mat y_mat{out.get(), 0, kInputs, kRows, kRows};

  Sha256 digest;
  std::vector<float> y(kInputs * kRows);
  using quant::Qtype;
  for (const Qtype type : {Qtype::kF32, Qtype::kF16, Qtype::kQ8_0, Qtype::kQ4_K, Qtype::kQ6_K}) {
    const auto weight = backend->make_weight(type, 1, kRows, kCols, values.many(kRows * kCols));
    const std::array targets{backend::MatmulTarget{weight.get(), nullptr, y_mat}};
    for (const std::int64_t n : {std::int64_t{1}, kInputs}) {
      std::array<backend::MatmulTarget, 1> some = targets;
      some[0].out = y_mat.row_range(0, n);
      backend->matmul(x_mat.row_range(0, n), some);
      backend->download(*out, 0, y.data(), y.size() * sizeof(float));
      digest.update(y.data(), static_cast<std::size_t>(n * kRows) * sizeof(float));
    }
  }
  std::vector<float> normed(x.size());
  const backend::Mat normed_mat{out.get(), 0, kInputs, kCols, kCols};
  backend->rms_norm(x_mat, nullptr, 1e-5F, normed_mat);
  backend->gated_activation(normed_mat, x_mat, {}, normed_mat);
  backend->download(*out, 0, normed.data(), normed.size() * sizeof(float));
  digest.update(normed.data(), normed.size() * sizeof(float));
  return digest.finish();
}

}  // namespace

wire::Digest numerics_digest() {
  static const wire::Digest digest = compute();
  return digest;
}

}  // namespace moesaic::cluster
