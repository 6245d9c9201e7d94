// Names what people open by mistake instead of a GGUF file. Source: the formats' own magic numbers.
#include <algorithm>
#include <cstring>
#include <string_view>

#include "gguf/parse.h"

namespace moesaic::gguf {
namespace {

struct Magic {
  std::string_view bytes;
  const char* meaning;
};

using namespace std::string_view_literals;
constexpr Magic kMagics[] = {
    {"version https://git-lfs"sv, "a Git LFS pointer, not the file itself: run git lfs pull"},
    {"PK\x03\x04"sv, "a zip archive, as PyTorch checkpoints (.bin, .pt) are: convert it to GGUF"},
    {"\x80\x02"sv, "a Python pickle (an old PyTorch checkpoint): convert it to GGUF"},
    {"\x80\x04"sv, "a Python pickle: convert it to GGUF"},
    {"\x80\x05"sv, "a Python pickle: convert it to GGUF"},
    {"<"sv, "an HTML or XML page: the download fetched a web page instead of the file"},
    {"{"sv, "JSON text: name the .gguf file instead"},
    {"FUGG"sv, "a big-endian file: convert it to little endian"},
    {"lmgg"sv, "a GGML file from before GGUF: convert the model again"},
    {"fmgg"sv, "a GGMF file from before GGUF: convert the model again"},
    {"tjgg"sv, "a GGJT file from before GGUF: convert the model again"},
    {"\x1f\x8b"sv, "a gzip archive: unpack it first"},
    {"\x28\xb5\x2f\xfd"sv, "a zstd archive: unpack it first"},
    {"\xfd"
     "7zXZ"sv,
     "an xz archive: unpack it first"},
    {"BZh"sv, "a bzip2 archive: unpack it first"},
    {"7z\xbc\xaf"sv, "a 7z archive: unpack it first"},
    {"\x89HDF"sv, "an HDF5 file (Keras weights): convert it to GGUF"},
    {"\x93NUMPY"sv, "a NumPy array (.npy)"},
    {"\x7f"
     "ELF"sv,
     "a program or library"},
};

// An 8-byte little-endian header length, then JSON.
bool is_safetensors(std::span<const std::uint8_t> bytes) {
  if (bytes.size() < 10 || bytes[8] != '{') return false;
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), 8);
  return header_bytes < (std::uint64_t{1} << 32);
}

}  // namespace

std::string looks_like(std::span<const std::uint8_t> bytes) {
  const auto say = [](const char* meaning) { return std::string(" It looks like ") + meaning; };
  if (is_safetensors(bytes)) return say("a safetensors file: convert it to GGUF");
  for (const Magic& magic : kMagics) {
    if (bytes.size() >= magic.bytes.size() &&
        std::memcmp(bytes.data(), magic.bytes.data(), magic.bytes.size()) == 0) {
      return say(magic.meaning);
    }
  }
  const auto head = bytes.first(std::min<std::size_t>(bytes.size(), 4096));
  if (std::all_of(head.begin(), head.end(), [](std::uint8_t b) { return b == 0; })) {
    return say("zeros only: an unfinished download, perhaps");
  }
  return "";
}

}  // namespace moesaic::gguf
