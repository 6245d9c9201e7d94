// The seeds of the wire fuzzers (tests/fuzz/corpus/wire_*) are what today's code writes. After a
// change of the protocol: MOESAIC_WRITE_SEEDS=1 test_wire --gtest_filter='Seeds.*'
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "base/crc32c.h"
#include "wire/filler.h"

namespace moesaic::wire {
namespace {

namespace fs = std::filesystem;
using Bytes = std::vector<std::uint8_t>;

void expect_seed(const std::string& target, const std::string& name, const Bytes& bytes) {
  const fs::path path =
      fs::path(MOESAIC_TEST_DATA).parent_path() / "fuzz" / "corpus" / target / name;
  if (std::getenv("MOESAIC_WRITE_SEEDS") != nullptr) {
    fs::create_directories(path.parent_path());
    std::ofstream(path, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }
  std::ifstream file(path, std::ios::binary);
  const Bytes found((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  EXPECT_EQ(found, bytes) << path;
}

void append(Bytes& to, const Bytes& from) { to.insert(to.end(), from.begin(), from.end()); }

TEST(Seeds, OneOfEachMessageAndAllInARow) {
  Bytes all_messages;
  Bytes all_frames = {20};  // activations of up to 1 MiB
  std::uint64_t sequence = 0;
  testing::for_each_message(20261121, [&](const auto& message) {
    const auto type = static_cast<std::uint8_t>(message.kType);
    const Bytes body = encode(message);
    Bytes entry = {type, static_cast<std::uint8_t>(body.size() & 255),
                   static_cast<std::uint8_t>(body.size() >> 8)};
    append(entry, body);
    append(all_messages, entry);
    FrameHeader header;
    header.type = message.kType;
    header.body_bytes = static_cast<std::uint32_t>(body.size());
    header.epoch = 5;
    header.sequence = sequence++;
    const HeaderBytes head = encode_header(header, crc32c(0, body.data(), body.size()));
    Bytes frame(head.size() + body.size());
    std::copy(body.begin(), body.end(), std::copy(head.begin(), head.end(), frame.begin()));
    append(all_frames, frame);
    const std::string name = type_name(message.kType);
    const std::string short_name = name.substr(0, name.find(' '));
    expect_seed("wire_messages", short_name, entry);
    frame.insert(frame.begin(), std::uint8_t{20});
    expect_seed("wire_frame", short_name, frame);
  });
  expect_seed("wire_messages", "all", all_messages);
  expect_seed("wire_frame", "all", all_frames);
}

}  // namespace
}  // namespace moesaic::wire
