// From a frame's body to a message.
#include "wire/messages.h"

#include <utility>

namespace moesaic::wire {
namespace {

template <typename M>
constexpr bool has_payload() {
  if constexpr (requires { M::kHasPayload; }) {
    return M::kHasPayload;
  } else {
    return false;
  }
}

template <typename M>
Decoded decode_as(std::span<const std::uint8_t> body) {
  Reader reader(body);
  M message;
  reader.field(message);
  if (!has_payload<M>()) reader.expect_end("a message without payload");
  return {std::move(message), body.last(reader.left())};
}

// One row per alternative of Message, found by its kType.
template <std::size_t... I>
Decoded decode_alternative(MessageType type, std::span<const std::uint8_t> body,
                           std::index_sequence<I...>) {
  Decoded decoded;
  const bool known = ((std::variant_alternative_t<I, Message>::kType == type &&
                       (decoded = decode_as<std::variant_alternative_t<I, Message>>(body), true)) ||
                      ...);
  if (!known) fail<ProtocolError>("[wire] unknown message type ", static_cast<int>(type));
  return decoded;
}

}  // namespace

Decoded decode(MessageType type, std::span<const std::uint8_t> body) {
  return decode_alternative(type, body, std::make_index_sequence<std::variant_size_v<Message>>());
}

}  // namespace moesaic::wire
