// Attention with products of bf16 and sums of float32 (AVX512_BF16, which a CPU of this table may
// have): two products an instruction instead of one. Not for exact results: rows of the cache and
// queries lose all but eight bits of their numbers. The instructions are spelt out, so that nothing
// else in this folder is compiled for them.
//
// Order of sums, whatever else is in the call: a score is one chain over pairs of dimensions, in
// order, times scale; weights are exp against the largest score so far, looked at after each
// kKeySpan positions of the chunk, and rounded to bf16 before they are summed, in order of
// position; a value column is one chain over pairs of positions, rescaled when the maximum grows.
//
// Sixteen queries lie in the lanes of a register: keys are broadcast by pairs of dimensions,
// maximum and sum need no shuffles, and weights are broadcast by pairs of positions.
#include "kernels/common/attention_bf16.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "kernels/avx512vnni/isa.h"
#include "kernels/common/attention.h"
#include "kernels/common/f32_ops.h"

namespace moesaic::kernels::avx512vnni {
namespace {

using F = __m512;
using I = __m512i;

constexpr std::int64_t kFetchAhead = 16;  // rows
constexpr int kKeys = 4;                  // whose scores are in registers at once

// acc + products of the pairs of a with those of b.
[[gnu::always_inline]] inline F dot_pairs(F acc, I a, I b) {
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
  return acc;
}
// Thirty-two bf16: those of low, then those of high, rounded to nearest even.
[[gnu::always_inline]] inline I to_bf16(F low, F high) {
  I out;
  __asm__("vcvtne2ps2bf16 %1, %2, %0" : "=v"(out) : "v"(low), "v"(high));
  return out;
}
// Words (0, 16), (1, 17), ... of x: what to_bf16 put into its halves, as pairs.
inline I pair_halves(I x) {
  alignas(64) static constexpr std::uint16_t kOrder[32] = {
      0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
      8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(kOrder), x);
}
// Pairs of word i of a with word i of b, for the lower and the upper half of the words.
template <int kHalf>
inline I pair_words(I a, I b) {
  alignas(64) static constexpr std::uint16_t kOrder[2][32] = {
      {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47},
      {16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
       24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63}};
  return _mm512_permutex2var_epi16(a, _mm512_load_si512(kOrder[kHalf]), b);
}

// Sums over the four lanes of each 128-bit group: those of group i of x[g] go to lane 4 i + g.
[[gnu::always_inline]] inline F fold(F x0, F x1, F x2, F x3) {
  const auto add_halves = [](F a, F b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  };
  const __m512d a = _mm512_castps_pd(add_halves(x0, x1));
  const __m512d b = _mm512_castps_pd(add_halves(x2, x3));
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)),
                       _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
}

// Rows that have been rounded before: the same numbers again.
struct Bf16Kv {
  static constexpr int kPerLine = 32;
  static const void* address(const std::uint8_t* row, std::int64_t d) { return row + d * 2; }
  static F load(const std::uint8_t* row, std::int64_t d) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + d * 2)));
  }
  static F load_n(const std::uint8_t* row, std::int64_t d, int n) {
    const auto lanes = static_cast<__mmask16>((1U << n) - 1);
    return widen(_mm256_maskz_loadu_epi16(lanes, row + d * 2));
  }

 private:
  static F widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
  }
};

// Sixteen values of a row from dimension d on; zeros past its width, and for a row that is not
// there.
template <class Kv>
[[gnu::always_inline]] inline F load16(const std::uint8_t* row, std::int64_t d,
                                       std::int64_t width) {
  if (row == nullptr || d >= width) return _mm512_setzero_ps();
  return d + 16 <= width ? Kv::load(row, d) : Kv::load_n(row, d, static_cast<int>(width - d));
}

// At most kQueryGroup queries of a job over its range.
template <class Kv>
class Group {
 public:
  Group(const AttentionJob& job, std::int64_t q0)
      : job_(job),
        layout_(job.d_k, job.d_v),
        q0_(q0),
        n_q_(std::min(kQueryGroup, job.n_q - q0)),
        n_blocks_((n_q_ + kLanes - 1) / kLanes),
        chunk_start_(job.begin / kAttentionChunk * kAttentionChunk),
        queries_(job.scratch),
        keys_(queries_ + layout_.queries_bytes()),
        values_(keys_ + layout_.keys_bytes()),
        scores_(values_ + layout_.values_bytes()),
        weights_(scores_ + layout_.scores_bytes()) {}

