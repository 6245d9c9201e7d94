// Pages: sharing, copies on write, exhaustion, and a random walk against a plain model of them.
#include "model/state/kv_pages.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "base/errors.h"

namespace moesaic::model {
namespace {

using Write = KvPages::Write;

// One sequence's next rows, committed.
std::vector<KvPages::Copy> write(KvPages& pages, SequenceId id, std::int64_t n) {
  const Write w{id, pages.length(id), n};
  std::vector<KvPages::Copy> copies;
  pages.prepare(std::span(&w, 1), 1, copies);
  pages.commit(w);
  return copies;
}

TEST(KvPages, ForkSharesPagesAndTheFirstWriterCopiesThePartialOne) {
  KvPages pages(10, 4);
  const SequenceId a = pages.open();
  write(pages, a, 6);  // one whole page, one half full
  EXPECT_EQ(pages.n_free(), 8);
  const SequenceId b = pages.fork(a, 6);
  EXPECT_EQ(pages.n_free(), 8) << "a fork takes no page";
  EXPECT_EQ(pages.pages(a)[1], pages.pages(b)[1]);

  const Write w{a, 6, 1};
  EXPECT_EQ(pages.pages_needed(std::span(&w, 1)), 1);
  const std::int32_t shared = pages.pages(a)[1];
  const auto copies = write(pages, a, 1);
  ASSERT_EQ(copies.size(), 1U);
  EXPECT_EQ(copies[0].from, shared);
  EXPECT_EQ(copies[0].to, pages.pages(a)[1]);
  EXPECT_EQ(pages.pages(b)[1], shared);
  EXPECT_EQ(pages.pages(a)[0], pages.pages(b)[0]) << "whole pages stay shared";
  EXPECT_TRUE(write(pages, b, 1).empty()) << "the last holder needs no copy";
}

TEST(KvPages, BothHoldersOfAPageInOneStepTakeOneCopy) {
  KvPages pages(3, 4);
  const SequenceId a = pages.open();
  write(pages, a, 2);
  const SequenceId b = pages.fork(a, 2);
  const std::vector<Write> both{{a, 2, 1}, {b, 2, 1}};
  EXPECT_EQ(pages.pages_needed(both), 1);
  std::vector<KvPages::Copy> copies;
  pages.prepare(both, 1, copies);
  EXPECT_EQ(copies.size(), 1U);
  EXPECT_NE(pages.pages(a)[0], pages.pages(b)[0]);
}

TEST(KvPages, TruncationAndCloseGiveBackOnlyWhatNobodyHolds) {
  KvPages pages(10, 4);
  const SequenceId a = pages.open();
  write(pages, a, 12);
  const SequenceId b = pages.fork(a, 8);
  EXPECT_EQ(pages.pages_freed(a, 0), 1);
  std::vector<std::int32_t> released;
  pages.truncate(a, 5, released);
  EXPECT_EQ(released.size(), 1U) << "the third page; the second is half used and shared";
  pages.close(a, released);
  EXPECT_EQ(released.size(), 1U);
  pages.close(b, released);
  EXPECT_EQ(released.size(), 3U);
  EXPECT_EQ(pages.n_free(), 10);
  EXPECT_THROW(pages.length(a), ArgumentError);
}

TEST(KvPages, ExhaustionSaysWhatIsMissingAndChangesNothing) {
  KvPages pages(3, 4);
  const SequenceId a = pages.open();
  write(pages, a, 8);
  const SequenceId b = pages.open();
  const std::vector<Write> writes{{a, 8, 1}, {b, 0, 5}};
  std::vector<KvPages::Copy> copies;
  try {
    pages.prepare(writes, 1000, copies);
    FAIL() << "three pages were taken from a pool that had one";
  } catch (const OutOfMemoryError& error) {
    EXPECT_EQ(error.needed_bytes, 3000U);
    EXPECT_EQ(error.free_bytes, 1000U);
    EXPECT_NE(std::string(error.what()).find("kv_tokens"), std::string::npos) << error.what();
  }
  EXPECT_EQ(pages.n_free(), 1);
  EXPECT_EQ(pages.length(a), 8);
  EXPECT_TRUE(write(pages, a, 4).empty());
}

// Contents of every page by hand: a token's page must keep its content as long as a sequence holds
// it, whatever others write.
TEST(KvPages, RandomWalkKeepsEverySequenceItsOwnRows) {
  constexpr std::int64_t kPageTokens = 4;
  std::mt19937 random(7);
  KvPages pages(40, kPageTokens);
  std::map<SequenceId, std::vector<int>> expected;  // rows of each sequence
  std::vector<std::vector<int>> store(40, std::vector<int>(kPageTokens, -1));
  std::vector<std::int32_t> released;
  int next = 0;
  const auto pick = [&] {
    auto at = expected.begin();
    std::advance(at, random() % expected.size());
    return at->first;
  };
  for (int i = 0; i < 5000; ++i) {
    const unsigned what = expected.empty() ? 0 : random() % 8;
    if (what == 0 && expected.size() < 6) {
      expected[pages.open()] = {};
    } else if (what == 1) {
      const SequenceId id = pick();
      pages.close(id, released);
      expected.erase(id);
    } else if (what == 2 && expected.size() < 6) {
      const SequenceId id = pick();
      const auto n = static_cast<std::int64_t>(random() % (expected[id].size() + 1));
      const SequenceId copy = pages.fork(id, n);
      expected[copy] = {expected[id].begin(), expected[id].begin() + n};
    } else if (what == 3) {
      const SequenceId id = pick();
      const auto n = static_cast<std::int64_t>(random() % (expected[id].size() + 1));
      pages.truncate(id, n, released);
      expected[id].resize(static_cast<std::size_t>(n));
    } else if (!expected.empty()) {
      std::vector<Write> writes;
      for (const auto& [id, tokens] : expected) {
        if (random() % 2 == 0) continue;
        writes.push_back({id, pages.length(id), static_cast<std::int64_t>(1 + random() % 7)});
      }
      std::vector<KvPages::Copy> copies;
      const std::int64_t needed = pages.pages_needed(writes);
      const std::int64_t free = pages.n_free();
      if (needed > free) {
        EXPECT_THROW(pages.prepare(writes, 1, copies), OutOfMemoryError);
        continue;
      }
      pages.prepare(writes, 1, copies);
      EXPECT_EQ(pages.n_free(), free - needed);
      for (const auto& copy : copies) {
        store[static_cast<std::size_t>(copy.to)] = store[static_cast<std::size_t>(copy.from)];
      }
      for (const Write& w : writes) {
        for (std::int64_t r = 0; r < w.n_rows; ++r) {
          const std::int64_t at = w.start + r;
          const std::int32_t page = pages.pages(w.sequence)[static_cast<std::size_t>(at / 4)];
          store[static_cast<std::size_t>(page)][static_cast<std::size_t>(at % 4)] = next;
          expected[w.sequence].push_back(next++);
        }
        pages.commit(w);
      }
    }
    for (const auto& [id, tokens] : expected) {
      ASSERT_EQ(pages.length(id), static_cast<std::int64_t>(tokens.size()));
      for (std::size_t t = 0; t < tokens.size(); ++t) {
        const std::int32_t page = pages.pages(id)[t / 4];
        ASSERT_EQ(store[static_cast<std::size_t>(page)][t % 4], tokens[t]) << "step " << i;
      }
    }
  }
  for (const auto& [id, tokens] : expected) pages.close(id, released);
  EXPECT_EQ(pages.n_free(), 40);
}

}  // namespace
}  // namespace moesaic::model
