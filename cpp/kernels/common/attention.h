// Attention of a few queries over cached rows of one chunk, over the vector vocabulary S.
//
// Order of sums, the same for any number of queries and any range: a score is sixteen interleaved
// lanes of fma over d_k joined by S::reduce_add, times scale; exp is taken against the query's
// largest visible score of the chunk; the sum of exp runs in lanes (position in the chunk % 16)
// joined by S::reduce_add; a value column is one fma after the other in order of position. Keys
// that a query does not see have weight zero.
#pragma once

#include <cstring>

#include "kernels/common/f32_ops.h"
#include "kernels/table.h"
#include "quant/q8_0.h"

namespace moesaic::kernels {

// Queries worked on together: their scores stay in the first-level cache.
inline constexpr int kQueryBlock = 16;
// Keys that all of them meet before the next ones: they come from the second-level cache once.
inline constexpr int kKeyBlock = 32;

struct AttentionScratch {
  const std::uint8_t* key[kAttentionChunk];
  const std::uint8_t* value[kAttentionChunk];
  alignas(64) float score[kQueryBlock][kAttentionChunk];
};

// A cache type gives sixteen values of a row from value d on, or n of them and zeros.
template <class S>
struct F32Kv {
  static constexpr int kPerLine = 16;  // values in 64 bytes, or somewhat fewer
  static const void* address(const std::uint8_t* row, std::int64_t d) { return row + d * 4; }
  static typename S::F load(const std::uint8_t* row, std::int64_t d) {
    return S::load(reinterpret_cast<const float*>(row) + d);
  }
  static typename S::F load_n(const std::uint8_t* row, std::int64_t d, int n) {
    return S::load_n(reinterpret_cast<const float*>(row) + d, n);
  }
};
template <class S>
struct F16Kv {
  static constexpr int kPerLine = 32;
  static const void* address(const std::uint8_t* row, std::int64_t d) { return row + d * 2; }
  static typename S::F load(const std::uint8_t* row, std::int64_t d) {
    return S::load_f16(reinterpret_cast<const std::uint16_t*>(row) + d);
  }
  static typename S::F load_n(const std::uint8_t* row, std::int64_t d, int n) {
    return S::load_f16_n(reinterpret_cast<const std::uint16_t*>(row) + d, n);
  }
};
// Rows are whole blocks, so d is a multiple of 16 and nothing is left over at a row's end.
template <class S>
struct Q8Kv {
  static constexpr int kPerLine = 32;
  static const void* address(const std::uint8_t* row, std::int64_t d) {
    return row + d / 32 * static_cast<std::int64_t>(sizeof(quant::BlockQ8_0));
  }
  static typename S::F load(const std::uint8_t* row, std::int64_t d) {
    const std::uint8_t* block = row + d / 32 * static_cast<std::int64_t>(sizeof(quant::BlockQ8_0));
    return S::mul(S::load_int8(reinterpret_cast<const std::int8_t*>(block + 2 + d % 32)),
                  S::set1_f16(block));
  }
  static typename S::F load_n(const std::uint8_t* row, std::int64_t d, int) { return load(row, d); }
};

// One call: the queries [q0, q0 + n_q) of the job, the keys [low, high) of its chunk (offsets in
// the chunk) that any of them sees.
template <class S, class Kv>
struct AttentionBlock {
  using F = typename S::F;
  const AttentionJob& job;
  AttentionScratch& scratch;
  std::int64_t q0;
  int n_q;
  int low;
  int high;

  const float* query(int i) const { return job.q + (q0 + i) * job.q_stride; }

  // Asks for a row that comes after those of the block at hand: with few queries the cache is read
  // from memory. (Not inlined, GCC takes it for a function without effects and drops the calls.)
  [[gnu::always_inline]] void fetch_ahead(int t) const {
    if (t >= high || job.n_q > kQueryBlock) return;
    for (std::int64_t d = 0; d < job.d_k; d += Kv::kPerLine) {
      __builtin_prefetch(Kv::address(scratch.key[t], d), 0, 2);
    }
    if (scratch.value[t] == scratch.key[t]) return;
    for (std::int64_t d = 0; d < job.d_v; d += Kv::kPerLine) {
      __builtin_prefetch(Kv::address(scratch.value[t], d), 0, 2);
    }
  }

