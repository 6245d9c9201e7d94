// The cache as bytes: rows read back in canonical order are what was written, through forks,
// restores and releases.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backend/rig.h"
#include "quant/q8_0.h"

namespace moesaic::backend::test {
namespace {

class Kv : public Conformance {};

struct Layout {
  KvType type;
  std::int64_t k_width;
  std::int64_t v_width;
  std::int64_t page_tokens;
};
constexpr Layout kLayouts[] = {{KvType::kF16, 576, 0, 64},  {KvType::kF32, 5, 3, 1},
                               {KvType::kF16, 48, 40, 16},  {KvType::kF32, 512, 512, 8},
                               {KvType::kQ8_0, 576, 0, 64}, {KvType::kQ8_0, 64, 96, 16}};

KvSpec spec_of(const Layout& layout, std::int64_t n_pages) {
  KvSpec spec;
  spec.n_layers = 3;
  spec.k_width = layout.k_width;
  spec.v_width = layout.v_width;
  spec.type = layout.type;
  spec.page_tokens = layout.page_tokens;
  spec.n_pages = n_pages;
  return spec;
}

// What rows [0, n) look like in the cache: k then v of each token.
std::vector<std::uint8_t> canonical(const Layout& layout, const std::vector<float>& k,
                                    const std::vector<float>& v, std::int64_t n) {
  std::vector<std::uint8_t> bytes;
  const auto append = [&](const float* x, std::int64_t n) {
    if (layout.type == KvType::kQ8_0) {
      std::vector<std::uint8_t> blocks(static_cast<std::size_t>(n / 32 * 34));
      quant::encode_q8_0(x, n / 32, blocks.data());
      bytes.insert(bytes.end(), blocks.begin(), blocks.end());
      return;
    }
    for (std::int64_t i = 0; i < n; ++i) {
      if (layout.type == KvType::kF32) {
        const auto* p = reinterpret_cast<const std::uint8_t*>(x + i);
        bytes.insert(bytes.end(), p, p + 4);
      } else {
        const std::uint16_t h = quant::f32_to_f16(x[i]);
        bytes.push_back(static_cast<std::uint8_t>(h & 0xFF));
        bytes.push_back(static_cast<std::uint8_t>(h >> 8));
      }
    }
  };
  for (std::int64_t t = 0; t < n; ++t) {
    append(k.data() + t * layout.k_width, layout.k_width);
    append(v.data() + t * layout.v_width, layout.v_width);
  }
  return bytes;
}

TEST_P(Kv, ReadsBackWhatWasWritten) {
  for (const Layout& layout : kLayouts) {
    Rig rig(GetParam());
    const std::int64_t n = 200;
    const std::int64_t n_pages = n / layout.page_tokens + 5;
    const KvSpec spec = spec_of(layout, n_pages);
    const std::unique_ptr<KvStore> kv = rig->make_kv(spec);
    ASSERT_EQ(rig->kv_page_bytes(spec),
              rig->kv_row_bytes(spec) * static_cast<std::size_t>(3 * layout.page_tokens));
    std::vector<std::int32_t> pages;
    for (std::int64_t p = n_pages - 1; p >= 4; --p) pages.push_back(static_cast<std::int32_t>(p));
    const std::vector<float> k = random_values(n * layout.k_width, 1);
    const std::vector<float> v = random_values(n * layout.v_width, 2);
    // In two writes, the second in the middle of a page.
    for (const auto& [begin, end] : {std::pair<std::int64_t, std::int64_t>{0, 77}, {77, n}}) {
      const SequenceRows rows{0, end - begin, begin, pages};
      const auto part = [&](const std::vector<float>& all, std::int64_t width) {
        return std::vector<float>(all.begin() + begin * width, all.begin() + end * width);
      };
      const Mat values = layout.v_width > 0
                             ? rig.mat(end - begin, layout.v_width, part(v, layout.v_width), 1)
                             : Mat{};
      rig->kv_write(*kv, 1, {&rows, 1},
                    rig.mat(end - begin, layout.k_width, part(k, layout.k_width)),
                    layout.v_width > 0 ? &values : nullptr);
    }
    const std::vector<std::uint8_t> want = canonical(layout, k, v, n);
    const std::size_t row_bytes = rig->kv_row_bytes(spec);
    ASSERT_EQ(want.size(), row_bytes * static_cast<std::size_t>(n));
    std::vector<std::uint8_t> got(want.size());
    rig->kv_read(*kv, 1, pages, 0, n, got.data());
    ASSERT_EQ(got, want);
    std::vector<std::uint8_t> middle(row_bytes * 20);
    rig->kv_read(*kv, 1, pages, 70, 90, middle.data());
    ASSERT_TRUE(std::equal(middle.begin(), middle.end(),
                           want.begin() + static_cast<std::ptrdiff_t>(row_bytes * 70)));
    // Other layers are untouched: zeros.
    rig->kv_read(*kv, 0, pages, 0, n, got.data());
    ASSERT_TRUE(std::all_of(got.begin(), got.end(), [](std::uint8_t b) { return b == 0; }));

    // Restored into another layer, from an odd row on.
    rig->kv_restore(*kv, 2, pages, 3, n, want.data() + 3 * row_bytes);
    rig->kv_read(*kv, 2, pages, 3, n, got.data());
    ASSERT_TRUE(std::equal(want.begin() + static_cast<std::ptrdiff_t>(3 * row_bytes), want.end(),
                           got.begin()));

    // A copied page, then the original given back: the copy and the neighbours stay.
    rig->kv_copy_page(*kv, pages[1], 0);
    const std::int32_t gone = pages[1];
    rig->kv_release(*kv, {&gone, 1});
    std::vector<std::int32_t> fork = pages;
    fork[1] = 0;
    got.resize(want.size());
    rig->kv_read(*kv, 1, fork, 0, n, got.data());
    ASSERT_EQ(got, want);
    // The page that was given back takes rows again.
    rig->kv_restore(*kv, 1, pages, 0, n, want.data());
    rig->kv_read(*kv, 1, pages, 0, n, got.data());
    ASSERT_EQ(got, want);
  }
}

TEST_P(Kv, Q8NeedsWholeBlocksAndKeepsNaN) {
  Rig rig(GetParam());
  EXPECT_THROW(rig->make_kv(spec_of({KvType::kQ8_0, 48, 0, 16}, 2)), ArgumentError);
  EXPECT_THROW(rig->make_kv(spec_of({KvType::kQ8_0, 64, 40, 16}, 2)), ArgumentError);
  const KvSpec spec = spec_of({KvType::kQ8_0, 64, 0, 16}, 2);
  const std::unique_ptr<KvStore> kv = rig->make_kv(spec);
  std::vector<float> k = random_values(64, 1);
  k[40] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<std::int32_t> pages = {1};
  const SequenceRows rows{0, 1, 0, pages};
  rig->kv_write(*kv, 0, {&rows, 1}, rig.mat(1, 64, k), nullptr);
  std::vector<std::uint8_t> bytes(rig->kv_row_bytes(spec));
  rig->kv_read(*kv, 0, pages, 0, 1, bytes.data());
  std::vector<float> got(64);
  quant::decode_q8_0(bytes.data(), 2, got.data());
  for (int i = 0; i < 64; ++i) EXPECT_EQ(std::isnan(got[static_cast<std::size_t>(i)]), i >= 32);
}

INSTANTIATE_TEST_SUITE_P(Backends, Kv, testing::ValuesIn(all_params()), param_name);

}  // namespace
}  // namespace moesaic::backend::test
