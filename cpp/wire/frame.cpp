// Frame headers as bytes, and what is known of each type of message before its body is read.
#include "wire/frame.h"

#include <bit>
#include <cstring>
#include <limits>

#include "base/crc32c.h"

namespace moesaic::wire {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr std::uint32_t kControlLimit = 64U << 10;
constexpr std::uint32_t kHandshakeLimit = 16U << 10;
constexpr std::uint32_t kBlobLimit = (4U << 20) + 256;
// The digests of some 1e5 units (61 layers x 3 x 384 experts) of 40 bytes each.
constexpr std::uint32_t kManifestLimit = 8U << 20;

enum class Limit { kHandshake, kControl, kActivation, kBlob, kManifest };

struct Traits {
  const char* name;
  Limit limit;
  bool epoch_bound;
};

// Null for a type that does not exist.
const Traits* find_traits(MessageType type) {
  static constexpr Traits kTable[] = {
      {"Hello", Limit::kHandshake, false},
      {"Welcome", Limit::kHandshake, false},
      {"Ping", Limit::kControl, false},
      {"Pong", Limit::kControl, false},
      {"GoAway", Limit::kControl, false},
      {"Error", Limit::kControl, false},
      {"ManifestRequest", Limit::kControl, false},
      {"Manifest", Limit::kManifest, false},
      {"Load", Limit::kManifest, false},  // its epoch is the new one
      {"LoadProgress", Limit::kControl, false},
      {"Loaded", Limit::kControl, false},
      {"Join", Limit::kControl, false},  // its epoch is answered by an error when it is dead
      {"Run", Limit::kActivation, true},
      {"Result", Limit::kActivation, true},
      {"Tokens", Limit::kControl, true},
      {"KvOp", Limit::kControl, true},
      {"KvRows", Limit::kActivation, true},
      {"Capture", Limit::kActivation, true},
      {"Cancel", Limit::kControl, true},
      {"BlobRequest", Limit::kControl, false},
      {"Blob", Limit::kBlob, false},
      {"StatusRequest", Limit::kControl, false},
      {"Status", Limit::kControl, false},
      {"Unload", Limit::kControl, false},
  };
  static_assert(std::size(kTable) == static_cast<std::size_t>(MessageType::kUnload));
  const auto index = static_cast<std::size_t>(type);
  return index == 0 || index > std::size(kTable) ? nullptr : &kTable[index - 1];
}

const Traits& traits(MessageType type) {
  const Traits* found = find_traits(type);
  if (found == nullptr) {
    fail<ProtocolError>("[wire] unknown message type ", static_cast<int>(type));
  }
  return *found;
}

template <typename T>
T get(const std::uint8_t* at) {
  T value{};
  std::memcpy(&value, at, sizeof(T));
  return value;
}

template <typename T>
void put(std::uint8_t* at, T value) {
  std::memcpy(at, &value, sizeof(T));
}

constexpr std::size_t kCrcAt = 28;

}  // namespace

std::uint32_t body_limit(MessageType type, std::uint32_t activation_limit) {
  switch (traits(type).limit) {
    case Limit::kHandshake:
      return kHandshakeLimit;
    case Limit::kControl:
      return kControlLimit;
    case Limit::kBlob:
      return kBlobLimit;
    case Limit::kManifest:
      return kManifestLimit;
    case Limit::kActivation:
      break;
  }
  if (activation_limit == 0) return 0;
  constexpr std::uint32_t kMost = std::numeric_limits<std::uint32_t>::max();
  return activation_limit > kMost - kFieldsLimit ? kMost : activation_limit + kFieldsLimit;
}

bool is_activation(MessageType type) { return traits(type).limit == Limit::kActivation; }

bool is_epoch_bound(MessageType type) { return traits(type).epoch_bound; }

std::string type_name(MessageType type) {
  const Traits* found = find_traits(type);
  return strcat(found == nullptr ? "unknown" : found->name, " (", static_cast<int>(type), ")");
}

FrameHeader decode_header(std::span<const std::uint8_t, kHeaderBytes> bytes,
                          std::uint32_t activation_limit) {
  const std::uint8_t* at = bytes.data();
  if (get<std::uint32_t>(at) != kMagic) {
    fail<ProtocolError>("[wire] not a Moesaic frame: it begins with 0x", std::hex,
                        get<std::uint32_t>(at));
  }
  FrameHeader header;
  header.version_major = at[4];
  header.version_minor = at[5];
  if (header.version_major != kVersionMajor) {
    fail<VersionError>("[wire] protocol version ", int{header.version_major}, ".",
                       int{header.version_minor}, ", this side speaks ", int{kVersionMajor}, ".",
                       int{kVersionMinor}, ": install the newer Moesaic on both");
  }
  header.type = static_cast<MessageType>(get<std::uint16_t>(at + 6));
  header.body_bytes = get<std::uint32_t>(at + 8);
  header.epoch = get<std::uint64_t>(at + 12);
  header.sequence = get<std::uint64_t>(at + 20);
  header.crc = get<std::uint32_t>(at + kCrcAt);
  const std::uint32_t limit = body_limit(header.type, activation_limit);
  if (header.body_bytes > limit) {
    fail<ProtocolError>("[wire] ", type_name(header.type), ": a body of ", header.body_bytes,
                        " bytes, at most ", limit, " expected");
  }
  return header;
}

HeaderBytes encode_header(const FrameHeader& header, std::uint32_t body_crc) {
  HeaderBytes bytes{};
  std::uint8_t* at = bytes.data();
  put(at, kMagic);
  put(at + 4, header.version_major);
  put(at + 5, header.version_minor);
  put(at + 6, static_cast<std::uint16_t>(header.type));
  put(at + 8, header.body_bytes);
  put(at + 12, header.epoch);
  put(at + 20, header.sequence);
  put(at + kCrcAt, crc32c(body_crc, at, kCrcAt));
  return bytes;
}

void check_crc(std::span<const std::uint8_t, kHeaderBytes> header, std::uint32_t body_crc) {
  if (crc32c(body_crc, header.data(), kCrcAt) != get<std::uint32_t>(header.data() + kCrcAt)) {
    fail<ProtocolError>("[wire] the checksum of a frame does not match: bad memory or a bad link");
  }
}

}  // namespace moesaic::wire
