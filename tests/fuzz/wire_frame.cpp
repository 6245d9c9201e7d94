// libFuzzer target: any bytes as a stream of frames, as a link reads them. The first byte chooses
// the limit of activations. A checksum that does not match is noted and forgiven, or nothing behind
// it would ever be reached. Seeds: corpus/wire_frame/ (tests/cpp/wire/seeds_test.cpp writes them).
#include "base/crc32c.h"
#include "wire_check.h"

using namespace moesaic::wire;

namespace {

// The header as a good sender would have written it: only checksum and minor version may differ.
void check_header(std::span<const std::uint8_t, kHeaderBytes> bytes, const FrameHeader& header,
                  std::uint32_t activation_limit, std::span<const std::uint8_t> body) {
  if (header.body_bytes > body_limit(header.type, activation_limit)) fuzz::violated("the limit");
  const std::uint32_t body_crc = moesaic::crc32c(0, body.data(), body.size());
  const HeaderBytes again = encode_header(header, body_crc);
  if (std::memcmp(again.data(), bytes.data(), kHeaderBytes - 4) != 0) {
    fuzz::violated("a header has two spellings");
  }
  check_crc(again, body_crc);  // throws when what was just made does not match
  const bool matches = std::memcmp(again.data(), bytes.data(), kHeaderBytes) == 0;
  bool accepted = true;
  try {
    check_crc(bytes, body_crc);
  } catch (const moesaic::ProtocolError&) {
    accepted = false;
  }
  if (matches != accepted) fuzz::violated("the checksum");
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  fuzz::install_hooks();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const fuzz::Stopwatch stopwatch;
  const std::uint32_t activation_limit = data[0] == 0 ? 0 : 1U << (data[0] % 32);
  std::span<const std::uint8_t> left(data + 1, size - 1);
  try {
    while (left.size() >= kHeaderBytes) {
      const auto bytes = left.first<kHeaderBytes>();
      const FrameHeader header = decode_header(bytes, activation_limit);
      left = left.subspan(kHeaderBytes);
      const auto body = left.first(std::min<std::size_t>(header.body_bytes, left.size()));
      if (body.size() < header.body_bytes) break;  // a link would wait for the rest
      check_header(bytes, header, activation_limit, body);
      fuzz::check_body(header.type, body);
      left = left.subspan(body.size());
    }
  } catch (const moesaic::ProtocolError&) {
    return 0;  // a link would close here
  }
  return 0;
}
