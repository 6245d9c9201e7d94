// Attention over a made-up cache, for the tests of attention: shapes, rows in pages, queries with
// causal ends and windows.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "kernels/random_weights.h"
#include "quant/q8_0.h"

namespace moesaic::kernels::testing {

struct Case {
  std::int64_t n_q;
  std::int64_t d_k;
  std::int64_t d_v;
  std::int64_t begin;
  std::int64_t end;
  std::int64_t page_tokens;
  KvType type;
  bool shared;  // values are the first d_v columns of the keys (MLA)
};

struct Cache {
  Cache(const Case& c, std::mt19937& rng) {
    const std::int64_t n_rows = c.end;
    const auto bytes_of = [&](std::int64_t n) {
      const auto count = static_cast<std::size_t>(n);
      return c.type == KvType::kQ8_0 ? count / 32 * 34 : count * (c.type == KvType::kF16 ? 2 : 4);
    };
    // Rows need not be dense, but are as aligned as their type.
    k_row_bytes = bytes_of(c.d_k) + (c.type == KvType::kF32 ? 8 : 6);
    v_row_bytes = c.shared ? k_row_bytes : bytes_of(c.d_v);
    keys = random_floats(static_cast<std::size_t>(n_rows * c.d_k), rng);
    values = random_floats(static_cast<std::size_t>(n_rows * c.d_v), rng);
    const auto n_pages = static_cast<std::size_t>((n_rows + c.page_tokens - 1) / c.page_tokens);
    const auto tokens = static_cast<std::size_t>(c.page_tokens);
    for (std::size_t p = 0; p < n_pages; ++p) {
      k_data.emplace_back(tokens * k_row_bytes);
      v_data.emplace_back(tokens * v_row_bytes);
    }
    // Stores n floats and gives them the values that the cache's type holds.
    const auto put = [&](std::uint8_t* at, float* x, std::int64_t n) {
      if (c.type == KvType::kQ8_0) {
        quant::encode_q8_0(x, n / 32, at);
        quant::decode_q8_0(at, n / 32, x);
        return;
      }
      for (std::int64_t i = 0; i < n; ++i) {
        if (c.type == KvType::kF16) {
          const std::uint16_t half = quant::f32_to_f16(x[i]);
          x[i] = quant::f16_to_f32(half);
          std::memcpy(at + 2 * i, &half, 2);
        } else {
          std::memcpy(at + 4 * i, x + i, 4);
        }
      }
    };
    for (std::int64_t t = 0; t < n_rows; ++t) {
      const auto page = static_cast<std::size_t>(t / c.page_tokens);
      const auto row = static_cast<std::size_t>(t % c.page_tokens);
      float* key = keys.data() + t * c.d_k;
      float* value = values.data() + t * c.d_v;
      put(k_data[page].data() + row * k_row_bytes, key, c.d_k);
      if (c.shared) {
        std::copy_n(key, c.d_v, value);
      } else {
        put(v_data[page].data() + row * v_row_bytes, value, c.d_v);
      }
    }
    for (std::size_t p = 0; p < n_pages; ++p) {
      k_pages.push_back(k_data[p].data());
      v_pages.push_back(c.shared ? k_data[p].data() : v_data[p].data());
    }
  }
  std::size_t k_row_bytes;
  std::size_t v_row_bytes;
  std::vector<float> keys;    // (end, d_k), as the cache's type holds them
  std::vector<float> values;  // (end, d_v)
  std::vector<std::vector<std::uint8_t>> k_data;
  std::vector<std::vector<std::uint8_t>> v_data;
  std::vector<const std::uint8_t*> k_pages;
  std::vector<const std::uint8_t*> v_pages;
};

struct Result {
  std::vector<float> maximum;
  std::vector<float> sum;
  std::vector<float> out;  // (n_q, d_v)
};

struct Problem {
  explicit Problem(const Case& given) : c(given), rng(11), cache(given, rng) {
    q = random_floats(static_cast<std::size_t>(c.n_q * (c.d_k + 5)), rng);
    for (std::int64_t i = 0; i < c.n_q; ++i) {
      // A causal staircase; the windows of some queries begin late or hold nothing at all.
      last.push_back(std::min(c.end, c.begin + 1 + (c.end - c.begin) * (i + 1) / c.n_q));
      first.push_back(i % 3 == 1 ? std::max(c.begin, last.back() - 20) : 0);
      if (i == 4) first.back() = last.back();
    }
  }

