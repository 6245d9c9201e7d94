// A small slice of a small model, for the targets of the cache's files: its layout, digests of its
// units, and what an input makes of a good file of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "check.h"
#include "cluster/weights/content.h"
#include "cluster/weights/slice_file.h"
#include "gguf/file.h"

namespace moesaic::cluster::fuzz {

using Bytes = std::vector<std::uint8_t>;

inline wire::Digest digest_of(std::size_t number) {
  wire::Digest digest{};
  digest.fill(static_cast<std::uint8_t>(number + 1));
  return digest;
}

template <typename T>
void put(Bytes& out, T value) {
  const std::size_t at = out.size();
  out.resize(at + sizeof(T));
  std::memcpy(&out[at], &value, sizeof(T));
}

inline void put_text(Bytes& out, std::string_view text) {
  put(out, std::uint64_t{text.size()});
  out.insert(out.end(), text.begin(), text.end());
}

// Three tensors; the second is of two units, as experts are.
inline std::shared_ptr<const gguf::File> small_directory() {
  Bytes header{'G', 'G', 'U', 'F'};
  put(header, std::uint32_t{3});
  put(header, std::uint64_t{3});
  put(header, std::uint64_t{0});
  std::uint64_t offset = 0;
  const auto tensor = [&](std::string_view name, std::vector<std::uint64_t> ne) {
    put_text(header, name);
    put(header, static_cast<std::uint32_t>(ne.size()));
    std::uint64_t n_bytes = 4;
    for (const std::uint64_t n : ne) {
      put(header, n);
      n_bytes *= n;
    }
    put(header, std::uint32_t{0});  // F32
    put(header, offset);
    offset += (n_bytes + 31) / 32 * 32;
  };
  tensor("norm", {8});
  tensor("experts", {32, 32, 2});
  tensor("other", {16});
  return gguf::File::from_headers(header, "small.gguf");
}

struct SmallSlice {
  std::vector<std::string> tensors{"norm", "experts"};
  std::shared_ptr<const gguf::File> directory = small_directory();
  Content content = content_of(*directory);
  SliceLayout layout = make_layout(directory, content.identity, tensors);
  std::vector<wire::Digest> digests;  // of the slice's units

  SmallSlice() {
    for (std::size_t i = 0; i < layout.units.size(); ++i) digests.push_back(digest_of(i));
  }
  static Content content_of(const gguf::File& file) {
    UnitDigests units;
    for (const UnitKey& unit : all_units(file)) units[unit] = digest_of(units.size());
    return make_content(file, units);
  }
};

// A folder for as long as a target sets itself up.
class SetUpFolder {
 public:
  SetUpFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "fuzz-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) moesaic::fuzz::violated("no folder");
    path_ = name;
  }
  ~SetUpFolder() { std::filesystem::remove_all(path_); }
  SetUpFolder(const SetUpFolder&) = delete;
  SetUpFolder& operator=(const SetUpFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline Bytes read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// An input: a byte of flags, and then either a whole file or changes of a good one.
struct Input {
  Bytes file;
  bool repair = false;  // make its checksums right, which no mutation could do
};

// Flags: 1: changes, each u16 where and u8 what, of the length that a leading u16 adds or takes;
// 2: repair.
inline Input input_of(std::span<const std::uint8_t> data, const Bytes& good) {
  Input input;
  const std::uint8_t flags = data[0];
  data = data.subspan(1);
  input.repair = (flags & 2) != 0;
  if ((flags & 1) == 0) {
    input.file.assign(data.begin(), data.end());
    return input;
  }
  input.file = good;
  const auto number = [&](std::size_t at) { return data[at] + 256U * data[at + 1]; };
  if (data.size() >= 2) {
    input.file.resize((good.size() + number(0)) % (good.size() + 1000));
    data = data.subspan(2);
  }
  for (; data.size() >= 3 && !input.file.empty(); data = data.subspan(3)) {
    input.file[number(0) % input.file.size()] = data[2];
  }
  return input;
}

}  // namespace moesaic::cluster::fuzz