  void run() {
    take_queries();
    for (std::int64_t span = chunk_start_; span < high_; span += kKeySpan) {
      if (span + kKeySpan <= low_) continue;
      const std::int64_t end = std::min(span + kKeySpan, high_);
      // From the tile with the first key that anyone sees.
      std::int64_t t = span + std::max<std::int64_t>(low_ - span, 0) / kKeyTile * kKeyTile;
      for (; t < end; t += kKeyTile) take_tile(span, t);
      for (std::int64_t b = 0; b < n_blocks_; ++b) {
        if (span < block_[b].high && end > block_[b].low) finish_span(b, span);
      }
    }
    leave();
  }

 private:
  // Sixteen queries: lanes that hold none see nothing.
  struct Block {
    alignas(64) std::int32_t first[kLanes];  // counted from the chunk's start
    alignas(64) std::int32_t last[kLanes];
    alignas(64) float maximum[kLanes];
    alignas(64) float sum[kLanes];
    alignas(64) float factor[kLanes];  // of what was summed before, after the maximum grew
    std::int64_t low;                  // what any of them sees
    std::int64_t high;
    bool started;
  };

  std::int64_t n_in(std::int64_t b) const { return std::min(kLanes, n_q_ - b * kLanes); }

  void take_queries() {
    for (std::int64_t b = 0; b < n_blocks_; ++b) {
      Block& block = block_[b];
      block.low = job_.end;
      block.high = job_.begin;
      block.started = false;
      for (std::int64_t i = 0; i < kLanes; ++i) {
        std::int64_t first = 0;
        std::int64_t last = 0;
        if (i < n_in(b)) {
          first = std::max(job_.first[q0_ + b * kLanes + i], job_.begin);
          last = std::min(job_.last[q0_ + b * kLanes + i], job_.end);
        }
        if (first < last) {
          block.low = std::min(block.low, first);
          block.high = std::max(block.high, last);
        } else {
          first = last = chunk_start_;
        }
        block.first[i] = static_cast<std::int32_t>(first - chunk_start_);
        block.last[i] = static_cast<std::int32_t>(last - chunk_start_);
        block.maximum[i] = -std::numeric_limits<float>::infinity();
        block.sum[i] = 0.0F;
      }
      low_ = std::min(low_, block.low);
      high_ = std::max(high_, block.high);
      pack_queries(b);
    }
  }

  void pack_queries(std::int64_t b) {
    std::uint8_t* out = queries_ + static_cast<std::size_t>(b) * layout_.query_block_bytes();
    for (std::int64_t p = 0; p < layout_.n_pieces; ++p) {
      I x[16];
      for (std::int64_t i = 0; i < kLanes; ++i) {
        const float* q = i < n_in(b) ? job_.q + (q0_ + b * kLanes + i) * job_.q_stride : nullptr;
        const auto* row = reinterpret_cast<const std::uint8_t*>(q);
        x[i] = to_bf16(load16<F32Kv<Simd>>(row, p * kPieceDims, job_.d_k),
                       load16<F32Kv<Simd>>(row, p * kPieceDims + 16, job_.d_k));
      }
      for (int g = 0; g < 4; ++g) {
        const I even01 = _mm512_shuffle_i32x4(x[g], x[4 + g], 0x88);
        const I odd01 = _mm512_shuffle_i32x4(x[g], x[4 + g], 0xDD);
        const I even23 = _mm512_shuffle_i32x4(x[8 + g], x[12 + g], 0x88);
        const I odd23 = _mm512_shuffle_i32x4(x[8 + g], x[12 + g], 0xDD);
        std::uint8_t* at = out + (p * 16 + g) * 64;
        _mm512_store_si512(at, _mm512_shuffle_i32x4(even01, even23, 0x88));
        _mm512_store_si512(at + 4 * 64, _mm512_shuffle_i32x4(odd01, odd23, 0x88));
        _mm512_store_si512(at + 8 * 64, _mm512_shuffle_i32x4(even01, even23, 0xDD));
        _mm512_store_si512(at + 12 * 64, _mm512_shuffle_i32x4(odd01, odd23, 0xDD));
      }
    }
  }

