// The KV cache: rows of the step into pages, pages copied, read in canonical order and given back.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <utility>

#include "backend/cpu/cpu_backend.h"
#include "base/errors.h"
#include "quant/fit.h"
#include "quant/q8_0.h"

namespace moesaic::backend::cpu {
namespace {

void check_spec(const KvSpec& spec, const char* op) {
  const bool power_of_two =
      spec.page_tokens > 0 && (spec.page_tokens & (spec.page_tokens - 1)) == 0;
  if (spec.n_layers < 1 || spec.k_width < 1 || spec.v_width < 0 || spec.n_pages < 0 ||
      !power_of_two || spec.page_tokens > kernels::kAttentionChunk) {
    fail<InternalError>("[cpu.", op, "] ", spec.n_layers, " layers of widths ", spec.k_width,
                        " and ", spec.v_width, ", ", spec.n_pages, " pages of ", spec.page_tokens,
                        " tokens; need a power of two up to ", kernels::kAttentionChunk);
  }
}

// The scale of a block with a NaN in it is NaN: whole numbers have none, and it must not get lost.
void store_q8(const float* x, std::int64_t n, std::uint8_t* out) {
  constexpr std::uint16_t kHalfNan = 0x7E00;
  quant::encode_q8_0(x, n / 32, out);
  for (std::int64_t i = 0; i < n; ++i) {
    if (!std::isnan(x[i])) continue;
    std::memcpy(out + static_cast<std::size_t>(i / 32) * sizeof(quant::BlockQ8_0), &kHalfNan,
                sizeof kHalfNan);
  }
}

// The first finite number of x that is not finite as f16, or n.
std::int64_t first_beyond_f16(const float* x, std::int64_t n, const std::uint16_t* stored) {
  constexpr unsigned kExponent = 0x7C00;
  unsigned any = 0;  // no branches: the loop vectorises
  for (std::int64_t i = 0; i < n; ++i) any |= (stored[i] & kExponent) == kExponent ? 1U : 0U;
  if (any == 0) return n;
  std::int64_t i = 0;
  while (i < n && ((stored[i] & kExponent) != kExponent || !std::isfinite(x[i]))) ++i;
  return i;
}

// The first finite number of x whose block has no scale for it, or n.
std::int64_t first_beyond_q8(const float* x, std::int64_t n) {
  if (!quant::a_scale_was_cut_off()) return n;
  return std::find_if(
             x, x + n,
             [](float one) { return std::isfinite(one) && std::abs(one) > 65504.0F * 127.0F; }) -
         x;
}

// Returns the index of the first number that does not fit, or n.
std::int64_t store(const kernels::Table& table, KvType type, const float* x, std::int64_t n,
                   std::uint8_t* out) {
  switch (type) {
    case KvType::kF32:
      std::memcpy(out, x, static_cast<std::size_t>(n) * 4);
      return n;
    case KvType::kF16: {
      auto* halves = reinterpret_cast<std::uint16_t*>(out);
      table.to_f16(x, n, halves);
      return first_beyond_f16(x, n, halves);
    }
    case KvType::kQ8_0:
      quant::forget_cut_off_scales();
      store_q8(x, n, out);
      return first_beyond_q8(x, n);
  }
  return n;
}

// The first overflow of a step, whichever member of the team finds it.
class FirstOverflow {
 public:
  void add(std::int64_t row, const KvOverflow& overflow) {
    const std::lock_guard lock(mutex_);
    const std::pair order{row, !overflow.is_key};
    if (found_ && order >= order_) return;
    found_ = overflow;
    order_ = order;
  }
  std::optional<KvOverflow> get() const { return found_; }

