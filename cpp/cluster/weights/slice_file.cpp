// See slice_file.h.
#include "cluster/weights/slice_file.h"

#include <sys/file.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/aligned_buffer.h"
#include "base/checked.h"
#include "base/digest.h"
#include "cluster/weights/digest_book.h"
#include "cluster/weights/weight_store.h"

namespace moesaic::cluster {
namespace {

constexpr char kMagic[8] = {'M', 'O', 'E', 'S', 'L', 'I', 'C', 'E'};
constexpr char kEndMagic[8] = {'M', 'O', 'E', 'S', 'L', 'E', 'N', 'D'};
constexpr std::size_t kVersionAt = 8;
constexpr std::size_t kPreambleBytes = 112;
constexpr std::size_t kIdentityAt = 16;
constexpr std::size_t kTensorsAt = 88;
constexpr std::size_t kTableEntryBytes = 24;
constexpr std::size_t kHeadersAt = 80;  // where the number of their bytes stands
constexpr std::uint64_t kMaxHeadersBytes = std::uint64_t{1} << 30;
constexpr std::uint64_t kSmallAlignment = 64;
constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kLargeTensor = std::uint64_t{1} << 16;
constexpr std::size_t kDigestBytes = sizeof(wire::Digest);

template <typename T>
void put(std::vector<std::uint8_t>& out, T value) {
  const std::size_t at = out.size();
  out.resize(at + sizeof(T));
  std::memcpy(out.data() + at, &value, sizeof(T));
}

void put_bytes(std::vector<std::uint8_t>& out, std::span<const std::uint8_t> bytes) {
  out.insert(out.end(), bytes.begin(), bytes.end());
}

std::uint64_t headers_bytes(const gguf::File& file) {
  std::uint64_t n = 0;
  for (const auto header : file.headers()) n += header.size();
  return n;
}

// Gives each tensor its place, beginning at the end of a head of head_bytes.
void place_tensors(SliceLayout& layout, const std::vector<std::uint32_t>& tensors,
                   std::uint64_t head_bytes) {
  constexpr const char* kWhat = "bytes of a slice";
  std::uint64_t at = head_bytes;
  std::size_t unit = 0;
  for (const std::uint32_t index : tensors) {
    const gguf::TensorInfo& tensor = layout.directory->tensors()[index];
    at = checked_align(at, tensor.n_bytes >= kLargeTensor ? kPage : kSmallAlignment, kWhat);
    layout.places.push_back({index, at, tensor.n_bytes, unit});
    at = checked_add(at, tensor.n_bytes, kWhat);
    layout.weights_bytes += tensor.n_bytes;
    unit += n_units(tensor);
  }
  layout.trailer_offset = checked_align(at, kPage, kWhat);
}

std::vector<std::uint8_t> make_head(const SliceLayout& layout, std::uint64_t trailer_bytes) {
  std::vector<std::uint8_t> head(kMagic, kMagic + sizeof kMagic);
  put(head, layout.version);
  put(head, static_cast<std::uint32_t>(layout.directory->headers().size()));
  put_bytes(head, layout.identity);
  put_bytes(head, layout.descriptor);
  put(head, headers_bytes(*layout.directory));
  put(head, static_cast<std::uint64_t>(layout.places.size()));
  put(head, layout.trailer_offset);
  put(head, trailer_bytes);
  for (const auto header : layout.directory->headers()) put_bytes(head, header);
  for (const SlicePlace& place : layout.places) {
    put(head, place.tensor);
    put(head, std::uint32_t{0});
    put(head, place.offset);
    put(head, place.n_bytes);
  }
  return head;
}

wire::Digest content_digest(const SliceLayout& layout, std::span<const std::uint8_t> digests) {
  Sha256 sha;
  sha.update(layout.head.data(), layout.head.size());
  sha.update(digests.data(), digests.size());
  return sha.finish();
}

std::uint64_t trailer_bytes_of(std::size_t n_units) {
  return n_units * kDigestBytes + kDigestBytes + sizeof kEndMagic;
}

class SliceFile final : public gguf::File {
 public:
  SliceFile(const SliceLayout& layout, SliceBytes bytes)
      : directory_(layout.directory), bytes_(std::move(bytes)) {
    at_.resize(directory_->tensors().size());
    for (const SlicePlace& place : layout.places) {
      at_[place.tensor] = bytes_.bytes.subspan(place.offset, place.n_bytes);
    }
  }
  std::uint32_t version() const override { return directory_->version(); }
  std::uint64_t alignment() const override { return directory_->alignment(); }
  std::span<const gguf::Value> metadata() const override { return directory_->metadata(); }
  std::span<const gguf::TensorInfo> tensors() const override { return directory_->tensors(); }
  std::span<const std::string> paths() const override { return directory_->paths(); }
  void check_intact() const override {
    if (bytes_.mapped) bytes_.mapped->check_intact();
  }
  std::vector<int> descriptors() const override { return {}; }  // none of the model's own files
  const gguf::Value* find(std::string_view key) const override { return directory_->find(key); }
  const gguf::TensorInfo* find_tensor(std::string_view name) const override {
    return directory_->find_tensor(name);
  }
  std::span<const std::span<const std::uint8_t>> headers() const override {
    return directory_->headers();
  }
  std::span<const std::uint8_t> bytes(const gguf::TensorInfo& tensor) const override {
    // Callers may hand in a copy of the directory's entry (with another shape): found by name.
    const gguf::TensorInfo* own = directory_->find_tensor(tensor.name);
    const auto bytes = own == nullptr ? std::span<const std::uint8_t>()
                                      : at_[static_cast<std::size_t>(own - tensors().data())];
    if (bytes.empty()) {
      fail<ArgumentError>("[weights] ", directory_->paths()[0], ": tensor ", tensor.name,
                          " is not of the slice that this machine holds");
    }
    return bytes;
  }