  Result run(const Table& table, std::int64_t group) const { return run(table.attention, group); }

  // In calls of at most `group` queries.
  Result run(void (*attention)(const AttentionJob&), std::int64_t group) const {
    Result result;
    const auto n_q = static_cast<std::size_t>(c.n_q);
    result.maximum.assign(n_q, 7.0F);
    result.sum.assign(n_q, 7.0F);
    result.out.assign(n_q * static_cast<std::size_t>(c.d_v), 7.0F);
    Aligned scratch(attention_scratch_bytes(c.d_k, c.d_v));
    for (std::int64_t i = 0; i < c.n_q; i += group) {
      const AttentionJob job{q.data() + i * (c.d_k + 5),
                             c.d_k + 5,
                             std::min(group, c.n_q - i),
                             c.d_k,
                             c.d_v,
                             scale(),
                             c.type,
                             cache.k_pages.data(),
                             cache.v_pages.data(),
                             cache.k_row_bytes,
                             cache.v_row_bytes,
                             c.page_tokens,
                             c.begin,
                             c.end,
                             first.data() + i,
                             last.data() + i,
                             result.maximum.data() + i,
                             result.sum.data() + i,
                             result.out.data() + i * c.d_v,
                             c.d_v,
                             scratch.data()};
      attention(job);
    }
    return result;
  }
  float scale() const { return 1.0F / std::sqrt(static_cast<float>(c.d_k)); }

  Case c;
  std::mt19937 rng;
  Cache cache;
  std::vector<float> q;  // (n_q, d_k), rows d_k + 5 apart
  std::vector<std::int64_t> first;
  std::vector<std::int64_t> last;
};

inline constexpr Case kCases[] = {
    {1, 64, 64, 0, 1, 64, KvType::kF16, false},
    {1, 128, 128, 0, 512, 64, KvType::kF16, false},
    {3, 24, 24, 0, 33, 16, KvType::kF32, false},
    {5, 40, 80, 512, 700, 64, KvType::kF16, false},
    {9, 80, 40, 1024, 1025, 1, KvType::kF32, false},
    {16, 576, 512, 0, 100, 32, KvType::kF16, true},
    {17, 37, 19, 512, 1024, 512, KvType::kF16, false},
    {70, 64, 64, 0, 70, 64, KvType::kF16, false},
    {8, 128, 128, 600, 900, 128, KvType::kF16, false},
    {6, 192, 128, 530, 531, 64, KvType::kF32, false},
    {16, 576, 512, 0, 100, 32, KvType::kQ8_0, true},
    {5, 64, 96, 512, 700, 64, KvType::kQ8_0, false},
    {1, 128, 128, 0, 512, 128, KvType::kQ8_0, false},
    {70, 192, 128, 512, 1000, 64, KvType::kF32, false},
    {40, 576, 512, 0, 300, 64, KvType::kF16, true},
};

// A way to compute attention that this machine runs.
struct Attention {
  std::string name;
  void (*run)(const AttentionJob& job);
};

inline std::vector<Attention> bf16_attentions() {
  std::vector<Attention> all;
  for (const Table* table : available_tables()) {
    if (table->attention_bf16 != nullptr) {
      all.push_back({std::string(table->isa) + " bf16", table->attention_bf16});
    }
  }
  return all;
}

inline std::vector<Attention> all_attentions() {
  std::vector<Attention> all = bf16_attentions();
  for (const Table* table : available_tables()) all.push_back({table->isa, table->attention});
  return all;
}

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace moesaic::kernels::testing
