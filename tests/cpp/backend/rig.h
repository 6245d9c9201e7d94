// What the backend's tests stand on: a backend with its buffers, random values, and the parameter
// that every conformance test is instantiated with (each backend of the build, several team sizes).
// The oracles are plain double loops in the test files.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "quant/half.h"
#include "quant/q8_0.h"
#include "quant/qtype.h"

namespace moesaic::backend::test {

struct Param {
  std::string backend;
  int n_threads;
};

inline void PrintTo(const Param& param, std::ostream* out) {
  *out << param.backend << " with " << param.n_threads << " threads";
}

inline std::vector<Param> all_params() {
  std::vector<Param> params;
  for (const std::string& name : available_backends()) {
    for (int n_threads = 1; n_threads <= 3; ++n_threads) params.push_back({name, n_threads});
  }
  return params;
}

inline std::string param_name(const testing::TestParamInfo<Param>& info) {
  return info.param.backend + "_threads" + std::to_string(info.param.n_threads);
}

// Normal values with a fixed seed.
inline std::vector<float> random_values(std::int64_t n, unsigned seed, float scale = 1.0F) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0F, scale);
  std::vector<float> values(static_cast<std::size_t>(n));
  for (float& value : values) value = normal(engine);
  return values;
}

inline Backend::ScratchSpec test_scratch() {
  Backend::ScratchSpec spec;
  spec.max_rows = 700;
  spec.max_cols = 1024;
  spec.max_slots = 2800;
  spec.max_n_ctx = 4096;
  spec.n_heads = 16;
  spec.d_k = 288;
  spec.d_v = 256;
  spec.kv_lora = 256;
  return spec;
}

class Rig {
 public:
  explicit Rig(const std::string& name, int n_threads) {
    BackendOptions options;
    options.n_threads = n_threads;
    backend_ = make_backend(name, options);
    backend_->reserve(test_scratch());
  }
  explicit Rig(const Param& param) : Rig(param.backend, param.n_threads) {}
  Backend& operator*() { return *backend_; }
  Backend* operator->() { return backend_.get(); }

  // A matrix of its own, rows `gap` floats longer than needed.
  Mat mat(std::int64_t rows, std::int64_t cols, std::int64_t gap = 0) {
    const std::int64_t n_floats = rows * (cols + gap) + 7;
    buffers_.push_back(backend_->allocate(static_cast<std::size_t>(n_floats) * sizeof(float)));
    return {buffers_.back().get(), 7, rows, cols, cols + gap};
  }
  Mat mat(std::int64_t rows, std::int64_t cols, const std::vector<float>& values,
          std::int64_t gap = 0) {
    const Mat m = mat(rows, cols, gap);
    put(m, values);
    return m;
  }
  void put(const Mat& m, const std::vector<float>& values) {
    ASSERT_EQ(static_cast<std::int64_t>(values.size()), m.rows * m.cols);
    for (std::int64_t r = 0; r < m.rows; ++r) {
      backend_->upload(*m.buffer, static_cast<std::size_t>(m.offset + r * m.stride) * 4,
                       values.data() + r * m.cols, static_cast<std::size_t>(m.cols) * 4);
    }
  }
  std::vector<float> get(const Mat& m) {
    std::vector<float> values(static_cast<std::size_t>(m.rows * m.cols));
    for (std::int64_t r = 0; r < m.rows; ++r) {
      backend_->download(*m.buffer, static_cast<std::size_t>(m.offset + r * m.stride) * 4,
                         values.data() + r * m.cols, static_cast<std::size_t>(m.cols) * 4);
    }
    return values;
  }
  Buffer* buffer(std::size_t n_bytes) {
    buffers_.push_back(backend_->allocate(n_bytes));
    return buffers_.back().get();
  }
  const Weight* weight(quant::Qtype type, std::int64_t n_experts, std::int64_t rows,
                       std::int64_t cols, const std::vector<float>& values) {
    weights_.push_back(backend_->make_weight(type, n_experts, rows, cols, values));
    return weights_.back().get();
  }
  const Weight* vector(const std::vector<float>& values) {
    return weight(quant::Qtype::kF32, 1, 1, static_cast<std::int64_t>(values.size()), values);
  }
  Routing routing(std::int64_t n, std::int64_t n_active, std::int64_t n_experts) {
    const std::size_t n_bytes = static_cast<std::size_t>(n * n_active) * 4;
    return {buffer(n_bytes), buffer(n_bytes), n, n_active, n_experts};
  }
  std::vector<std::int32_t> experts_of(const Routing& routing) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(routing.n * routing.n_active));
    backend_->download(*routing.experts, 0, ids.data(), ids.size() * 4);
    return ids;
  }
  std::vector<float> weights_of(const Routing& routing) {
    std::vector<float> values(static_cast<std::size_t>(routing.n * routing.n_active));
    backend_->download(*routing.weights, 0, values.data(), values.size() * 4);
    return values;
  }

 private:
  std::unique_ptr<Backend> backend_;
  std::vector<std::unique_ptr<Buffer>> buffers_;
  std::vector<std::unique_ptr<Weight>> weights_;
};

// The values that a weight of `type` holds after encoding, as exact floats.
inline std::vector<float> through_type(quant::Qtype type, std::int64_t cols,
                                       const std::vector<float>& values) {
  const quant::QtypeTraits& traits = quant::traits(type);
  const std::int64_t n = static_cast<std::int64_t>(values.size());
  std::vector<std::uint8_t> bytes(
      static_cast<std::size_t>(quant::row_bytes(type, static_cast<std::uint64_t>(n))));
  EXPECT_EQ(cols % traits.block_elems, 0);
  traits.encode(values.data(), n / traits.block_elems, bytes.data());
  std::vector<float> out(values.size());
  traits.decode(bytes.data(), n / traits.block_elems, out.data());
  return out;
}

inline void expect_same_bits(const std::vector<float>& a, const std::vector<float>& b,
                             const std::string& what) {
  ASSERT_EQ(a.size(), b.size()) << what;
  for (std::size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(std::memcmp(&a[i], &b[i], 4), 0)
        << what << ": element " << i << ": " << a[i] << " and " << b[i];
  }
}

// Values as a cache of this type gives them back; rows are whole blocks for kQ8_0.
inline std::vector<float> as_cached(KvType type, std::vector<float> values) {
  if (type == KvType::kF16) {
    for (float& x : values) x = quant::f16_to_f32(quant::f32_to_f16(x));
  } else if (type == KvType::kQ8_0) {
    const auto n_blocks = static_cast<std::int64_t>(values.size() / 32);
    std::vector<std::uint8_t> blocks(static_cast<std::size_t>(n_blocks) * 34);
    quant::encode_q8_0(values.data(), n_blocks, blocks.data());
    quant::decode_q8_0(blocks.data(), n_blocks, values.data());
  }
  return values;
}

class Conformance : public testing::TestWithParam<Param> {};

}  // namespace moesaic::backend::test