 private:
  std::mutex mutex_;
  std::pair<std::int64_t, bool> order_;
  std::optional<KvOverflow> found_;
};

void check_page(const CpuKv& kv, std::int32_t page, const char* op) {
  if (page < 0 || page >= kv.spec().n_pages) {
    fail<InternalError>("[cpu.", op, "] page ", page, " of a pool of ", kv.spec().n_pages);
  }
}

// Rows [begin, end) of a sequence change.
void forget_kept(const CpuKv& kv, std::int64_t layer, std::span<const std::int32_t> pages,
                 std::int64_t begin, std::int64_t end) {
  const std::int64_t page_tokens = kv.spec().page_tokens;
  const std::int64_t n_pages = static_cast<std::int64_t>(pages.size());
  for (std::int64_t p = begin / page_tokens; p * page_tokens < end && p < n_pages; ++p) {
    kv.kept().forget(layer, pages[static_cast<std::size_t>(p)],
                     std::max<std::int64_t>(begin - p * page_tokens, 0));
  }
}

// Calls row(k, v) with the stored bytes of each token in [begin, end).
template <typename Kv, typename Row>
void for_rows(Kv& kv, std::int64_t layer, std::span<const std::int32_t> pages, std::int64_t begin,
              std::int64_t end, const char* op, Row&& row) {
  check_layer(kv, layer, op);
  const SequenceRows all{0, end - begin, begin, pages};
  check_sequences(kv, {&all, 1}, end - begin, op);
  const std::int64_t page_tokens = kv.spec().page_tokens;
  for (std::int64_t t = begin; t < end; ++t) {
    const std::int32_t page = pages[static_cast<std::size_t>(t / page_tokens)];
    const std::size_t in_page = static_cast<std::size_t>(t % page_tokens);
    row(kv.k_page(layer, page) + in_page * kv.k_row_bytes(),
        kv.v_page(layer, page) + in_page * kv.v_row_bytes());
  }
}

}  // namespace

std::unique_ptr<KvStore> CpuBackend::make_kv(const KvSpec& spec) {
  check_spec(spec, "make_kv");
  if (spec.type == KvType::kQ8_0 && (spec.k_width % 32 != 0 || spec.v_width % 32 != 0)) {
    fail<ArgumentError>("[kv] kv_type: got q8_0 for a model whose cached rows have ", spec.k_width,
                        " and ", spec.v_width,
                        " values, need multiples of 32; use kv_type=\"f16\"");
  }
  return std::make_unique<CpuKv>(spec, keeps_bf16(spec));
}

std::size_t CpuBackend::kv_page_bytes(const KvSpec& spec) const {
  return kv_row_bytes(spec) * static_cast<std::size_t>(spec.page_tokens * spec.n_layers);
}

std::size_t CpuBackend::kv_kept_bytes(const KvSpec& spec) const {
  return KeptKeys::bytes_per_layer(spec, keeps_bf16(spec)) *
         static_cast<std::size_t>(spec.n_layers);
}

std::size_t CpuBackend::kv_row_bytes(const KvSpec& spec) const {
  return kv_bytes(spec.type, spec.k_width) + kv_bytes(spec.type, spec.v_width);
}

std::optional<KvOverflow> CpuBackend::kv_write(KvStore& kv, std::int64_t layer,
                                               std::span<const SequenceRows> sequences,
                                               const Mat& k, const Mat* v) {
  const char* op = "kv_write";
  CpuKv& cache = kv_of(kv, op);
  const KvSpec& spec = cache.spec();
  check_layer(cache, layer, op);
  const View keys = view(k, k.rows, spec.k_width, op, "k");
  View values;
  if ((v != nullptr) != (spec.v_width > 0)) {
    fail<InternalError>("[cpu.kv_write] v: need values exactly when the cache has them (width ",
                        spec.v_width, ")");
  }
  if (v != nullptr) values = view(*v, k.rows, spec.v_width, op, "v");
  check_sequences(cache, sequences, k.rows, op);
  for (const SequenceRows& sequence : sequences) {
    forget_kept(cache, layer, sequence.pages, sequence.start, sequence.start + sequence.n_rows);
  }
  const bool whole_team = k.rows * (spec.k_width + spec.v_width) > (64 << 10);
  FirstOverflow overflow;
  parallel(whole_team, [&](int member, int n_members) {
    for (const SequenceRows& sequence : sequences) {
      check_cancel();
      const std::int64_t end = sequence.n_rows * (member + 1) / n_members;
      for (std::int64_t i = sequence.n_rows * member / n_members; i < end; ++i) {
        const std::int64_t position = sequence.start + i;
        const std::int64_t r = sequence.row_begin + i;
        const std::int32_t page =
            sequence.pages[static_cast<std::size_t>(position / spec.page_tokens)];
        const std::size_t in_page = static_cast<std::size_t>(position % spec.page_tokens);
        const auto put = [&](const float* row, std::int64_t width, bool is_key, std::uint8_t* to) {
          const std::int64_t at = store(table_, spec.type, row, width, to);
          if (at < width) overflow.add(r, {position, is_key, row[at]});
        };
        put(keys.row(r), spec.k_width, true,
            cache.k_page(layer, page) + in_page * cache.k_row_bytes());
        if (v == nullptr) continue;
        put(values.row(r), spec.v_width, false,
            cache.v_page(layer, page) + in_page * cache.v_row_bytes());
      }
    }
  });
  return overflow.get();
}

void CpuBackend::kv_copy_page(KvStore& kv, std::int32_t from, std::int32_t to) {
  CpuKv& cache = kv_of(kv, "kv_copy_page");
  check_page(cache, from, "kv_copy_page");
  check_page(cache, to, "kv_copy_page");
  if (from == to) return;
  cache.kept().forget_all_layers(to);
  for (std::int64_t layer = 0; layer < cache.spec().n_layers; ++layer) {
    std::memcpy(cache.k_page(layer, to), cache.k_page(layer, from), cache.k_page_bytes());
    if (cache.v_page_bytes() == 0) continue;
    std::memcpy(cache.v_page(layer, to), cache.v_page(layer, from), cache.v_page_bytes());
  }
}

void CpuBackend::kv_read(const KvStore& kv, std::int64_t layer, std::span<const std::int32_t> pages,
                         std::int64_t begin, std::int64_t end, std::uint8_t* out) {
  const CpuKv& cache = kv_of(kv, "kv_read");
  const std::size_t k_bytes = cache.k_row_bytes();
  const std::size_t v_bytes = cache.v_row_bytes();
  for_rows(cache, layer, pages, begin, end, "kv_read",
           [&](const std::uint8_t* k, const std::uint8_t* v) {
             std::memcpy(out, k, k_bytes);
             if (v_bytes > 0) std::memcpy(out + k_bytes, v, v_bytes);
             out += k_bytes + v_bytes;
           });
}

void CpuBackend::kv_restore(KvStore& kv, std::int64_t layer, std::span<const std::int32_t> pages,
                            std::int64_t begin, std::int64_t end, const std::uint8_t* in) {
  CpuKv& cache = kv_of(kv, "kv_restore");
  const std::size_t k_bytes = cache.k_row_bytes();
  const std::size_t v_bytes = cache.v_row_bytes();
  check_layer(cache, layer, "kv_restore");
  forget_kept(cache, layer, pages, begin, end);
  for_rows(cache, layer, pages, begin, end, "kv_restore", [&](std::uint8_t* k, std::uint8_t* v) {
    std::memcpy(k, in, k_bytes);
    if (v_bytes > 0) std::memcpy(v, in + k_bytes, v_bytes);
    in += k_bytes + v_bytes;
  });
}

// Only whole pages of the system go back: what is left at the edges of a cache page stays as it is,
// and is not touched.
void CpuBackend::kv_release(KvStore& kv, std::span<const std::int32_t> pages) {
  CpuKv& cache = kv_of(kv, "kv_release");
  const std::size_t system_page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const auto release = [&](AlignedBuffer& slab, std::size_t index, std::size_t n_bytes) {
    const std::size_t begin = (index * n_bytes + system_page - 1) / system_page * system_page;
    const std::size_t end = (index + 1) * n_bytes / system_page * system_page;
    if (begin < end) slab.release(begin, end - begin);
  };
  for (const std::int32_t page : pages) {
    check_page(cache, page, "kv_release");
    for (std::int64_t layer = 0; layer < cache.spec().n_layers; ++layer) {
      release(cache.k_slab(layer), static_cast<std::size_t>(page), cache.k_page_bytes());
      release(cache.v_slab(layer), static_cast<std::size_t>(page), cache.v_page_bytes());
    }
  }
}

}  // namespace moesaic::backend::cpu