  const std::uint8_t* row_at(const std::uint8_t* const* pages, std::size_t row_bytes,
                             std::int64_t t) const {
    if (t < job_.begin || t >= job_.end) return nullptr;
    const auto in_page = static_cast<std::size_t>(t & (job_.page_tokens - 1));
    return pages[t >> page_bits_] + in_page * row_bytes;
  }

  // Scores of the keys [t, t + kKeyTile) for all queries, and their values into values_.
  void take_tile(std::int64_t span, std::int64_t t) {
    // Rows of this tile, then rows to ask for while it is worked on: with few queries the cache is
    // read from memory.
    const std::uint8_t* keys[2 * kKeyTile];
    for (std::int64_t i = 0; i < kKeyTile; ++i) {
      keys[i] = row_at(job_.k_pages, job_.k_row_bytes, t + i);
      const std::int64_t ahead = t + i + kFetchAhead;
      keys[kKeyTile + i] =
          ahead < job_.end ? row_at(job_.k_pages, job_.k_row_bytes, ahead) : keys[i];
    }
    const std::int64_t page = std::max(t, job_.begin) >> page_bits_;
    const bool shared = job_.k_pages[page] == job_.v_pages[page];
    if (!shared) {
      for (std::int64_t i = 0; i < kKeyTile; i += 2) {
        convert_values(row_at(job_.v_pages, job_.v_row_bytes, t + i),
                       row_at(job_.v_pages, job_.v_row_bytes, t + i + 1),
                       values_ + (t - span + i) / 2 * kGroupVectors * 64);
      }
    }
    bool converted = false;
    const bool whole = t >= job_.begin && t + kKeyTile <= job_.end && job_.d_k % kPieceDims == 0;
    for (std::int64_t b = 0; b < n_blocks_; ++b) {
      if (t >= block_[b].high || t + kKeyTile <= block_[b].low) continue;
      if (converted) {
        score_tile<false, false>(b, t - span, keys);
      } else if (!whole) {
        convert_keys(shared, keys, values_ + (t - span) / 2 * kGroupVectors * 64);
        score_tile<false, false>(b, t - span, keys);
      } else if (shared) {
        score_tile<true, true>(b, t - span, keys);
      } else {
        score_tile<true, false>(b, t - span, keys);
      }
      converted = true;
    }
  }

  template <bool kShared>
  [[gnu::always_inline]] void convert_piece(F a0, F a1, F b0, F b1, std::int64_t p, std::int64_t i,
                                            std::uint8_t* pair) {
    const I a = to_bf16(a0, a1);
    const I b = to_bf16(b0, b1);
    std::uint8_t* key = keys_ + (i * layout_.n_pieces + p) * 64;
    _mm512_store_si512(key, a);
    _mm512_store_si512(key + layout_.n_pieces * 64, b);
    if (kShared && p / 2 < layout_.n_groups) {
      std::uint8_t* value =
          pair + static_cast<std::size_t>(p / 2) * layout_.value_group_bytes() + p % 2 * 2 * 64;
      _mm512_store_si512(value, pair_words<0>(a, b));
      _mm512_store_si512(value + 64, pair_words<1>(a, b));
    }
  }

  // A tile with rows that are not there, or of odd width.
  void convert_keys(bool shared, const std::uint8_t* const* keys, std::uint8_t* pair) {
    for (std::int64_t i = 0; i < kKeyTile; i += 2, pair += kGroupVectors * 64) {
      for (std::int64_t p = 0; p < layout_.n_pieces; ++p) {
        const std::int64_t d = p * kPieceDims;
        const F a0 = load16<Kv>(keys[i], d, job_.d_k);
        const F a1 = load16<Kv>(keys[i], d + 16, job_.d_k);
        const F b0 = load16<Kv>(keys[i + 1], d, job_.d_k);
        const F b1 = load16<Kv>(keys[i + 1], d + 16, job_.d_k);
        if (shared) {
          convert_piece<true>(a0, a1, b0, b1, p, i, pair);
        } else {
          convert_piece<false>(a0, a1, b0, b1, p, i, pair);
        }
      }
    }
  }

