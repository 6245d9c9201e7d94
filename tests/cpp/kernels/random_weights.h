// Random rows of any weight type with scales of ordinary size, and the exact reading of prepared
// activations: what the kernel tests compare against.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/act_layout.h"
#include "kernels/table.h"
#include "quant/half.h"
#include "quant/qtype.h"

namespace moesaic::kernels::testing {

// Byte offsets of f16 numbers in a block (scales and minima); -1 ends the list.
inline std::vector<int> f16_offsets(quant::Qtype type) {
  using quant::Qtype;
  switch (type) {
    case Qtype::kQ4_1:
    case Qtype::kQ5_1:
    case Qtype::kQ4_K:
    case Qtype::kQ5_K:
      return {0, 2};
    case Qtype::kQ2_K:
      return {80, 82};
    case Qtype::kQ3_K:
      return {108};
    case Qtype::kQ6_K:
      return {208};
    case Qtype::kTQ1_0:
      return {52};
    case Qtype::kTQ2_0:
      return {64};
    case Qtype::kMXFP4:
    case Qtype::kNVFP4:
    case Qtype::kIQ1_M:
    case Qtype::kF32:
    case Qtype::kF16:
    case Qtype::kBF16:
      return {};
    default:
      return {0};
  }
}

// (n_rows, k) blocks of random bits, every pattern of codes and sub-scales included.
inline std::vector<std::uint8_t> random_weights(quant::Qtype type, std::int64_t n_rows,
                                                std::int64_t k, std::mt19937& rng) {
  using quant::Qtype;
  const quant::QtypeTraits& traits = quant::traits(type);
  const auto n_blocks = static_cast<std::size_t>(n_rows * k / traits.block_elems);
  std::vector<std::uint8_t> out(n_blocks * static_cast<std::size_t>(traits.block_bytes));
  std::normal_distribution<float> normal(0.0F, 0.05F);
  if (type == Qtype::kF32 || type == Qtype::kF16 || type == Qtype::kBF16) {
    for (std::size_t i = 0; i < n_blocks; ++i) {
      const float x = normal(rng);
      const std::uint16_t half = type == Qtype::kF16 ? quant::f32_to_f16(x) : quant::f32_to_bf16(x);
      if (type == Qtype::kF32) {
        std::memcpy(out.data() + 4 * i, &x, 4);
      } else {
        std::memcpy(out.data() + 2 * i, &half, 2);
      }
    }
    return out;
  }
  for (std::uint8_t& byte : out) byte = static_cast<std::uint8_t>(rng());
  const std::vector<int> offsets = f16_offsets(type);
  for (std::size_t b = 0; b < n_blocks; ++b) {
    std::uint8_t* block = out.data() + b * static_cast<std::size_t>(traits.block_bytes);
    for (const int offset : offsets) {
      const std::uint16_t d = quant::f32_to_f16(normal(rng));
      std::memcpy(block + offset, &d, 2);
    }
    if (type == Qtype::kIQ1_M) {
      const std::uint16_t d = quant::f32_to_f16(normal(rng));
      for (int w = 0; w < 4; ++w) {  // its f16 lies in the top nibbles of four words
        std::uint8_t& top = block[48 + 2 * w + 1];
        top = static_cast<std::uint8_t>((top & 15U) | (((d >> (4 * w)) & 15U) << 4));
      }
    }
    if (type == Qtype::kMXFP4) block[0] = static_cast<std::uint8_t>(118 + rng() % 8);
    if (type == Qtype::kNVFP4) {
      for (int s = 0; s < 4; ++s) block[s] = static_cast<std::uint8_t>(rng() % 0x60);
    }
  }
  return out;
}

inline std::vector<float> random_floats(std::size_t n, std::mt19937& rng, float scale = 1.0F) {
  std::normal_distribution<float> normal(0.0F, scale);
  std::vector<float> out(n);
  for (float& x : out) x = normal(rng);
  return out;
}

// The numbers that a prepared row stands for.
inline std::vector<double> read_prepared(ActFormat format, const std::uint8_t* row,
                                         std::int64_t k) {
  std::vector<double> out(static_cast<std::size_t>(k));
  for (std::int64_t i = 0; i < k; ++i) {
    double& x = out[static_cast<std::size_t>(i)];
    if (format == ActFormat::kF32) {
      x = static_cast<double>(reinterpret_cast<const float*>(row)[i]);
    } else {
      const ActRow act = act_row(row, padded_k(k));
      x = static_cast<double>(act.scale[i / scale_group(format)]) * act.q[i];
    }
  }
  return out;
}

// Memory at a 64-byte boundary.
class Aligned {
 public:
  explicit Aligned(std::size_t n_bytes) : storage_(n_bytes + 64) {
    const auto address = reinterpret_cast<std::uintptr_t>(storage_.data());
    data_ = storage_.data() + (64 - address % 64) % 64;
  }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  std::uint8_t* data() { return data_; }
  const std::uint8_t* data() const { return data_; }

 private:
  std::vector<std::uint8_t> storage_;
  std::uint8_t* data_;
};

}  // namespace moesaic::kernels::testing