  template <int kQ, int kT>
  void score_tile(int i, int t) {
    F acc[kQ * kT];
    for (F& a : acc) a = S::zero();
    const float* q[kQ];
    for (int a = 0; a < kQ; ++a) q[a] = query(i + a);
    const std::uint8_t* const* key = scratch.key + t;
    std::int64_t d = 0;
    for (; d + 16 <= job.d_k; d += 16) {
      F qd[kQ];
      for (int a = 0; a < kQ; ++a) qd[a] = S::load(q[a] + d);
      for (int b = 0; b < kT; ++b) {
        const F kd = Kv::load(key[b], d);
        for (int a = 0; a < kQ; ++a) acc[a * kT + b] = S::fma(qd[a], kd, acc[a * kT + b]);
      }
    }
    if (d < job.d_k) {
      const int n = static_cast<int>(job.d_k - d);
      for (int b = 0; b < kT; ++b) {
        const F kd = Kv::load_n(key[b], d, n);
        for (int a = 0; a < kQ; ++a) {
          acc[a * kT + b] = S::fma(S::load_n(q[a] + d, n), kd, acc[a * kT + b]);
        }
      }
    }
    fetch_ahead(i / kQ % kT + t + kKeyBlock);
    float sums[kQ * kT];
    S::reduce_add_each(acc, sums);
    for (int a = 0; a < kQ; ++a) {
      std::memcpy(scratch.score[i + a] + t, sums + a * kT, kT * sizeof(float));
    }
  }

  // Tiles keep their number of accumulators: fewer queries, more keys; what is left over at an end
  // is done by tiles of half the size.
  template <int kQ, int kT>
  void score_rows(int i, int t, int end) {
    for (; t + kT <= end; t += kT) score_tile<kQ, kT>(i, t);
    if constexpr (kT > 1) {
      if (t < end) score_rows<kQ, kT / 2>(i, t, end);
    }
  }

  template <int kQ>
  void scores(int i, int t, int end) {
    for (; i + kQ <= n_q; i += kQ) score_rows<kQ, S::kTileQ * S::kTileT / kQ>(i, t, end);
    if constexpr (kQ > 1) scores<kQ / 2>(i, t, end);
  }

  // Sums of products -> exp(scale * sum - maximum) in place, zero where the query does not see the
  // key; fills the job's maximum and sum.
  void soften(int i, std::int64_t chunk_start) {
    float* score = scratch.score[i];
    const int begin16 = low / 16 * 16;
    const int end16 = (high + 15) / 16 * 16;
    const float none = -__builtin_inff();
    const F scale = S::set1(job.scale);
    for (int t = begin16; t < end16; t += 16) {
      S::store(score + t, S::mul(S::load(score + t), scale));
    }
    std::int64_t first = job.first[q0 + i] - chunk_start;
    std::int64_t last = job.last[q0 + i] - chunk_start;
    if (first < low) first = low;
    if (last > high) last = high;
    for (std::int64_t t = begin16; t < first && t < end16; ++t) score[t] = none;
    for (std::int64_t t = last > begin16 ? last : begin16; t < end16; ++t) score[t] = none;
    F best = S::set1(none);
    for (int t = begin16; t < end16; t += 16) best = S::max(best, S::load(score + t));
    const float maximum = S::reduce_max(best);
    job.maximum[q0 + i] = maximum;
    F sum = S::zero();
    if (first >= last) {
      for (int t = begin16; t < end16; t += 16) S::store(score + t, sum);
    } else {
      const F shift = S::set1(maximum);
      for (int t = begin16; t < end16; t += 16) {
        const F e = exp<S>(S::sub(S::load(score + t), shift));
        S::store(score + t, e);
        sum = S::add(sum, e);
      }
    }
    const float total = S::reduce_add(sum);
    job.sum[q0 + i] = total;
    // A NaN score does not show in the maximum; without this it would pass for "nothing visible".
    if (total != total) job.maximum[q0 + i] = total;
  }

  template <int kQ, int kD>
  void value_tile(int i, std::int64_t d) {
    F acc[kQ * kD];
    for (F& a : acc) a = S::zero();
    for (int t = low; t < high; ++t) {
      const std::uint8_t* row = scratch.value[t];
      F v[kD];
      for (int b = 0; b < kD; ++b) v[b] = Kv::load(row, d + 16 * b);
      for (int a = 0; a < kQ; ++a) {
        const F p = S::set1(scratch.score[i + a][t]);
        for (int b = 0; b < kD; ++b) acc[a * kD + b] = S::fma(p, v[b], acc[a * kD + b]);
      }
    }
    for (int a = 0; a < kQ; ++a) {
      float* out = job.out + (q0 + i + a) * job.out_stride + d;
      for (int b = 0; b < kD; ++b) S::store(out + 16 * b, acc[a * kD + b]);
    }
  }

  void value_tail(int i, std::int64_t d, int n) {
    F acc = S::zero();
    for (int t = low; t < high; ++t) {
      acc = S::fma(S::set1(scratch.score[i][t]), Kv::load_n(scratch.value[t], d, n), acc);
    }
    S::store_n(job.out + (q0 + i) * job.out_stride + d, acc, n);
  }

  template <int kQ, int kD>
  void value_rows(int i, std::int64_t d) {
    for (; d + 16 * kD <= job.d_v; d += 16 * kD) value_tile<kQ, kD>(i, d);
    if constexpr (kD > 1) {
      value_rows<kQ, kD / 2>(i, d);
    } else if (d < job.d_v) {
      for (int a = 0; a < kQ; ++a) value_tail(i + a, d, static_cast<int>(job.d_v - d));
    }
  }

