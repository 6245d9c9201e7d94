// What is there of a slice that is being fetched, written beside its temporary file so that a
// successor goes on where a pull was broken off, without reading what is there once more. It says
// what may be believed, and of what it must be proven again. Not for the weights: slice_target.h.
//
// An undisturbed pull proves bytes as they arrive and never reads what it wrote. A resumed one
// owes no more, as long as what was written is still what is there:
// - A unit is noted when all its bytes were handed to the kernel. Whatever becomes of the process,
//   the kernel has them: in the same boot every noted unit is believed.
// - From time to time the file is synced, and then a mark says which notes that was for. After a
//   power cut (another boot) only those are believed; the others are read and proven.
// - A pull that ends otherwise than by SIGKILL syncs and seals: the file's stamps are noted. When
//   they are others, somebody has been at it: everything is read and proven.
// - Without a seal (SIGKILL) the file must not be younger than the journal, which is written after
//   it: a change by others is found as it is with a seal, but for one within seconds of the kill.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/digest.h"
#include "cluster/weights/digest_book.h"
#include "cluster/weights/file_ops.h"
#include "cluster/weights/slice_file.h"

namespace moesaic::cluster {

class SliceJournal {
 public:
  using Unit = std::pair<std::size_t, wire::Digest>;
  struct Content {
    std::vector<Unit> believed;                     // are there
    std::vector<Unit> doubted;                      // to be read and proven
    std::map<std::size_t, Sha256State> beginnings;  // of unfinished units: what is there of each
  };

  // path: of the journal.
  SliceJournal(const SliceLayout& layout, std::string path, FileOps& ops);

  // What a predecessor has left. part: the state of the temporary file. Throws FileError.
  Content read(const FileState& part) const;
  // Replaces it, all at once, by one that says that this is there, on the disk. Throws FileError.
  void start(const FileState& part, const std::vector<Unit>& units,
             const std::map<std::size_t, Sha256State>& beginnings);
  bool is_started() const { return static_cast<bool>(fd_); }

  // Any thread, after the bytes were written. Throw FileError.
  void add_unit(std::size_t unit, const wire::Digest& digest);
  void add_beginning(std::size_t unit, const Sha256State& state);
  void drop_beginning(std::size_t unit);  // it is about to be written over: lasting when it returns
  std::uint64_t n_notes() const;
  // All of the first n_notes are on the disk.
  void mark(std::uint64_t n_notes);
  // They all are, and nobody writes any more.
  void seal(const FileState& part);
  void close() { fd_.reset(); }

 private:
  struct Record;
  static void put(std::vector<std::uint8_t>& out, const Record& record);
  static bool get(const std::uint8_t* bytes, Record& record);
  std::vector<Record> records(std::span<const std::uint8_t> bytes) const;
  std::vector<std::uint8_t> head(const FileState& part, const std::string& boot) const;
  void append(const Record& record);
  void sync();

  const SliceLayout& layout_;
  const std::string path_;
  FileOps& ops_;
  Fd fd_;
  mutable std::mutex mutex_;
  std::uint64_t n_bytes_ = 0;
  std::uint64_t n_notes_ = 0;
};

}  // namespace moesaic::cluster
