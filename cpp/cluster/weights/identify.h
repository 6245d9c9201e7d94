// Finds out what a file on this machine's disk is: opens it and looks at what is open, reads what
// is not remembered of its digests, and makes its identity. Not for choosing files by name:
// local_copies.h.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "cluster/weights/content.h"
#include "cluster/weights/digest_book.h"

namespace moesaic::cluster {

struct LocalFile {
  std::shared_ptr<const gguf::File> file;
  std::vector<std::string> paths;
  FileStates states;  // when it was opened; of files that are not on a disk: empty
  wire::Digest headers{};
};

// Throws IoError (also when it is written to meanwhile), FormatError.
LocalFile open_local_file(const std::string& path);
// The same without the digest of the headers, which takes some milliseconds.
LocalFile open_settled(const std::string& path);
// The same for a file that has been opened already. Throws FormatError when another file has its
// name now.
LocalFile local_file_of(std::shared_ptr<const gguf::File> file);
// Throws FormatError naming a part that has changed: under its path there is something else now.
void check_unchanged(std::span<const std::string> paths, const FileStates& states);
// The same for what is mapped: a file that was removed or replaced under its name lives on.
void check_mapped(std::span<const std::string> paths, const FileStates& states);

struct ReadOptions {
  const CancelFlag* cancel = nullptr;
  std::function<void(std::uint64_t done_bytes, std::uint64_t total_bytes)> progress;
};
// Of these units, read with all cores. Throws IoError when the file changes meanwhile.
UnitDigests read_digests(const LocalFile& local, const std::vector<UnitKey>& units, FileOps& ops,
                         const ReadOptions& options);
// Null: not all digests are remembered.
std::optional<Content> remembered_content(const LocalFile& local, DigestBook& book);
// Reads what is not remembered, and remembers it.
Content identify(const LocalFile& local, DigestBook& book, FileOps& ops,
                 const ReadOptions& options);

}  // namespace moesaic::cluster