  template <int kQ>
  void values(int i) {
    for (; i + kQ <= n_q; i += kQ) value_rows<kQ, S::kTileValueQ * S::kTileD / kQ>(i, 0);
    if constexpr (kQ > 1) values<kQ / 2>(i);
  }
};

template <class S, class Kv>
void attention_of(const AttentionJob& job) {
  auto& scratch = *reinterpret_cast<AttentionScratch*>(job.scratch);
  const std::int64_t chunk_start = job.begin / kAttentionChunk * kAttentionChunk;
  const int page_bits = __builtin_ctzll(static_cast<unsigned long long>(job.page_tokens));
  for (std::int64_t t = job.begin; t < job.end; ++t) {
    const std::int64_t page = t >> page_bits;
    const auto row = static_cast<std::size_t>(t & (job.page_tokens - 1));
    scratch.key[t - chunk_start] = job.k_pages[page] + row * job.k_row_bytes;
    scratch.value[t - chunk_start] = job.v_pages[page] + row * job.v_row_bytes;
  }
  for (std::int64_t q0 = 0; q0 < job.n_q; q0 += kQueryBlock) {
    const int n_q = job.n_q - q0 < kQueryBlock ? static_cast<int>(job.n_q - q0) : kQueryBlock;
    std::int64_t low = job.end;
    std::int64_t high = job.begin;
    for (int i = 0; i < n_q; ++i) {
      const std::int64_t first = job.first[q0 + i] > job.begin ? job.first[q0 + i] : job.begin;
      const std::int64_t last = job.last[q0 + i] < job.end ? job.last[q0 + i] : job.end;
      if (first >= last) continue;
      low = first < low ? first : low;
      high = last > high ? last : high;
    }
    if (low > high) high = low;
    AttentionBlock<S, Kv> block{job,
                                scratch,
                                q0,
                                n_q,
                                static_cast<int>(low - chunk_start),
                                static_cast<int>(high - chunk_start)};
    for (int t = block.low; t < block.high; t += kKeyBlock) {
      block.template scores<S::kTileQ>(0, t,
                                       t + kKeyBlock < block.high ? t + kKeyBlock : block.high);
    }
    for (int i = 0; i < n_q; ++i) block.soften(i, chunk_start);
    block.template values<S::kTileValueQ>(0);
  }
}

template <class S>
void attention(const AttentionJob& job) {
  switch (job.kv_type) {
    case KvType::kF32:
      return attention_of<S, F32Kv<S>>(job);
    case KvType::kF16:
      return attention_of<S, F16Kv<S>>(job);
    case KvType::kQ8_0:
      return attention_of<S, Q8Kv<S>>(job);
    case KvType::kBF16:
      __builtin_trap();  // attention_bf16's alone
  }
}

template <class S>
void attention_merge(float* max_a, float* sum_a, float* out_a, const float* max_b,
                     const float* sum_b, const float* out_b, std::int64_t d_v) {
  if (*max_b == -__builtin_inff()) return;
  if (*max_a == -__builtin_inff()) {
    *max_a = *max_b;
    *sum_a = *sum_b;
    map<S>(d_v, out_a, [&](std::int64_t i, int m) { return load_some<S>(out_b + i, m); });
    return;
  }
  const float maximum = *max_a > *max_b ? *max_a : *max_b;
  const float scale_a = exp_one<S>(*max_a - maximum);
  const float scale_b = exp_one<S>(*max_b - maximum);
  const typename S::F fa = S::set1(scale_a);
  const typename S::F fb = S::set1(scale_b);
  *max_a = maximum;
  *sum_a = __builtin_fmaf(*sum_b, scale_b, *sum_a * scale_a);
  map<S>(d_v, out_a, [&](std::int64_t i, int m) {
    return S::fma(load_some<S>(out_b + i, m), fb, S::mul(load_some<S>(out_a + i, m), fa));
  });
}

template <class S>
void attention_finish(float* maximum, float* sum, float* out, std::int64_t d_v, float sink) {
  const float none = -__builtin_inff();
  float factor = 0.0F;
  if (*maximum != none) {
    if (sink > *maximum) {
      const float shrink = exp_one<S>(*maximum - sink);
      *sum = __builtin_fmaf(*sum, shrink, 1.0F);
      *maximum = sink;
      factor = shrink / *sum;
    } else {
      if (sink != none) *sum = *sum + exp_one<S>(sink - *maximum);
      factor = 1.0F / *sum;
    }
  }
  const typename S::F f = S::set1(factor);
  map<S>(d_v, out, [&](std::int64_t i, int m) { return S::mul(f, load_some<S>(out + i, m)); });
}

}  // namespace moesaic::kernels