  void convert_values(const std::uint8_t* v0, const std::uint8_t* v1, std::uint8_t* pair) {
    const std::int64_t whole = v0 == nullptr || v1 == nullptr ? 0 : job_.d_v / 16;
    const std::int64_t n_vectors = (job_.d_v + 15) / 16;
    const auto at = [&](std::int64_t n) {
      return pair + static_cast<std::size_t>(n / kGroupVectors) * layout_.value_group_bytes() +
             n % kGroupVectors * 64;
    };
    for (std::int64_t n = 0; n < whole; ++n) {
      _mm512_store_si512(at(n), pair_halves(to_bf16(Kv::load(v0, n * 16), Kv::load(v1, n * 16))));
    }
    for (std::int64_t n = whole; n < n_vectors; ++n) {
      _mm512_store_si512(at(n), pair_halves(to_bf16(load16<Kv>(v0, n * 16, job_.d_v),
                                                    load16<Kv>(v1, n * 16, job_.d_v))));
    }
  }

  // Scores of sixteen queries and the sixteen keys in keys_, from position t of the span. With
  // kConvert, keys_ is filled on the way from the rows: the conversions run beside the products.
  template <bool kConvert, bool kShared>
  void score_tile(std::int64_t b, std::int64_t t, const std::uint8_t* const* rows) {
    for (std::int64_t i = 0; i < kKeyTile; i += kKeys) {
      score_keys<kConvert, kShared>(b, t, i, rows + i);
    }
  }

