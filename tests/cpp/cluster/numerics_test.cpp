// The handshake's digest of numerics: every kind of kernel is in it, and the release.
#include "cluster/measure/numerics.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/errors.h"
#include "quant/qtype.h"

namespace moesaic::cluster {
namespace {

TEST(Numerics, EveryTypeOfWeightAndCacheIsInIt) {
  const auto parts = numerics_parts();
  const std::map<std::string, wire::Digest> by_name(parts.begin(), parts.end());
  for (const quant::QtypeTraits& traits : quant::all_qtypes()) {
    EXPECT_EQ(by_name.contains(strcat("matmul ", traits.name)), traits.is_weight) << traits.name;
  }
  EXPECT_TRUE(by_name.contains("experts"));
  for (const char* kv : {"f32", "f16", "q8_0"}) {
    EXPECT_TRUE(by_name.contains(strcat("attention ", kv))) << kv;
    EXPECT_TRUE(by_name.contains(strcat("MLA attention ", kv))) << kv;
  }
  std::set<wire::Digest> different;
  for (const auto& [name, digest] : parts) different.insert(digest);
  EXPECT_EQ(different.size(), parts.size());
  EXPECT_EQ(numerics_parts(), parts);
}

TEST(Numerics, ReleasesDiffer) {
  EXPECT_EQ(numerics_digest("0.1.0"), numerics_digest("0.1.0"));
  EXPECT_NE(numerics_digest("0.1.0"), numerics_digest("0.1.1"));
}

}  // namespace
}  // namespace moesaic::cluster
