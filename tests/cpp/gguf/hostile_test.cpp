// Bad files: each is refused with a FormatError that names the file, the place and what was
// expected.
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "base/errors.h"
#include "gguf/file.h"
#include "raw_file.h"

namespace moesaic::gguf {
namespace {

constexpr auto kU32 = ValueType::kU32;

std::string u32s(std::initializer_list<std::uint32_t> values) {
  std::string out;
  for (const std::uint32_t value : values) RawFile::put(out, value);
  return out;
}
std::string u64(std::uint64_t value) {
  std::string out;
  RawFile::put(out, value);
  return out;
}

RawTensor tensor(std::string name, std::vector<std::uint64_t> ne, std::uint64_t offset = 0,
                 std::uint32_t type = 0) {
  return {std::move(name), static_cast<std::uint32_t>(ne.size()), std::move(ne), type, offset};
}

RawFile aligned(std::uint32_t alignment) {
  return RawFile().scalar("general.alignment", kU32, alignment).tensor(tensor("w", {8})).data(64);
}

struct Case {
  const char* name;
  std::function<std::string()> bytes;
  std::vector<std::string> says;  // all of these stand in the message, beside the file's name
};

std::vector<Case> cases() {
  constexpr std::uint64_t kMax = UINT64_MAX;
  return {
      {"empty", [] { return std::string(); }, {"the file is empty"}},
      {"magic_only", [] { return std::string("GGUF"); }, {"version", "4 bytes too early"}},
      {"half_magic", [] { return std::string("GG"); }, {"too early"}},
      {"text", [] { return std::string("hello world, I am text"); }, {"not a GGUF file", "byte 0"}},
      {"html", [] { return std::string("<!DOCTYPE html><html>"); }, {"HTML"}},
      {"safetensors", [] { return u64(100) + "{\"a\":{}}"; }, {"safetensors"}},
      {"zip", [] { return std::string("PK\x03\x04 more bytes"); }, {"PyTorch"}},
      {"pickle", [] { return std::string("\x80\x02}q\x00.", 6); }, {"pickle"}},
      {"lfs", [] { return std::string("version https://git-lfs.github.com/spec/v1"); }, {"LFS"}},
      {"old_ggml", [] { return std::string("tjgg\x01\x00\x00\x00", 8); }, {"GGJT"}},
      {"zeros", [] { return std::string(5000, '\0'); }, {"zeros"}},
      {"version1",
       [] {
         RawFile f;
         f.version = 1;
         return f.build();
       },
       {"version 1", "version 2 or 3"}},
      {"version4",
       [] {
         RawFile f;
         f.version = 4;
         return f.build();
       },
       {"version 4", "version 2 or 3"}},
      {"version0",
       [] {
         RawFile f;
         f.version = 0;
         return f.build();
       },
       {"version 0"}},
      {"big_endian",
       [] {
         RawFile f;
         f.version = 0x03000000;
         return f.build();
       },
       {"big-endian", "version 3"}},
      {"key_count_2_63",
       [] {
         RawFile f;
         f.n_keys_off = std::uint64_t{1} << 63;
         return f.build();
       },
       {"key count", "9223372036854775808", "byte 16"}},
      {"tensor_count_2_63",
       [] {
         RawFile f;
         f.n_tensors_off = std::uint64_t{1} << 63;
         return f.build();
       },
       {"tensor count", "9223372036854775808", "byte 8"}},
      {"tensor_count_one_more",
       [] {
         RawFile f;
         f.tensor(tensor("w", {8}));
         f.n_tensors_off = 1;
         return f.build();
       },
       {"tensor"}},
      {"key_length_max",
       [] { return RawFile().build().replace(16, 8, u64(1)) + u64(kMax) + "abcdefghijkl"; },
       {"length 18446744073709551615"}},
      {"string_length_max",
       [] { return RawFile().bytes("general.name", u32s({8}) + u64(kMax)).build(); },
       {"key \"general.name\"", "length 18446744073709551615"}},
      {"key_empty",
       [] { return RawFile().scalar<std::uint32_t>("", kU32, 1).build(); },
       {"0 bytes"}},
      {"key_64k",
       [] { return RawFile().scalar<std::uint32_t>(std::string(65536, 'k'), kU32, 1).build(); },
       {"65536 bytes", "need 1 to 65535"}},
      {"key_twice",
       [] { return RawFile().text("a", "x").text("b", "y").text("a", "z").build(); },
       {"key \"a\" stands twice"}},
      {"value_type_13",
       [] { return RawFile().bytes("k", u32s({13}) + u64(0)).build(); },
       {"key \"k\"", "value type: 13", "need 0 to 12"}},
      {"bool_2",
       [] { return RawFile().scalar<std::uint8_t>("k", ValueType::kBool, 2).build(); },
       {"bool of value 2", "need 0 or 1"}},
      {"bool_in_array",
       [] {
         return RawFile().array("k", ValueType::kBool, 3, std::string("\x01\x00\x07", 3)).build();
       },
       {"bool of value 7"}},
      {"nested_array",
       [] {
         return RawFile().array("k", ValueType::kArray, 1, u32s({4}) + u64(1) + u32s({7})).build();
       },
       {"array of arrays"}},
      {"array_count_2_63",
       [] { return RawFile().array("k", kU32, std::uint64_t{1} << 63, "1234").build(); },
       {"9223372036854775808 elements of u32"}},
      {"array_count_wraps",  // times 4 bytes it would wrap to 4
       [] { return RawFile().array("k", kU32, (std::uint64_t{1} << 62) + 1, "1234").build(); },
       {"4611686018427387905 elements"}},
      {"array_of_strings_too_many",
       [] { return RawFile().array("k", ValueType::kString, 100, std::string(64, '\0')).build(); },
       {"100 elements of string"}},
      {"array_of_strings_long",
       [] { return RawFile().array("k", ValueType::kString, 1, u64(kMax - 8) + "abc").build(); },
       {"length 18446744073709551607"}},
      {"alignment_0",
       [] { return aligned(0).build(); },
       {"general.alignment", "is 0", "power of two"}},
      {"alignment_33", [] { return aligned(33).build(); }, {"is 33"}},
      {"alignment_4", [] { return aligned(4).build(); }, {"is 4"}},
      {"alignment_2_31", [] { return aligned(1U << 31).build(); }, {"is 2147483648"}},
      {"alignment_type",
       [] {
         return RawFile().scalar<std::uint64_t>("general.alignment", ValueType::kU64, 32).build();
       },
       {"general.alignment", "is u64, need u32"}},
      {"n_dims_5",
       [] {
         return RawFile().tensor(tensor("w", {2, 2, 2, 2, 2})).data(128).build();
       },
       {"tensor \"w\"", "5 dimensions", "at most 4"}},
      {"n_dims_max",
       [] {
         RawTensor t = tensor("w", {8});
         t.n_dims = UINT32_MAX;
         return RawFile().tensor(t).data(64).build();
       },
       {"4294967295 dimensions"}},
      {"dim_0",
       [] {
         return RawFile().tensor(tensor("w", {8, 0})).data(64).build();
       },
       {"tensor \"w\"", "dimension of 0"}},
      {"dims_wrap",  // 2^32 * 2^32 = 0 modulo 2^64
       [] {
         return RawFile()
             .tensor(tensor("w", {std::uint64_t{1} << 32, std::uint64_t{1} << 32}))
             .data(64)
             .build();
       },
       {"multiply to more elements"}},
      {"dims_wrap_to_small",
       [] {
         return RawFile().tensor(tensor("w", {8, (std::uint64_t{1} << 61) + 1})).data(64).build();
       },
       {"multiply to more elements"}},
      {"dim_max",
       [] { return RawFile().tensor(tensor("w", {kMax})).data(64).build(); },
       {"multiply to more elements"}},
      {"row_not_block",
       [] { return RawFile().tensor(tensor("w", {48}, 0, 8)).data(64).build(); },
       {"rows of 48 elements of Q8_0", "multiple of 32"}},
      {"type_unknown",
       [] { return RawFile().tensor(tensor("w", {8}, 0, 99)).data(64).build(); },
       {"unknown element type 99"}},
      {"type_removed_4",
       [] { return RawFile().tensor(tensor("w", {8}, 0, 4)).data(64).build(); },
       {"element type 4", "removed"}},
      {"type_removed_31",
       [] { return RawFile().tensor(tensor("w", {8}, 0, 31)).data(64).build(); },
       {"element type 31", "removed"}},
      {"type_q8_1",
       [] { return RawFile().tensor(tensor("w", {8}, 0, 9)).data(64).build(); },
       {"element type 9", "activations"}},
      {"offset_past_end",
       [] { return RawFile().tensor(tensor("w", {8}, 64)).data(64).build(); },
       {"tensor \"w\"", "32 bytes too early"}},
      {"offset_max",
       [] { return RawFile().tensor(tensor("w", {8}, kMax - 31)).data(64).build(); },
       {"tensor \"w\"", "offset"}},
      {"offset_misaligned",
       [] { return RawFile().tensor(tensor("w", {8}, 8)).data(64).build(); },
       {"offset 8 is no multiple of the alignment 32"}},
      {"overlap",
       [] {
         return RawFile().tensor(tensor("a", {16})).tensor(tensor("b", {8}, 32)).data(96).build();
       },
       {"tensor \"b\"", "inside tensor \"a\""}},
      {"overlap_same",
       [] { return RawFile().tensor(tensor("a", {8})).tensor(tensor("b", {8})).data(96).build(); },
       {"inside tensor"}},
      {"overlap_unordered",
       [] {
         return RawFile().tensor(tensor("b", {8}, 32)).tensor(tensor("a", {16})).data(96).build();
       },
       {"tensor \"b\"", "inside tensor \"a\""}},
      {"tensor_twice",
       [] {
         return RawFile().tensor(tensor("a", {8})).tensor(tensor("a", {8}, 32)).data(96).build();
       },
       {"tensor \"a\" stands twice"}},
      {"tensor_no_name",
       [] { return RawFile().tensor(tensor("", {8})).data(64).build(); },
       {"tensor name of 0 bytes"}},
      {"no_data", [] { return RawFile().tensor(tensor("w", {8})).build(); }, {"too early"}},
      {"split_part",
       [] {
         return RawFile()
             .scalar<std::uint16_t>("split.no", ValueType::kU16, 0)
             .scalar<std::uint16_t>("split.count", ValueType::kU16, 2)
             .build();
       },
       {"part 1 of 2"}},
      {"split_no_past_count",
       [] {
         return RawFile()
             .scalar<std::uint16_t>("split.no", ValueType::kU16, 7)
             .scalar<std::uint16_t>("split.count", ValueType::kU16, 2)
             .build();
       },
       {"part 7"}},
      {"split_count_string",
       [] { return RawFile().text("split.count", "2").build(); },
       {"split.count", "is string, need an integer"}},
      {"split_count_negative",
       [] { return RawFile().scalar<std::int32_t>("split.count", ValueType::kI32, -2).build(); },
       {"split.count", "negative"}},
  };
}

class Hostile : public testing::TestWithParam<Case> {};

TEST_P(Hostile, IsRefusedByName) {
  const std::string bytes = GetParam().bytes();
  try {
    load(bytes);
    FAIL() << "was accepted";
  } catch (const FormatError& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("mem.gguf"), std::string::npos) << message;
    for (const std::string& part : GetParam().says) {
      EXPECT_NE(message.find(part), std::string::npos) << "need \"" << part << "\" in: " << message;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Files, Hostile, testing::ValuesIn(cases()),
                         [](const auto& param) { return std::string(param.param.name); });

// Names from the file stand in messages without their control bytes.
TEST(HostileName, IsEscaped) {
  try {
    load(RawFile().tensor(tensor("a\x1b[31m\n", {0})).data(32).build());
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_NE(std::string(error.what()).find("\"a\\x1b[31m\\x0a\""), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace moesaic::gguf
