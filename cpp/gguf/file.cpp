// A file set as one directory of tensors: its parts parsed, checked against each other, and indexed
// by name.
#include "gguf/file.h"

#include <algorithm>
#include <numeric>

#include "base/errors.h"
#include "gguf/cursor.h"
#include "gguf/mapping.h"
#include "gguf/parse.h"
#include "gguf/split.h"

namespace moesaic::gguf {
namespace {

class FileSet final : public File {
 public:
  // A part's bytes: mapped, owned (its header alone), or kept alive by the caller.
  struct Part {
    Mapping mapping;
    std::vector<std::uint8_t> header;
    std::span<const std::uint8_t> bytes;
  };

  void add_part(Part part, ParsedPart parsed, const std::string& path) {
    const int file = static_cast<int>(parts_.size());
    headers_.push_back(part.bytes.first(parsed.header_bytes));
    if (file == 0) {
      first_ = std::move(parsed);
      tensors_ = std::move(first_.tensors);
    } else {
      for (TensorInfo& tensor : parsed.tensors) {
        tensor.file = file;
        tensors_.push_back(std::move(tensor));
      }
    }
    parts_.push_back(std::move(part));
    paths_.push_back(path);
  }

  // After the last part: the index by name. A name that stands twice is an error.
  void index_tensors() {
    by_name_.resize(tensors_.size());
    std::iota(by_name_.begin(), by_name_.end(), 0U);
    std::sort(by_name_.begin(), by_name_.end(), [this](std::uint32_t a, std::uint32_t b) {
      return tensors_[a].name < tensors_[b].name;
    });
    for (std::size_t i = 1; i < by_name_.size(); ++i) {
      const TensorInfo& a = tensors_[by_name_[i - 1]];
      const TensorInfo& b = tensors_[by_name_[i]];
      if (a.name != b.name) continue;
      const auto& path_a = paths_[static_cast<std::size_t>(a.file)];
      const auto& path_b = paths_[static_cast<std::size_t>(b.file)];
      if (a.file == b.file) {
        fail<FormatError>("[gguf] ", path_a, ": tensor ", quoted(a.name), " stands twice in it");
      }
      fail<FormatError>("[gguf] ", path_a, ": tensor ", quoted(a.name), " stands in it and in ",
                        path_b);
    }
  }

  std::uint32_t version() const override { return first_.version; }
  std::uint64_t alignment() const override { return first_.alignment; }
  std::span<const Value> metadata() const override { return first_.metadata; }
  std::span<const TensorInfo> tensors() const override { return tensors_; }
  std::span<const std::string> paths() const override { return paths_; }

  const Value* find(std::string_view key) const override { return find_value(first_, key); }

  const TensorInfo* find_tensor(std::string_view name) const override {
    const auto at = std::lower_bound(
        by_name_.begin(), by_name_.end(), name,
        [this](std::uint32_t index, std::string_view n) { return tensors_[index].name < n; });
    if (at == by_name_.end() || tensors_[*at].name != name) return nullptr;
    return &tensors_[*at];
  }

  std::span<const std::uint8_t> bytes(const TensorInfo& tensor) const override {
    const Part& part = parts_[static_cast<std::size_t>(tensor.file)];
    if (!part.header.empty()) {
      fail<ArgumentError>("[gguf] ", paths_[static_cast<std::size_t>(tensor.file)], ": tensor ",
                          quoted(tensor.name),
                          ": weights are not here, only the file's header is; load the model on "
                          "the machines that have it");
    }
    return part.bytes.subspan(tensor.offset, tensor.n_bytes);
  }

  std::span<const std::span<const std::uint8_t>> headers() const override { return headers_; }

  void check_intact() const override {
    for (const Part& part : parts_) part.mapping.check_intact();
  }

  std::vector<int> descriptors() const override {
    std::vector<int> open;
    for (const Part& part : parts_) {
      if (const int fd = part.mapping.descriptor(); fd >= 0) open.push_back(fd);
    }
    return open;
  }

