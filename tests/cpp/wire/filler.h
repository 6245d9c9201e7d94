// Messages with made-up values: a third archive beside Writer and Reader, so that no message and no
// field is forgotten. Also used by the net tests and the seeds of the fuzzers.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "wire/messages.h"

namespace moesaic::wire::testing {

class Filler {
 public:
  explicit Filler(std::uint64_t seed) : random_(seed) {}

  template <Scalar T>
  void field(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      value = random_() % 2 == 0;
    } else if constexpr (std::is_enum_v<T>) {
      do {
        value = static_cast<T>(random_() % 16);
      } while (!exists(value));
    } else if constexpr (std::is_floating_point_v<T>) {
      value = static_cast<T>(static_cast<std::int64_t>(random_())) / 1024;
    } else {
      value = static_cast<T>(random_());
    }
  }
  void field(std::string& text) {
    text.resize(random_() % 20);
    for (char& c : text) c = static_cast<char>('a' + random_() % 26);
  }
  template <typename T, std::size_t N>
  void field(std::array<T, N>& values) {
    for (T& value : values) field(value);
  }
  template <typename T>
  void field(std::vector<T>& values) {
    values.resize(random_() % 4);
    for (T& value : values) field(value);
  }
  template <typename T>
  void field(std::optional<T>& value) {
    value.reset();
    if (random_() % 2 == 0) field(value.emplace());
  }
  template <typename T>
  requires std::is_class_v<T>
  void field(T& message) { fields(*this, message); }

 private:
  std::mt19937_64 random_;
};

// f(M{} with made-up values) for each message of the vocabulary.
template <typename F, std::size_t... I>
void for_each_message_at(std::uint64_t seed, F&& f, std::index_sequence<I...>) {
  const auto one = [&](auto message) {
    Filler(seed).field(message);
    f(message);
  };
  (one(std::variant_alternative_t<I, Message>{}), ...);
}
template <typename F>
void for_each_message(std::uint64_t seed, F&& f) {
  for_each_message_at(seed, f, std::make_index_sequence<std::variant_size_v<Message>>());
}

inline std::vector<std::uint8_t> encode_any(const Message& message) {
  return std::visit([](const auto& m) { return encode(m); }, message);
}

}  // namespace moesaic::wire::testing
