// Attention kernels: milliseconds and float operations per second for decode (few queries per KV
// head) and prefill (many), over a cache of 4,096 rows.
#include <cstring>
#include <random>

#include "base/aligned_buffer.h"
#include "kernels/table.h"
#include "kernels_bench.h"

namespace moesaic::bench {
namespace {

struct Shape {
  const char* name;
  std::int64_t n_q;
  std::int64_t d_k;
  std::int64_t d_v;
  bool shared;
};

}  // namespace

void bench_attention(const Options& options, const Ceilings& ceilings) {
  using kernels::AttentionJob;
  constexpr std::int64_t kTokens = 4096;
  constexpr std::int64_t kPage = 64;
  constexpr Shape kShapes[] = {{"mla_decode_16_heads", 16, 576, 512, true},
                               {"mla_prefill_64_queries", 1024, 576, 512, true},
                               {"gqa_decode_group_1", 1, 128, 128, false},
                               {"gqa_decode_group_4", 4, 128, 128, false},
                               {"gqa_prefill_64_queries", 256, 128, 128, false},
                               {"decompressed_prefill_64_queries", 64, 192, 128, false},
                               {"small_head_prefill", 192, 64, 64, false}};
  for (const kernels::Table* table : kernels::available_tables()) {
    if (!options.isa.empty() && options.isa != table->isa) continue;
    if (options.isa.empty() && std::strcmp(table->isa, "generic") == 0) continue;
    for (const Shape& s : kShapes) {
      std::mt19937 rng(3);
      std::normal_distribution<float> normal;
      const auto k_bytes = static_cast<std::size_t>(s.d_k) * 2;
      const auto v_bytes = s.shared ? k_bytes : static_cast<std::size_t>(s.d_v) * 2;
      AlignedBuffer k(kTokens * k_bytes);
      AlignedBuffer v(kTokens * v_bytes);
      for (std::size_t i = 0; i < k.size() / 2; ++i) k.as<std::uint16_t>()[i] = rng() & 0xBBFFU;
      for (std::size_t i = 0; i < v.size() / 2; ++i) v.as<std::uint16_t>()[i] = rng() & 0xBBFFU;
      std::vector<const std::uint8_t*> k_pages;
      std::vector<const std::uint8_t*> v_pages;
      for (std::int64_t p = 0; p < kTokens / kPage; ++p) {
        const auto row = static_cast<std::size_t>(p * kPage);
        k_pages.push_back(k.data() + row * k_bytes);
        v_pages.push_back(s.shared ? k_pages.back() : v.data() + row * v_bytes);
      }
      std::vector<float> q(static_cast<std::size_t>(s.n_q * s.d_k));
      for (float& x : q) x = normal(rng);
      const auto n_q = static_cast<std::size_t>(s.n_q);
      std::vector<std::int64_t> first(n_q, 0);
      std::vector<std::int64_t> last(n_q, kTokens);
      std::vector<float> maximum(n_q);
      std::vector<float> sum(n_q);
      std::vector<float> out(n_q * static_cast<std::size_t>(s.d_v));
      AlignedBuffer scratch(kernels::attention_scratch_bytes(s.d_k, s.d_v));
      for (const bool bf16 : {false, true}) {
        if (bf16 && table->attention_bf16 == nullptr) continue;
        const double seconds = best_seconds(options.seconds, [&] {
          for (std::int64_t begin = 0; begin < kTokens; begin += kernels::kAttentionChunk) {
            const AttentionJob job{q.data(),
                                   s.d_k,
                                   s.n_q,
                                   s.d_k,
                                   s.d_v,
                                   0.05F,
                                   kernels::KvType::kF16,
                                   k_pages.data(),
                                   v_pages.data(),
                                   k_bytes,
                                   v_bytes,
                                   kPage,
                                   begin,
                                   begin + kernels::kAttentionChunk,
                                   first.data(),
                                   last.data(),
                                   maximum.data(),
                                   sum.data(),
                                   out.data(),
                                   s.d_v,
                                   scratch.data()};
            (bf16 ? table->attention_bf16 : table->attention)(job);
          }
        });
        const double gflop = 2.0 * static_cast<double>(s.n_q * kTokens * (s.d_k + s.d_v)) / 1e9;
        const double cache_gb = static_cast<double>(k.size() + (s.shared ? 0 : v.size())) / 1e9;
        std::printf(
            "{\"bench\": \"attention\", \"isa\": \"%s%s\", \"shape\": \"%s\", \"rows\": %lld, "
            "\"ms\": %.3f, \"gflop_per_s\": %.1f, \"share\": %.2f, \"cache_gb_per_s\": %.1f}\n",
            table->isa, bf16 ? "+bf16" : "", s.name, static_cast<long long>(kTokens), seconds * 1e3,
            gflop / seconds, gflop / seconds / ceilings.f32_gflop_per_s, cache_gb / seconds);
        std::fflush(stdout);
      }
    }
  }
}

}  // namespace moesaic::bench