 private:
  std::vector<Part> parts_;
  std::vector<std::string> paths_;
  std::vector<std::span<const std::uint8_t>> headers_;
  ParsedPart first_;  // its tensors have moved to tensors_
  std::vector<TensorInfo> tensors_;
  std::vector<std::uint32_t> by_name_;  // indices into tensors_, sorted by name
};

FileSet::Part map_part(const std::string& path) {
  FileSet::Part part;
  part.mapping = Mapping(path);
  part.bytes = part.mapping.bytes();
  return part;
}

void check_same_set(const SplitKeys& keys, const SplitKeys& first, std::uint64_t number,
                    const std::string& path) {
  if (keys.count != first.count || keys.number != number) {
    fail<FormatError>("[gguf] ", path, ": by its keys it is part ", keys.number + 1, " of ",
                      keys.count, ", need part ", number + 1, " of ", first.count,
                      ": parts of different sets have been mixed");
  }
  if (keys.n_tensors != first.n_tensors) {
    fail<FormatError>("[gguf] ", path, ": its split.tensors.count is not that of the first part (",
                      keys.n_tensors.value_or(0), " and ", first.n_tensors.value_or(0),
                      "): parts of different sets have been mixed");
  }
}

void check_tensor_count(const SplitKeys& first, const FileSet& set) {
  if (first.n_tensors && *first.n_tensors != set.tensors().size()) {
    fail<FormatError>("[gguf] ", set.paths()[0], ": split.tensors.count is ", *first.n_tensors,
                      ", but the ", set.paths().size(), " parts hold ", set.tensors().size(),
                      " tensors");
  }
}

void add_split_set(FileSet& set, const std::vector<std::string>& paths) {
  SplitKeys first;
  std::uint64_t alignment = 0;  // of the first part
  for (std::size_t i = 0; i < paths.size(); ++i) {
    FileSet::Part part = map_part(paths[i]);
    ParsedPart parsed = parse_part(part.bytes, paths[i], TensorData::kHere, alignment);
    if (i == 0) alignment = parsed.alignment;
    const SplitKeys keys = split_keys(parsed, paths[i]);
    if (i == 0) {
      first = keys;
      first.count = paths.size();
    }
    check_same_set(keys, first, i, paths[i]);
    set.add_part(std::move(part), std::move(parsed), paths[i]);
  }
  check_tensor_count(first, set);
}

void add_header(FileSet& set, std::vector<std::uint8_t> header, const SplitKeys& first,
                const std::string& name) {
  const std::uint64_t number = set.paths().size();
  const std::string part_is = part_name(name, number, first.count);
  FileSet::Part part;
  part.header = std::move(header);
  part.bytes = part.header;
  ParsedPart parsed = parse_part(part.bytes, part_is, TensorData::kElsewhere);
  if (parsed.header_bytes != part.bytes.size()) {
    fail<FormatError>("[gguf] ", part_is, ": a header of ", part.bytes.size(),
                      " bytes, but its tensor directory ends at byte ", parsed.header_bytes);
  }
  const SplitKeys keys = split_keys(parsed, part_is);
  if (first.count > 1) check_same_set(keys, first, number, part_is);
  set.add_part(std::move(part), std::move(parsed), part_is);
}

}  // namespace

std::shared_ptr<const File> File::open(const std::string& path) {
  auto set = std::make_shared<FileSet>();
  FileSet::Part part = map_part(path);
  ParsedPart parsed = parse_part(part.bytes, path);
  const SplitKeys keys = split_keys(parsed, path);
  if (keys.count > 1) {
    add_split_set(*set, split_paths(path, keys));
  } else {
    set->add_part(std::move(part), std::move(parsed), path);
  }
  set->index_tensors();
  set->check_intact();
  return set;
}

std::shared_ptr<const File> File::from_memory(std::span<const std::uint8_t> bytes,
                                              const std::string& name) {
  auto set = std::make_shared<FileSet>();
  FileSet::Part part;
  part.bytes = bytes;
  ParsedPart parsed = parse_part(bytes, name);
  if (const SplitKeys keys = split_keys(parsed, name); keys.count > 1) {
    fail<FormatError>("[gguf] ", name, ": is part ", keys.number + 1, " of ", keys.count,
                      ": a split set cannot be read from memory");
  }
  set->add_part(std::move(part), std::move(parsed), name);
  set->index_tensors();
  return set;
}

std::shared_ptr<const File> File::from_headers(std::vector<std::vector<std::uint8_t>> parts,
                                               const std::string& name) {
  if (parts.empty()) fail<FormatError>("[gguf] ", name, ": the headers of no part, need 1 or more");
  // Who the first part says it is counts for all.
  SplitKeys first = split_keys(parse_part(parts[0], name, TensorData::kElsewhere), name);
  first.count = std::max<std::uint64_t>(first.count, 1);
  if (first.count != parts.size()) {
    fail<FormatError>("[gguf] ", name, ": the headers of ", parts.size(), " parts, need ",
                      first.count, " by its key split.count");
  }
  auto set = std::make_shared<FileSet>();
  for (std::vector<std::uint8_t>& header : parts) {
    add_header(*set, std::move(header), first, name);
  }
  if (parts.size() > 1) check_tensor_count(first, *set);
  set->index_tensors();
  return set;
}

std::shared_ptr<const File> File::from_headers(std::span<const std::uint8_t> joined,
                                               const std::string& name) {
  std::vector<std::vector<std::uint8_t>> parts;
  while (!joined.empty()) {
    const ParsedPart part = parse_part(joined, name, TensorData::kElsewhere);
    const auto header = joined.first(part.header_bytes);
    parts.emplace_back(header.begin(), header.end());
    joined = joined.subspan(part.header_bytes);
  }
  return from_headers(std::move(parts), name);
}

}  // namespace moesaic::gguf
