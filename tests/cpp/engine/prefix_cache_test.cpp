// The list of finished sequences: longest match, cover, eviction order.
#include "engine/prefix_cache.h"

#include <gtest/gtest.h>

namespace moesaic::engine {
namespace {

using Tokens = std::vector<std::int32_t>;
using Ids = std::vector<model::SequenceId>;

TEST(PrefixCache, FindsTheLongestCommonBeginning) {
  PrefixCache cache(8);
  EXPECT_FALSE(cache.find(Tokens{1, 2}));
  EXPECT_EQ(cache.insert(1, {1, 2, 3, 4}), Ids{});
  EXPECT_EQ(cache.insert(2, {1, 2, 9}), Ids{});
  EXPECT_EQ(cache.find(Tokens{1, 2, 9, 9})->sequence, 2U);
  EXPECT_EQ(cache.find(Tokens{1, 2, 9, 9})->n_tokens, 3);
  EXPECT_EQ(cache.find(Tokens{1, 2, 3})->sequence, 1U);
  EXPECT_EQ(cache.find(Tokens{1, 2, 3})->n_tokens, 3);
  EXPECT_FALSE(cache.find(Tokens{7}));
  EXPECT_FALSE(cache.find(Tokens{}));
}

TEST(PrefixCache, KeepsOnlyWhatIsNotCovered) {
  PrefixCache cache(8);
  EXPECT_EQ(cache.insert(1, {1, 2}), Ids{});
  EXPECT_EQ(cache.insert(2, {1, 2, 3}), Ids{1});  // 1 is a beginning of 2
  EXPECT_EQ(cache.insert(3, {1, 2}), Ids{3});     // already there
  EXPECT_EQ(cache.insert(4, {1, 2, 3}), Ids{4});
  EXPECT_EQ(cache.insert(5, {}), Ids{5});
  EXPECT_EQ(cache.size(), 1U);
}

TEST(PrefixCache, EvictsTheLeastRecentlyUsed) {
  PrefixCache cache(2);
  EXPECT_EQ(cache.insert(1, {1, 1}), Ids{});
  EXPECT_EQ(cache.insert(2, {2, 2}), Ids{});
  EXPECT_TRUE(cache.find(Tokens{1}));
  EXPECT_EQ(cache.insert(3, {3, 3}), Ids{2});
  EXPECT_EQ(cache.evict(1), model::SequenceId{3});  // 1 is to be kept
  EXPECT_FALSE(cache.evict(1));
  EXPECT_EQ(cache.evict(), model::SequenceId{1});
  EXPECT_FALSE(cache.evict());
  PrefixCache none(0);
  EXPECT_EQ(none.insert(7, {1}), Ids{7});
}

}  // namespace
}  // namespace moesaic::engine
