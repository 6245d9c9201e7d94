// libFuzzer target: a sequence of messages, each a type (u8), a length (u16) and a body. Seeds:
// corpus/wire_messages/ (tests/cpp/wire/seeds_test.cpp writes them).
#include "wire_check.h"

using namespace moesaic::wire;

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  fuzz::install_hooks();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const fuzz::Stopwatch stopwatch;
  std::span<const std::uint8_t> left(data, size);
  while (left.size() >= 3) {
    const auto type = static_cast<MessageType>(left[0]);
    const std::size_t claimed = left[1] + 256U * left[2];
    left = left.subspan(3);
    const std::size_t n = std::min(claimed, left.size());
    fuzz::check_body(type, left.first(n));
    left = left.subspan(n);
  }
  return 0;
}
