// Frame headers: their bytes, their limits, what is refused; and the checksum.
#include "wire/frame.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/crc32c.h"
#include "base/errors.h"

namespace moesaic::wire {
namespace {

// One bit at a time, as RFC 3720 states it.
std::uint32_t crc_by_bits(const std::vector<std::uint8_t>& bytes) {
  std::uint32_t crc = 0xFFFFFFFFU;
  for (const std::uint8_t byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1U) != 0 ? (crc >> 1) ^ 0x82F63B78U : crc >> 1;
  }
  return ~crc;
}

TEST(Crc32c, KnownValuesAndPieces) {
  EXPECT_EQ(crc32c(0, "123456789", 9), 0xE3069283U);
  EXPECT_EQ(crc32c(0, std::string(32, '\0').data(), 32), 0x8A9136AAU);  // RFC 3720 B.4
  EXPECT_EQ(crc32c(0, std::string(32, '\xFF').data(), 32), 0x62A8AB43U);
  EXPECT_EQ(crc32c(0, nullptr, 0), 0U);
  std::mt19937 random(1);
  for (std::size_t n = 0; n < 200; ++n) {
    std::vector<std::uint8_t> bytes(n);
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
    const std::uint32_t whole = crc_by_bits(bytes);
    const std::size_t cut = n == 0 ? 0 : random() % n;
    EXPECT_EQ(crc32c(0, bytes.data(), n), whole);
    EXPECT_EQ(crc32c(crc32c(0, bytes.data(), cut), bytes.data() + cut, n - cut), whole);
  }
}

FrameHeader sample_header() {
  FrameHeader header;
  header.type = MessageType::kCancel;
  header.body_bytes = 8;
  header.epoch = 0x1122334455667788U;
  header.sequence = 0x0102030405060708U;
  return header;
}

TEST(Frame, BytesAreFixed) {
  const std::vector<std::uint8_t> body = {1, 2, 3, 4, 5, 6, 7, 8};
  const HeaderBytes bytes = encode_header(sample_header(), crc32c(0, body.data(), body.size()));
  const std::vector<std::uint8_t> first28 = {
      'M',  'S',  'C',  '1',  kVersionMajor, kVersionMinor, 19,   0,    8,    0,
      0,    0,    0x88, 0x77, 0x66,          0x55,          0x44, 0x33, 0x22, 0x11,
      0x08, 0x07, 0x06, 0x05, 0x04,          0x03,          0x02, 0x01};
  EXPECT_EQ(std::vector<std::uint8_t>(bytes.begin(), bytes.begin() + 28), first28);
  std::vector<std::uint8_t> summed = body;
  summed.insert(summed.end(), first28.begin(), first28.end());
  std::uint32_t crc = 0;
  std::memcpy(&crc, bytes.data() + 28, 4);
  EXPECT_EQ(crc, crc_by_bits(summed));

  const FrameHeader back = decode_header(bytes, 0);
  EXPECT_EQ(back.type, MessageType::kCancel);
  EXPECT_EQ(back.body_bytes, 8U);
  EXPECT_EQ(back.epoch, 0x1122334455667788U);
  EXPECT_EQ(back.sequence, 0x0102030405060708U);
}

TEST(Frame, EveryFlippedBitIsFound) {
  const std::vector<std::uint8_t> body = {9, 8, 7, 6, 5, 4, 3, 2};
  const std::uint32_t crc = crc32c(0, body.data(), body.size());
  const HeaderBytes good = encode_header(sample_header(), crc);
  EXPECT_NO_THROW(check_crc(good, crc));
  for (std::size_t bit = 0; bit < 8 * kHeaderBytes; ++bit) {
    HeaderBytes bytes = good;
    bytes[bit / 8] ^= static_cast<std::uint8_t>(1U << (bit % 8));
    EXPECT_THROW(check_crc(bytes, crc), ProtocolError) << bit;
  }
  for (std::size_t bit = 0; bit < 8 * body.size(); ++bit) {
    std::vector<std::uint8_t> flipped = body;
    flipped[bit / 8] ^= static_cast<std::uint8_t>(1U << (bit % 8));
    EXPECT_THROW(check_crc(good, crc32c(0, flipped.data(), flipped.size())), ProtocolError);
  }
}

HeaderBytes header_of(MessageType type, std::uint32_t body_bytes) {
  FrameHeader header;
  header.type = type;
  header.body_bytes = body_bytes;
  return encode_header(header, 0);
}

TEST(Frame, LimitsStandBeforeTheBody) {
  EXPECT_NO_THROW(decode_header(header_of(MessageType::kHello, 16U << 10), 0));
  EXPECT_THROW(decode_header(header_of(MessageType::kHello, (16U << 10) + 1), 0), ProtocolError);
  EXPECT_NO_THROW(decode_header(header_of(MessageType::kLoad, 8U << 20), 0));
  EXPECT_THROW(decode_header(header_of(MessageType::kLoad, (8U << 20) + 1), 0), ProtocolError);
  EXPECT_NO_THROW(decode_header(header_of(MessageType::kBlob, 4U << 20), 0));
  EXPECT_THROW(decode_header(header_of(MessageType::kBlob, 5U << 20), 0), ProtocolError);
  for (const MessageType type :
       {MessageType::kRun, MessageType::kResult, MessageType::kCapture, MessageType::kKvRows}) {
    EXPECT_TRUE(is_activation(type));
    EXPECT_THROW(decode_header(header_of(type, 1), 0), ProtocolError) << type_name(type);
    EXPECT_NO_THROW(decode_header(header_of(type, 14000 + kFieldsLimit), 14000));
    EXPECT_THROW(decode_header(header_of(type, 14001 + kFieldsLimit), 14000), ProtocolError);
    EXPECT_EQ(body_limit(type, 0xFFFFFFFFU), 0xFFFFFFFFU);
  }
  for (int type = 1; type <= 24; ++type) {
    EXPECT_THROW(decode_header(header_of(static_cast<MessageType>(type), 0xFFFFFFFFU), 1 << 20),
                 ProtocolError);
  }
  EXPECT_THROW(decode_header(header_of(static_cast<MessageType>(25), 0), 0), ProtocolError);
}

TEST(Frame, AnotherVersionIsNamedWithOurs) {
  HeaderBytes bytes = header_of(MessageType::kHello, 0);
  bytes[4] = 7;
  bytes[5] = 3;
  try {
    decode_header(bytes, 0);
    FAIL() << "version 7 was taken";
  } catch (const VersionError& error) {
    EXPECT_NE(std::string(error.what()).find("7.3"), std::string::npos) << error.what();
    const std::string ours = strcat(int{kVersionMajor}, ".", int{kVersionMinor});
    EXPECT_NE(std::string(error.what()).find(ours), std::string::npos) << error.what();
  }
  bytes = header_of(MessageType::kHello, 0);
  bytes[5] = 9;  // a newer minor version is spoken with
  EXPECT_NO_THROW(decode_header(bytes, 0));
  bytes[0] = 'G';  // "GET / HTTP"
  EXPECT_THROW(decode_header(bytes, 0), ProtocolError);
}

TEST(Frame, WhatADeploymentOwnsIsBoundToItsEpoch) {
  for (const MessageType type :
       {MessageType::kRun, MessageType::kResult, MessageType::kTokens, MessageType::kKvOp,
        MessageType::kKvRows, MessageType::kCapture, MessageType::kCancel}) {
    EXPECT_TRUE(is_epoch_bound(type)) << type_name(type);
  }
  for (const MessageType type : {MessageType::kPing, MessageType::kLoad, MessageType::kError,
                                 MessageType::kBlob, MessageType::kGoAway, MessageType::kJoin}) {
    EXPECT_FALSE(is_epoch_bound(type)) << type_name(type);
  }
}

}  // namespace
}  // namespace moesaic::wire
