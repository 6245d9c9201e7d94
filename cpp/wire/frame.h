// A frame: a fixed header and a body of known length. Encoded field by field; checked before
// anything is allocated. The epoch names the session: frames of a dead one are dropped by the
// receiver. The checksum (CRC-32C) also stands under TLS: it catches bad memory, not people.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>

#include "base/errors.h"

namespace moesaic::wire {

inline constexpr std::uint32_t kMagic = 0x3143534DU;  // "MSC1"
inline constexpr std::uint8_t kVersionMajor = 1;      // must be the same on both sides
// The lower of both sides' minors is spoken: what a minor adds is sent only to peers that have it.
// Minors below the oldest are refused by name. How releases are upgraded: docs/cluster.md.
inline constexpr std::uint8_t kVersionMinor = 1;
inline constexpr std::uint8_t kOldestMinor = 1;

enum class MessageType : std::uint16_t {
  kHello = 1,
  kWelcome = 2,
  kPing = 3,
  kPong = 4,
  kGoAway = 5,
  kError = 6,
  kManifestRequest = 7,
  kManifest = 8,
  kLoad = 9,
  kLoadProgress = 10,
  kLoaded = 11,
  kJoin = 12,
  kRun = 13,
  kResult = 14,
  kTokens = 15,
  kKvOp = 16,
  kKvRows = 17,
  kCapture = 18,
  kCancel = 19,
  kBlobRequest = 20,
  kBlob = 21,
  kStatusRequest = 22,
  kStatus = 23,
  kUnload = 24,
};

// offset  0  u32  magic
//         4  u8   version major      5  u8  version minor
//         6  u16  type
//         8  u32  body_bytes
//        12  u64  epoch
//        20  u64  sequence           of this connection and direction, from 0
//        28  u32  crc32c             of the body, then of bytes 0..27
// (The body first, so that its sum is made by the thread that sends it, before its place in the
// sequence is known.)
struct FrameHeader {
  std::uint8_t version_major = kVersionMajor;
  std::uint8_t version_minor = kVersionMinor;
  MessageType type = MessageType::kPing;
  std::uint32_t body_bytes = 0;
  std::uint64_t epoch = 0;
  std::uint64_t sequence = 0;
  std::uint32_t crc = 0;
};
inline constexpr std::size_t kHeaderBytes = 32;
using HeaderBytes = std::array<std::uint8_t, kHeaderBytes>;

// The other side speaks another major version; the text names both.
class VersionError : public ProtocolError {
 public:
  using ProtocolError::ProtocolError;
};

// The most bytes a body of this type may have. Activations and results: the payload that the
// deployment's plan implies (`activation_limit`; 0, before there is a deployment, accepts none) and
// kFieldsLimit. Throws ProtocolError for a type that does not exist.
std::uint32_t body_limit(MessageType type, std::uint32_t activation_limit);
// What is left for fields beside the payload of Run, Result, Capture and KvRows: a bias on every
// token of a vocabulary of half a million (4 MB), the end tokens and a history of a million.
inline constexpr std::uint32_t kFieldsLimit = 16U << 20;
// True for those bodies that `activation_limit` bounds.
bool is_activation(MessageType type);
// True for frames that mean something only within the deployment that their epoch names.
bool is_epoch_bound(MessageType type);
// "Run (13)".
std::string type_name(MessageType type);

// Throws VersionError, or ProtocolError: wrong magic, unknown type, a body over its limit.
FrameHeader decode_header(std::span<const std::uint8_t, kHeaderBytes> bytes,
                          std::uint32_t activation_limit);
// The header's bytes; body_crc = crc32c(0, body, body_bytes). `header.crc` is not used.
HeaderBytes encode_header(const FrameHeader& header, std::uint32_t body_crc);
// Throws ProtocolError when header and body do not give the header's crc.
void check_crc(std::span<const std::uint8_t, kHeaderBytes> header, std::uint32_t body_crc);

}  // namespace moesaic::wire
