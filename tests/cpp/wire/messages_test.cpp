// Every message there and back, every truncation, mutations, and lists that lie about their length.
#include "wire/messages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <set>

#include "base/errors.h"
#include "wire/filler.h"

namespace moesaic::wire {
namespace {

using Bytes = std::vector<std::uint8_t>;

bool takes_payload(MessageType type) {
  return type == MessageType::kRun || type == MessageType::kResult || type == MessageType::kBlob ||
         type == MessageType::kCapture || type == MessageType::kKvRows;
}

// One spelling per message: what decodes is what would have been encoded.
bool decodes_to_itself(MessageType type, const Bytes& body) {
  const Decoded decoded = decode(type, body);
  Bytes again = testing::encode_any(decoded.message);
  again.insert(again.end(), decoded.payload.begin(), decoded.payload.end());
  return again == body;
}

TEST(Messages, ThereAndBackWithMadeUpValues) {
  std::set<MessageType> seen;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    testing::for_each_message(seed, [&](const auto& message) {
      using M = std::decay_t<decltype(message)>;
      seen.insert(M::kType);
      Bytes body = encode(message);
      const Decoded decoded = decode(M::kType, body);
      ASSERT_TRUE(std::holds_alternative<M>(decoded.message)) << type_name(M::kType);
      EXPECT_EQ(encode(std::get<M>(decoded.message)), body) << type_name(M::kType);
      EXPECT_TRUE(decoded.payload.empty());
      body.insert(body.end(), {1, 2, 3});
      if (takes_payload(M::kType)) {
        const Decoded with_payload = decode(M::kType, body);
        EXPECT_EQ(Bytes(with_payload.payload.begin(), with_payload.payload.end()),
                  (Bytes{1, 2, 3}));
      } else {
        EXPECT_THROW(decode(M::kType, body), ProtocolError) << type_name(M::kType);
      }
    });
  }
  EXPECT_EQ(seen.size(), static_cast<std::size_t>(MessageType::kUnload));
}

TEST(Messages, EveryTruncationIsRefused) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    testing::for_each_message(seed, [&](const auto& message) {
      using M = std::decay_t<decltype(message)>;
      const Bytes body = encode(message);
      for (std::size_t n = 0; n < body.size(); ++n) {
        const Bytes cut(body.begin(), body.begin() + static_cast<std::ptrdiff_t>(n));
        EXPECT_THROW(decode(M::kType, cut), ProtocolError) << type_name(M::kType) << " at " << n;
      }
    });
  }
}

TEST(Messages, MutationsAreRefusedOrSpellTheirMessage) {
  std::mt19937_64 random(7);
  int n_decoded = 0;
  int n_refused = 0;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    testing::for_each_message(seed, [&](const auto& message) {
      using M = std::decay_t<decltype(message)>;
      for (int i = 0; i < 10; ++i) {
        Bytes body = encode(message);
        for (std::uint64_t n = random() % 4 + 1; n > 0; --n) {
          body[random() % body.size()] = static_cast<std::uint8_t>(random());
        }
        try {
          EXPECT_TRUE(decodes_to_itself(M::kType, body)) << type_name(M::kType);
          ++n_decoded;
        } catch (const ProtocolError&) {
          ++n_refused;
        }
      }
    });
  }
  EXPECT_GT(n_decoded, 1000);
  EXPECT_GT(n_refused, 1000);
}

TEST(Messages, OnlyTheVocabularyIsSpoken) {
  for (int type = 0; type <= 0xFFFF; ++type) {
    const bool known = type >= 1 && type <= 24;
    const auto as_type = static_cast<MessageType>(type);
    if (known) {
      EXPECT_NO_THROW(body_limit(as_type, 0));
    } else {
      EXPECT_THROW(decode(as_type, {}), ProtocolError);
      EXPECT_THROW(body_limit(as_type, 0), ProtocolError);
    }
  }
}

TEST(Messages, EnumeratorsAndFlagsThatDoNotExistAreRefused) {
  const auto refused = [](MessageType type, Bytes body, std::size_t at, std::uint8_t value) {
    body[at] = value;
    EXPECT_THROW(decode(type, body), ProtocolError) << type_name(type) << " " << int{value};
  };
  refused(MessageType::kHello, encode(Hello{}), 2, 3);    // role
  refused(MessageType::kGoAway, encode(GoAway{}), 0, 0);  // reason
  refused(MessageType::kGoAway, encode(GoAway{}), 0, 9);
  refused(MessageType::kError, encode(ErrorReply{}), 8, 11);            // kind
  refused(MessageType::kKvOp, encode(KvOp{}), 8, 5);                    // kind
  refused(MessageType::kStatusRequest, encode(StatusRequest{}), 8, 2);  // a bool
  EXPECT_NO_THROW(decode(MessageType::kHello, encode(Hello{})));
}

void put_u32(Bytes& body, std::size_t at, std::uint32_t value) {
  std::memcpy(body.data() + at, &value, 4);
}

TEST(Messages, ListsThatLieAboutTheirLengthCostNothing) {
  // Tokens: step u64, index u32, count u32.
  Bytes tokens = encode(Tokens{1, 2, {3, 4, 5}});
  for (const std::uint32_t claim : {4U, 1000U, 0x40000000U, 0x7FFFFFFFU, 0xFFFFFFFFU}) {
    put_u32(tokens, 12, claim);
    EXPECT_THROW(decode(MessageType::kTokens, tokens), ProtocolError) << claim;
  }
  // Manifest: units are as long on the wire as in memory, so that the body alone bounds them.
  Manifest manifest;
  manifest.units.resize(70272);  // 61 layers x 3 x 384 experts
  const Bytes many = encode(manifest);
  ASSERT_LE(many.size(), body_limit(MessageType::kManifest, 0));
  EXPECT_TRUE(decodes_to_itself(MessageType::kManifest, many));
  // Strings are longer in memory: a megabyte of empty ones is refused before it is made.
  wire::Run run;
  run.capture.resize(100000);
  const Bytes strings = encode(run);
  EXPECT_THROW(decode(MessageType::kRun, strings), ProtocolError);
  run.capture.resize(Reader::kMaxSparseList);
  EXPECT_TRUE(decodes_to_itself(MessageType::kRun, encode(run)));
}

}  // namespace
}  // namespace moesaic::wire