  template <bool kConvert, bool kShared>
  [[gnu::always_inline]] void score_keys(std::int64_t b, std::int64_t t, std::int64_t i,
                                         const std::uint8_t* const* rows) {
    F acc[kKeys][4];  // (every loop over it unrolled, or GCC keeps it in memory)
#pragma GCC unroll 16
    for (int a = 0; a < kKeys * 4; ++a) acc[a / 4][a % 4] = _mm512_setzero_ps();
    const std::uint8_t* q = queries_ + static_cast<std::size_t>(b) * layout_.query_block_bytes();
    const std::uint8_t* k = keys_ + i * layout_.n_pieces * 64;
    std::uint8_t* pair = values_ + (t + i) / 2 * kGroupVectors * 64;
    const std::int64_t n_pieces = layout_.n_pieces;
    const auto convert = [&](std::int64_t p) {
      const std::int64_t d = p * kPieceDims;
#pragma GCC unroll 2
      for (int a = 0; a < kKeys; a += 2) {
        __builtin_prefetch(Kv::address(rows[kKeyTile + a], d), 0, 2);
        __builtin_prefetch(Kv::address(rows[kKeyTile + a + 1], d), 0, 2);
        convert_piece<kShared>(Kv::load(rows[a], d), Kv::load(rows[a], d + 16),
                               Kv::load(rows[a + 1], d), Kv::load(rows[a + 1], d + 16), p, i + a,
                               pair + a / 2 * kGroupVectors * 64);
      }
    };
    if constexpr (kConvert) convert(0);
    for (std::int64_t p = 0; p < n_pieces; ++p) {
      // A piece ahead, so that what is stored here is not waited for.
      if constexpr (kConvert) {
        if (p + 1 < n_pieces) convert(p + 1);
      }
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        I x[4];
#pragma GCC unroll 4
        for (int g = 0; g < 4; ++g) x[g] = _mm512_load_si512(q + (j * 4 + g) * 64);
#pragma GCC unroll 4
        for (int a = 0; a < kKeys; ++a) {
          const I eight = _mm512_broadcast_i32x4(_mm_load_si128(
              reinterpret_cast<const __m128i*>(k + a * layout_.n_pieces * 64 + j * 16)));
#pragma GCC unroll 4
          for (int g = 0; g < 4; ++g) acc[a][g] = dot_pairs(acc[a][g], x[g], eight);
        }
      }
      q += 16 * 64;
      k += 64;
    }
    const F scale = _mm512_set1_ps(job_.scale);
    float* out = score_of(b) + (t + i) * kLanes;
#pragma GCC unroll 4
    for (int a = 0; a < kKeys; ++a) {
      const F sums = fold(acc[a][0], acc[a][1], acc[a][2], acc[a][3]);
      _mm512_store_ps(out + a * kLanes, _mm512_mul_ps(sums, scale));
    }
  }

  float* score_of(std::int64_t b) const {
    return reinterpret_cast<float*>(scores_ +
                                    static_cast<std::size_t>(b) * Bf16Layout::score_block_bytes());
  }

  // Scores of a span to weights, and the weighted values onto the output.
  void finish_span(std::int64_t b, std::int64_t span) {
    Block& block = block_[b];
    // Whole pairs: what nobody sees has weight zero.
    const std::int64_t begin = std::max<std::int64_t>(block.low - span, 0) / 2 * 2;
    const std::int64_t end = (std::min(block.high - span, kKeySpan) + 1) / 2 * 2;
    const I first = _mm512_load_si512(block.first);
    const I last = _mm512_load_si512(block.last);
    const auto offset = static_cast<std::int32_t>(span - chunk_start_);
    const auto seen = [&](std::int64_t t) {
      const I position = _mm512_set1_epi32(offset + static_cast<std::int32_t>(t));
      return static_cast<__mmask16>(_mm512_cmple_epi32_mask(first, position) &
                                    _mm512_cmplt_epi32_mask(position, last));
    };
    const float* score = score_of(b);
    const F before = _mm512_load_ps(block.maximum);
    F maximum = before;
    for (std::int64_t t = begin; t < end; ++t) {
      // A NaN is passed over here (max gives its second operand) and shows in the sum.
      const F s = _mm512_load_ps(score + t * kLanes);
      maximum = _mm512_mask_max_ps(maximum, seen(t), s, maximum);
    }
    const __mmask16 grown = _mm512_cmp_ps_mask(before, maximum, _CMP_NEQ_UQ);
    const F factor =
        _mm512_mask_mov_ps(_mm512_set1_ps(1.0F), grown, exp<Simd>(_mm512_sub_ps(before, maximum)));
    F sum = _mm512_mul_ps(_mm512_load_ps(block.sum), factor);
    const I upper = _mm512_set1_epi32(static_cast<std::int32_t>(0xFFFF0000U));
    for (std::int64_t t = begin; t < end; t += 2) {
      const F* s = reinterpret_cast<const F*>(score + t * kLanes);
      const F e0 = _mm512_maskz_mov_ps(seen(t), exp<Simd>(_mm512_sub_ps(s[0], maximum)));
      const F e1 = _mm512_maskz_mov_ps(seen(t + 1), exp<Simd>(_mm512_sub_ps(s[1], maximum)));
      const I w = pair_halves(to_bf16(e0, e1));
      _mm512_store_si512(weights_ + t / 2 * 64, w);
      sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_slli_epi32(w, 16)));
      sum = _mm512_add_ps(sum, _mm512_castsi512_ps(_mm512_and_si512(w, upper)));
    }
    _mm512_store_ps(block.maximum, maximum);
    _mm512_store_ps(block.sum, sum);
    _mm512_store_ps(block.factor, block.started ? factor : _mm512_setzero_ps());
    add_values(b, begin / 2, end / 2);
    block.started = true;
  }

  void add_values(std::int64_t b, std::int64_t begin, std::int64_t end) {
    const std::int64_t n_vectors = (job_.d_v + 15) / 16;
    for (std::int64_t n = 0; n < n_vectors; n += kGroupVectors) {
      const std::uint8_t* values =
          values_ + static_cast<std::size_t>(n / kGroupVectors) * layout_.value_group_bytes();
      std::int64_t i = 0;
      for (; i + 4 <= n_in(b); i += 4) add_group<4>(b, i, n, values, begin, end);
      for (; i < n_in(b); ++i) add_group<1>(b, i, n, values, begin, end);
    }
  }

  template <int kQ>
  void add_group(std::int64_t b, std::int64_t i, std::int64_t n, const std::uint8_t* values,
                 std::int64_t begin, std::int64_t end) {
    switch (std::min(kGroupVectors, (job_.d_v + 15) / 16 - n)) {
      case 1:
        return value_tile<kQ, 1>(b, i, n, values, begin, end);
      case 2:
        return value_tile<kQ, 2>(b, i, n, values, begin, end);
      case 3:
        return value_tile<kQ, 3>(b, i, n, values, begin, end);
      default:
        return value_tile<kQ, 4>(b, i, n, values, begin, end);
    }
  }

  // Queries [i, i + kQ) of a block, value registers [n, n + kD).
  template <int kQ, int kD>
  void value_tile(std::int64_t b, std::int64_t i, std::int64_t n, const std::uint8_t* values,
                  std::int64_t begin, std::int64_t end) {
    const Block& block = block_[b];
    const int left = static_cast<int>(job_.d_v - (n + kD - 1) * 16);  // in the last register
    const __mmask16 last = left >= 16 ? 0xFFFF : Simd::first(left);
    float* out = job_.out + (q0_ + b * kLanes + i) * job_.out_stride + n * 16;
    F acc[kQ][kD];
    for (int a = 0; a < kQ; ++a) {
      const F factor = _mm512_set1_ps(block.factor[i + a]);
      for (int d = 0; d < kD; ++d) {
        const __mmask16 lanes = !block.started ? 0 : d == kD - 1 ? last : 0xFFFF;
        const F old = _mm512_maskz_loadu_ps(lanes, out + a * job_.out_stride + 16 * d);
        acc[a][d] = _mm512_mul_ps(old, factor);
      }
    }
    const std::uint8_t* weight = weights_ + i * 4;
    for (std::int64_t t = begin; t < end; ++t) {
      I v[kD];
      for (int d = 0; d < kD; ++d) {
        v[d] = _mm512_load_si512(values + (t * kGroupVectors + d) * 64);
      }
      for (int a = 0; a < kQ; ++a) {
        const I w =
            _mm512_set1_epi32(*reinterpret_cast<const std::int32_t*>(weight + t * 64 + a * 4));
        for (int d = 0; d < kD; ++d) acc[a][d] = dot_pairs(acc[a][d], v[d], w);
      }
    }
    for (int a = 0; a < kQ; ++a) {
      for (int d = 0; d < kD; ++d) {
        _mm512_mask_storeu_ps(out + a * job_.out_stride + 16 * d, d == kD - 1 ? last : 0xFFFF,
                              acc[a][d]);
      }
    }
  }

  void leave() {
    for (std::int64_t q = 0; q < n_q_; ++q) {
      const Block& block = block_[q / kLanes];
      const float sum = block.sum[q % kLanes];
      // A NaN score does not show in the maximum; without this it would pass for "nothing
      // visible".
      job_.maximum[q0_ + q] = sum != sum ? sum : block.maximum[q % kLanes];
      job_.sum[q0_ + q] = sum;
      if (!block.started) std::fill_n(job_.out + (q0_ + q) * job_.out_stride, job_.d_v, 0.0F);
    }
  }

  const AttentionJob& job_;
  const Bf16Layout layout_;
  const std::int64_t q0_;
  const std::int64_t n_q_;
  const std::int64_t n_blocks_;
  const std::int64_t chunk_start_;
  const int page_bits_ = __builtin_ctzll(static_cast<unsigned long long>(job_.page_tokens));
  std::uint8_t* queries_;
  std::uint8_t* keys_;
  std::uint8_t* values_;
  std::uint8_t* scores_;
  std::uint8_t* weights_;
  std::int64_t low_ = std::numeric_limits<std::int64_t>::max();
  std::int64_t high_ = 0;
  Block block_[kQueryGroup / kLanes];
};

