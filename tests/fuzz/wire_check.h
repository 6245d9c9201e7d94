// What both wire fuzzers hold decode() to: ProtocolError or a message that spells the same bytes
// again, without an allocation above twice the input and 1 MB; all of an input within 10 ms.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <variant>
#include <vector>

#include "base/errors.h"
#include "check.h"
#include "wire/messages.h"

namespace moesaic::wire::fuzz {

using moesaic::fuzz::g_largest_allocation;
using moesaic::fuzz::install_hooks;
using moesaic::fuzz::Stopwatch;
using moesaic::fuzz::violated;

// True when the body is a message.
inline bool check_body(MessageType type, std::span<const std::uint8_t> body) {
  // What is looked at is at its own end, so that a read past it is seen.
  const std::vector<std::uint8_t> own(body.begin(), body.end());
  g_largest_allocation = 0;
  Decoded decoded;
  try {
    decoded = decode(type, own);
  } catch (const ProtocolError&) {
    if (g_largest_allocation > 2 * own.size() + (1U << 20)) violated("too large an allocation");
    return false;
  }
  if (g_largest_allocation > 2 * own.size() + (1U << 20)) violated("too large an allocation");
  std::vector<std::uint8_t> again =
      std::visit([](const auto& message) { return encode(message); }, decoded.message);
  again.insert(again.end(), decoded.payload.begin(), decoded.payload.end());
  if (again != own) violated("a message has two spellings");
  return true;
}

}  // namespace moesaic::wire::fuzz