 private:
  std::shared_ptr<const gguf::File> directory_;
  SliceBytes bytes_;
  std::vector<std::span<const std::uint8_t>> at_;  // by tensor; empty: not of the slice
};

std::vector<std::uint8_t> read_vector(FileOps& ops, int fd, std::uint64_t offset, std::size_t n,
                                      const std::string& path) {
  std::vector<std::uint8_t> bytes(n);
  read_at(ops, fd, bytes, offset, path);
  return bytes;
}

[[noreturn]] void not_the_slice(const std::string& path, const char* what) {
  fail<FormatError>("[weights] ", path, ": no slice of the cache as it must be: ", what);
}

}  // namespace

const SlicePlace* SliceLayout::find(std::uint32_t tensor) const {
  const auto at =
      std::lower_bound(places.begin(), places.end(), tensor,
                       [](const SlicePlace& p, std::uint32_t t) { return p.tensor < t; });
  return at == places.end() || at->tensor != tensor ? nullptr : &*at;
}

SliceLayout::Range SliceLayout::range(std::size_t unit) const {
  const SlicePlace& place = *find(units[unit].tensor);
  const std::uint64_t n = unit_bytes(directory->tensors()[place.tensor]);
  return {place.offset + (unit - place.first_unit) * n, n};
}

SliceLayout make_layout(std::shared_ptr<const gguf::File> directory, const wire::Digest& identity,
                        const std::vector<std::string>& tensors, std::uint32_t version) {
  SliceLayout layout;
  layout.version = version;
  layout.identity = identity;
  layout.descriptor = slice_descriptor(tensors);
  layout.directory = std::move(directory);
  const std::vector<std::uint32_t> indices = tensor_indices(*layout.directory, tensors);
  const std::uint64_t head_bytes =
      kPreambleBytes + headers_bytes(*layout.directory) + kTableEntryBytes * indices.size();
  layout.units = units_of(*layout.directory, indices);
  place_tensors(layout, indices, head_bytes);
  const std::uint64_t trailer_bytes = trailer_bytes_of(layout.units.size());
  layout.head = make_head(layout, trailer_bytes);
  layout.file_bytes = checked_add(layout.trailer_offset, trailer_bytes, "bytes of a slice");
  return layout;
}

std::vector<std::uint8_t> make_trailer(const SliceLayout& layout,
                                       const std::vector<wire::Digest>& digests) {
  std::vector<std::uint8_t> trailer;
  for (const wire::Digest& digest : digests) put_bytes(trailer, digest);
  const wire::Digest content = content_digest(layout, trailer);
  put_bytes(trailer, content);
  trailer.insert(trailer.end(), kEndMagic, kEndMagic + sizeof kEndMagic);
  return trailer;
}

std::shared_ptr<const gguf::File> read_slice_headers(FileOps& ops, int fd, const std::string& path,
                                                     const Content& content,
                                                     const std::string& name) {
  const std::uint64_t size = file_state(fd, path).size;
  if (size < kPreambleBytes) not_the_slice(path, "too short");
  const auto preamble = read_vector(ops, fd, 0, kPreambleBytes, path);
  if (std::memcmp(preamble.data(), kMagic, sizeof kMagic) != 0) not_the_slice(path, "no magic");
  std::uint64_t n_headers = 0;
  std::memcpy(&n_headers, preamble.data() + kHeadersAt, sizeof n_headers);
  if (n_headers > kMaxHeadersBytes || n_headers > size - kPreambleBytes) {
    not_the_slice(path, "headers longer than the file");
  }
  const auto headers = read_vector(ops, fd, kPreambleBytes, n_headers, path);
  auto file = gguf::File::from_headers(headers, name);
  return has_headers_of(*file, content) ? file : nullptr;
}

static SliceInfo read_layout(FileOps& ops, int fd, const std::string& path, SliceLayout layout) {
  const std::uint64_t size = file_state(fd, path).size;
  SliceInfo info;
  info.layout = std::move(layout);
  const SliceLayout& is = info.layout;
  if (is.file_bytes != size) not_the_slice(path, "another length");
  if (read_vector(ops, fd, 0, is.head.size(), path) != is.head) {
    not_the_slice(path, "another head");
  }
  const auto trailer = read_vector(ops, fd, is.trailer_offset, size - is.trailer_offset, path);
  info.digests.resize(is.units.size());
  for (std::size_t i = 0; i < info.digests.size(); ++i) {
    std::memcpy(info.digests[i].data(), trailer.data() + i * kDigestBytes, kDigestBytes);
  }
  if (trailer != make_trailer(is, info.digests)) not_the_slice(path, "a damaged trailer");
  return info;
}

SliceInfo read_slice_info(FileOps& ops, int fd, const std::string& path, const Content& content,
                          const std::vector<std::string>& tensors, const std::string& name) {
  auto directory = read_slice_headers(ops, fd, path, content, name);
  if (!directory) not_the_slice(path, "headers of another model");
  return read_layout(ops, fd, path, make_layout(std::move(directory), content.identity, tensors));
}

std::optional<SliceInfo> read_any_slice_info(FileOps& ops, int fd, const std::string& path,
                                             const Content& content, const std::string& name) {
  const auto directory = read_slice_headers(ops, fd, path, content, name);
  if (!directory) return std::nullopt;
  const auto preamble = read_vector(ops, fd, 0, kPreambleBytes, path);
  std::uint32_t version = 0;
  std::uint64_t n_tensors = 0;
  wire::Digest identity;
  std::memcpy(&version, preamble.data() + kVersionAt, sizeof version);
  std::memcpy(&n_tensors, preamble.data() + kTensorsAt, sizeof n_tensors);
  std::memcpy(identity.data(), preamble.data() + kIdentityAt, sizeof identity);
  if (n_tensors > directory->tensors().size()) not_the_slice(path, "more tensors than there are");
  const auto table = read_vector(ops, fd, kPreambleBytes + headers_bytes(*directory),
                                 n_tensors * kTableEntryBytes, path);
  std::vector<std::string> names;
  for (std::size_t i = 0; i < n_tensors; ++i) {
    std::uint32_t index = 0;
    std::memcpy(&index, table.data() + i * kTableEntryBytes, sizeof index);
    if (index >= directory->tensors().size()) not_the_slice(path, "a tensor that is not there");
    names.push_back(directory->tensors()[index].name);
  }
  return read_layout(ops, fd, path, make_layout(directory, identity, names, version));
}

SliceBytes map_slice(Fd fd, const SliceLayout& layout, const std::string& path) {
  SliceBytes bytes;
  bytes.mapped = std::make_shared<const MappedFile>(fd.get(), layout.file_bytes, path);
  // Where locks are not to be had, nothing is thrown out of the cache either (slice_cache.cpp).
  static_cast<void>(flock(fd.get(), LOCK_SH | LOCK_NB));
  bytes.owner = std::make_shared<Fd>(std::move(fd));  // with the lock
  bytes.bytes = bytes.mapped->bytes();
  return bytes;
}

SliceBytes slice_memory(const SliceLayout& layout, std::uint8_t** data) {
  const std::uint64_t free_bytes = available_memory_bytes();
  if (free_bytes < layout.trailer_offset) {
    throw OutOfMemoryError(
        strcat("[weights] ", layout.directory->paths()[0], ": its slice of ",
               layout.weights_bytes >> 20, " MiB can be kept neither on disk nor in memory, where ",
               free_bytes >> 20, " MiB are free: make room in the cache's folder"),
        layout.trailer_offset, free_bytes);
  }
  auto memory = std::make_shared<AlignedBuffer>(layout.trailer_offset);
  *data = memory->data();
  SliceBytes bytes;
  bytes.bytes = {memory->data(), memory->size()};
  bytes.owner = std::move(memory);
  return bytes;
}

std::shared_ptr<const gguf::File> make_slice_file(const SliceLayout& layout, SliceBytes bytes) {
  return std::make_shared<SliceFile>(layout, std::move(bytes));
}

}  // namespace moesaic::cluster
