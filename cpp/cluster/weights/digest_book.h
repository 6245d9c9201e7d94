// Digests that have been made, remembered by what the file system says of the files they were made
// of, so that a warm start reads nothing. One small sidecar file for each state of a set of files,
// kept in the cache's folder and checked by a digest of its own; a damaged one is as good as none.
// Several processes may share the folder: each adds to what the others have written.
// Not a proof against somebody who writes into the folder.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "cluster/weights/file_ops.h"
#include "cluster/weights/weight_units.h"

namespace moesaic::cluster {

// What changes when a file does. Times are compared for equality only, never ordered: a clock may
// jump. The change time cannot be set by a program; the birth time tells a reused inode.
struct FileState {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::uint64_t size = 0;
  std::int64_t modified_ns = 0;
  std::int64_t changed_ns = 0;
  std::int64_t born_ns = 0;  // 0: the file system does not know
  auto operator<=>(const FileState&) const = default;
};
using FileStates = std::vector<FileState>;  // of the parts of a set

FileState file_state(int fd, const std::string& path);  // throws IoError
FileStates file_states(std::span<const std::string> paths);
// How long to wait until a change of these files would leave a trace: time stamps have a grain, and
// a file that has changed within the last one could change again under the same stamp. It is some
// milliseconds, or up to two seconds where stamps have no part below a second (FAT, old NFS).
std::chrono::nanoseconds settle_time(const FileStates& states, std::int64_t now_ns);
// Waits for that. Throws CancelledError.
void let_stamps_settle(const FileStates& states, const CancelFlag* cancel = nullptr);

class DigestBook {
 public:
  using Log = std::function<void(const std::string& event, const std::string& text)>;
  // folder empty: remembered for the life of the process only.
  DigestBook(std::string folder, FileOps& ops, Log log);
  UnitDigests find(const FileStates& states);
  // Adds to what is known of that state. A failing disk costs the next start some reading: logged.
  void add(const FileStates& states, const UnitDigests& digests);
  void forget(const FileStates& states);

 private:
  std::string path_of(const FileStates& states) const;
  UnitDigests read(const std::string& path, const FileStates& states) const;
  void write(const FileStates& states, const UnitDigests& known) const;  // throws IoError
  Fd lock_folder() const;  // empty when somebody hangs with it
  void prune() const;

  std::string folder_;
  FileOps& ops_;
  Log log_;
  std::mutex mutex_;
  std::map<FileStates, UnitDigests> known_;
};

}  // namespace moesaic::cluster
