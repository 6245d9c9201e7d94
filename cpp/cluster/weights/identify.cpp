// See identify.h.
#include "cluster/weights/identify.h"

#include <cerrno>

#include "base/digest.h"
#include "base/errors.h"
#include "cluster/weights/hash_units.h"

namespace moesaic::cluster {
namespace {

bool is_same_file(const FileState& a, const FileState& b) {
  return a.inode == b.inode && a.device == b.device && a.born_ns == b.born_ns;
}

// Asked of the open files, not of their names: another file may have such a name by now.
FileStates states_of(const gguf::File& file) {
  FileStates states;
  const std::vector<int> open = file.descriptors();
  for (std::size_t i = 0; i < open.size(); ++i) {
    states.push_back(file_state(open[i], file.paths()[i]));
  }
  return states;
}

// Of a file that is in memory only.
UnitDigests digests_in_memory(const gguf::File& file, const std::vector<UnitKey>& units,
                              const ReadOptions& options) {
  UnitDigests made;
  for (const UnitKey& unit : units) {
    if (options.cancel != nullptr) options.cancel->check();
    const gguf::TensorInfo& tensor = file.tensors()[unit.tensor];
    const std::uint64_t n = unit_bytes(tensor);
    const auto bytes = file.bytes(tensor).subspan(unit.expert * n, n);
    made[unit] = sha256(bytes.data(), bytes.size());
  }
  return made;
}

}  // namespace

LocalFile open_settled(const std::string& path) {
  LocalFile local;
  local.file = gguf::File::open(path);
  local.paths.assign(local.file->paths().begin(), local.file->paths().end());
  local.states = states_of(*local.file);
  // Not written to between the parsing and this look.
  local.file->check_intact();
  return local;
}

LocalFile open_local_file(const std::string& path) {
  LocalFile local = open_settled(path);
  local.headers = header_identity(*local.file);
  return local;
}

LocalFile local_file_of(std::shared_ptr<const gguf::File> file) {
  LocalFile local;
  local.paths.assign(file->paths().begin(), file->paths().end());
  local.headers = header_identity(*file);
  local.states = states_of(*file);
  local.file = std::move(file);
  if (local.states.empty()) return local;  // it is in memory only
  local.file->check_intact();
  check_unchanged(local.paths, local.states);
  return local;
}

void check_unchanged(std::span<const std::string> paths, const FileStates& states) {
  for (std::size_t i = 0; i < paths.size(); ++i) {
    const FileState now = file_states(paths.subspan(i, 1)).front();
    if (now == states[i]) continue;
    fail<FormatError>("[weights] ", paths[i], ": changed while it was in use: ",
                      !is_same_file(now, states[i]) ? "another file has its name now"
                      : now.size != states[i].size
                          ? strcat("it has ", now.size, " bytes now, not ", states[i].size)
                          : "it has been written to, or its attributes were changed",
                      "; put the old file back or load the model again");
  }
}

void check_mapped(std::span<const std::string> paths, const FileStates& states) {
  for (std::size_t i = 0; i < paths.size(); ++i) {
    try {
      if (!is_same_file(file_states(paths.subspan(i, 1)).front(), states[i])) continue;
    } catch (const FileError& error) {
      if (error.error != ENOENT) throw;
      continue;
    }
    check_unchanged(paths.subspan(i, 1), {states[i]});
  }
}

UnitDigests read_digests(const LocalFile& local, const std::vector<UnitKey>& units, FileOps& ops,
                         const ReadOptions& options) {
  if (local.states.empty()) return digests_in_memory(*local.file, units, options);
  let_stamps_settle(local.states, options.cancel);
  HashJob job;
  job.paths = local.paths;
  job.cancel = options.cancel;
  std::uint64_t total = 0;
  for (const UnitKey& unit : units) {
    const gguf::TensorInfo& tensor = local.file->tensors()[unit.tensor];
    const std::uint64_t n = unit_bytes(tensor);
    job.pieces.push_back(
        {static_cast<std::size_t>(tensor.file), tensor.offset + unit.expert * n, n});
    total += n;
  }
  job.progress = [&](std::uint64_t done) {
    if (options.progress) options.progress(done, total);
  };
  const std::vector<wire::Digest> digests = hash_units(job, ops);
  if (file_states(local.paths) != local.states) {
    fail<IoError>("[weights] ", local.paths[0], ": changed while it was read");
  }
  UnitDigests made;
  for (std::size_t i = 0; i < units.size(); ++i) made[units[i]] = digests[i];
  return made;
}

std::optional<Content> remembered_content(const LocalFile& local, DigestBook& book) {
  const UnitDigests known = book.find(local.states);
  const std::vector<UnitKey> units = all_units(*local.file);
  if (known.size() < units.size() || !unknown_units(units, known).empty()) return std::nullopt;
  return make_content(*local.file, known);
}

Content identify(const LocalFile& local, DigestBook& book, FileOps& ops,
                 const ReadOptions& options) {
  UnitDigests known = book.find(local.states);
  const UnitDigests made =
      read_digests(local, unknown_units(all_units(*local.file), known), ops, options);
  book.add(local.states, made);
  known.insert(made.begin(), made.end());
  return make_content(*local.file, known);
}

}  // namespace moesaic::cluster
