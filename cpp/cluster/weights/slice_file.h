// A slice of a model as one file of the cache: the headers of the whole file set, then the slice's
// tensors, mapped as a gguf::File whose other tensors are not here. Nothing in such a file is
// trusted: everything but the weights themselves is recomputed and compared. Not for GGUF files of
// people, and not for fetching: slice_target.h.
//
//   head     "MOESLICE", u32 version 2, u32 number of parts, identity, descriptor (32 bytes each),
//            u64 bytes of headers, u64 number of tensors, u64 offset and u64 bytes of the trailer;
//            the headers of all parts; per tensor u32 index, u32 0, u64 offset, u64 bytes
//   data     each tensor at a multiple of 64 (large ones of 4096) bytes, in directory order
//            (version 1: the identity is a digest of the headers alone; never opened as a slice)
//   trailer  SHA-256 of each unit in order; SHA-256 of head and of those; "MOESLEND"
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "cluster/weights/content.h"
#include "cluster/weights/file_ops.h"
#include "cluster/weights/weight_units.h"
#include "gguf/file.h"

namespace moesaic::cluster {

// One tensor of a slice in its file.
struct SlicePlace {
  std::uint32_t tensor = 0;  // index in the directory
  std::uint64_t offset = 0;  // in the slice's file
  std::uint64_t n_bytes = 0;
  std::size_t first_unit = 0;  // among the slice's
};

// Where everything lies, a function of the headers and the tensors alone.
struct SliceLayout {
  std::shared_ptr<const gguf::File> directory;
  wire::Digest identity{};  // of the content
  wire::Digest descriptor{};
  std::uint32_t version = 2;
  std::vector<SlicePlace> places;   // ascending by tensor
  std::vector<UnitKey> units;       // of all places, in order
  std::vector<std::uint8_t> head;   // its bytes
  std::uint64_t weights_bytes = 0;  // of the tensors
  std::uint64_t trailer_offset = 0;
  std::uint64_t file_bytes = 0;

  const SlicePlace* find(std::uint32_t tensor) const;  // null: not of the slice
  // A unit's bytes in the slice's file.
  struct Range {
    std::uint64_t offset = 0;
    std::uint64_t n_bytes = 0;
  };
  Range range(std::size_t unit) const;
};

SliceLayout make_layout(std::shared_ptr<const gguf::File> directory, const wire::Digest& identity,
                        const std::vector<std::string>& tensors, std::uint32_t version = 2);
// digests: of layout.units, in order.
std::vector<std::uint8_t> make_trailer(const SliceLayout& layout,
                                       const std::vector<wire::Digest>& digests);

// A file's layout and the digests that its trailer claims. Reads no weights.
struct SliceInfo {
  SliceLayout layout;
  std::vector<wire::Digest> digests;
};
// Throws FormatError when it is not the file of exactly this slice (name: the model's file name),
// FileError when it cannot be read.
SliceInfo read_slice_info(FileOps& ops, int fd, const std::string& path, const Content& content,
                          const std::vector<std::string>& tensors, const std::string& name);

// The same for any slice with the content's headers, whatever its own identity and version: what
// its trailer claims is to be proven. Null: other headers.
std::optional<SliceInfo> read_any_slice_info(FileOps& ops, int fd, const std::string& path,
                                             const Content& content, const std::string& name);
// The headers that a slice's file carries, as a directory; null when they are not the content's.
// Reads nothing else. Throws FormatError, FileError.
std::shared_ptr<const gguf::File> read_slice_headers(FileOps& ops, int fd, const std::string& path,
                                                     const Content& content,
                                                     const std::string& name);

// The bytes of a slice's file (file_bytes; the trailer may be left out) and what keeps them alive.
struct SliceBytes {
  std::shared_ptr<const MappedFile> mapped;  // null: in memory
  std::shared_ptr<const void> owner;
  std::span<const std::uint8_t> bytes;
};
// The descriptor stays open, with a shared lock that says that the file is in use.
SliceBytes map_slice(Fd fd, const SliceLayout& layout, const std::string& path);
SliceBytes slice_memory(const SliceLayout& layout, std::uint8_t** data);  // anonymous, zero

// The slice as a file: bytes() of tensors outside it throw ArgumentError.
std::shared_ptr<const gguf::File> make_slice_file(const SliceLayout& layout, SliceBytes bytes);

}  // namespace moesaic::cluster
