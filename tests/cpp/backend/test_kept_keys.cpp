// Which of a sequence's keys are still good, whatever becomes of its pages.
#include <gtest/gtest.h>

#include "backend/cpu/kept_keys.h"

namespace moesaic::backend::cpu {
namespace {

using Pages = std::vector<std::int32_t>;

KvSpec spec_of(std::int64_t n_tokens) {
  KvSpec spec;
  spec.n_layers = 2;
  spec.page_tokens = 128;
  spec.kept = {n_tokens, 3, 20, 12, true};
  return spec;
}

class Kept : public ::testing::Test {
 protected:
  // As a step does it: rows [start, end) were written, the rest is made.
  std::int64_t step(const Pages& pages, std::int64_t start, std::int64_t end) {
    for (std::int64_t at = start; at < end; at = (at / 128 + 1) * 128) {
      keys.forget(0, pages[static_cast<std::size_t>(at / 128)], at % 128);
    }
    const std::int64_t known = keys.claim(0, pages, start);
    keys.set_known(0, end);
    return known;
  }
  KeptKeys keys{spec_of(1100), false};
  Pages pages{7, 3, 9, 4, 12, 1, 0, 2, 5, 6};
};

TEST_F(Kept, WholeChunksOnly) {
  EXPECT_EQ(keys.n_tokens(), 1024);
  EXPECT_EQ(KeptKeys(spec_of(511), false).n_tokens(), 0);
  EXPECT_EQ(KeptKeys::bytes_per_layer(spec_of(1100), false), 1024U * 3 * 32 * 4);
  EXPECT_EQ(KeptKeys::bytes_per_layer(spec_of(1100), true), 1024U * 3 * 32 * 2);
  EXPECT_EQ(keys.chunk(0, 1, 2) - keys.chunk(0, 0, 0), 5 * 512 * 32 * 4);
}

TEST_F(Kept, APromptInSeveralSteps) {
  EXPECT_EQ(step(pages, 0, 200), 0);
  EXPECT_EQ(step(pages, 200, 201), 200);
  EXPECT_EQ(step(pages, 201, 900), 201);
  EXPECT_EQ(step(pages, 900, 1200), 900);
  EXPECT_EQ(step(pages, 1200, 1201), 1024);  // no more room than that
}

TEST_F(Kept, WhatIsWrittenAnewIsForgotten) {
  step(pages, 0, 900);
  EXPECT_EQ(step(pages, 300, 310), 300);
  EXPECT_EQ(step(pages, 310, 320), 310);
  step(pages, 320, 900);
  keys.forget(0, 9, 5);  // the third page
  EXPECT_EQ(step(pages, 900, 910), 261);
  keys.forget(0, 100, 0);  // nobody's
  EXPECT_EQ(step(pages, 910, 911), 910);
  keys.forget_all_layers(7);
  EXPECT_EQ(step(pages, 911, 912), 0);
}

TEST_F(Kept, RowsThatSomebodyElseMadeInBetweenAreMissing) {
  step(pages, 0, 600);
  // Decoded by the absorbed form: written, and never claimed.
  for (std::int64_t at = 600; at < 650; ++at) {
    keys.forget(0, pages[static_cast<std::size_t>(at / 128)], at % 128);
  }
  EXPECT_EQ(step(pages, 650, 700), 600);
}

TEST_F(Kept, AnotherSequenceHasItsOwn) {
  step(pages, 0, 600);
  Pages fork = pages;
  for (std::size_t i = 3; i < fork.size(); ++i) fork[i] += 20;
  EXPECT_EQ(step(fork, 500, 600), 3 * 128);  // of the shared pages
  EXPECT_EQ(step(pages, 600, 700), 3 * 128);
  Pages other{30, 31, 32, 33, 34, 35};
  EXPECT_EQ(step(other, 0, 100), 0);
  EXPECT_EQ(step(pages, 700, 701), 0);
}

TEST_F(Kept, LayersDoNotMix) {
  step(pages, 0, 600);
  EXPECT_EQ(keys.claim(1, pages, 600), 0);
  EXPECT_EQ(step(pages, 600, 601), 600);
}

}  // namespace
}  // namespace moesaic::backend::cpu