template <class Kv>
void attention_of_groups(const AttentionJob& job) {
  for (std::int64_t q0 = 0; q0 < job.n_q; q0 += kQueryGroup) Group<Kv>(job, q0).run();
}

void attention_bf16(const AttentionJob& job) {
  switch (job.kv_type) {
    case KvType::kF32:
      return attention_of_groups<F32Kv<Simd>>(job);
    case KvType::kF16:
      return attention_of_groups<F16Kv<Simd>>(job);
    case KvType::kQ8_0:
      return attention_of_groups<Q8Kv<Simd>>(job);
    case KvType::kBF16:
      return attention_of_groups<Bf16Kv>(job);
  }
}

void floats_to_bf16(const float* x, std::int64_t n, std::uint16_t* out) {
  std::int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    _mm512_storeu_si512(out + i, to_bf16(_mm512_loadu_ps(x + i), _mm512_loadu_ps(x + i + 16)));
  }
  if (i == n) return;
  const auto lanes = static_cast<__mmask32>((1ULL << (n - i)) - 1);
  const F low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes), x + i);
  const F high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes >> 16), x + i + 16);
  _mm512_mask_storeu_epi16(out + i, lanes, to_bf16(low, high));
}

}  // namespace

void fill_bf16(Table& table) {
  const char* wanted = std::getenv("MOESAIC_BF16");
  if (wanted != nullptr && std::string_view(wanted) == "0") return;
  if (!__builtin_cpu_supports("avx512bf16")) return;
  table.attention_bf16 = attention_bf16;
  table.to_bf16 = floats_to_bf16;
}

}  // namespace moesaic::kernels::avx512vnni
