// Where the bytes of a slice go while it is fetched: a temporary file of the cache with a journal
// (slice_journal.h), so that a killed process's successor goes on where it ended; or, from the
// first failing write on, anonymous memory. Not for deciding what to fetch: slice_pull.h.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string>
#include <vector>

#include "base/cancel.h"
#include "cluster/weights/slice_file.h"
#include "cluster/weights/slice_journal.h"
#include "cluster/weights/slow_calls.h"

namespace moesaic::cluster {

class SliceTarget {
 public:
  using Warn = std::function<void(const std::string& text)>;
  // Asked before room is reserved, and when the disk is full: true when n_bytes may be added now.
  using MakeRoom = std::function<bool(std::uint64_t n_bytes)>;
  // path: of the finished file; empty: memory at once. The caller holds the slice's lock. slow:
  // makes what may wait long for the disk; outlives the target.
  SliceTarget(const SliceLayout& layout, const std::string& path, FileOps& ops, SlowCalls& slow,
              Warn warn, MakeRoom make_room);
  // Of a file that is not finished: leaves it so that all of it is believed, unless the disk was
  // just not waited for.
  ~SliceTarget();
  SliceTarget(const SliceTarget&) = delete;
  SliceTarget& operator=(const SliceTarget&) = delete;

  // Takes up what another process has left. What its journal cannot vouch for is read and proven;
  // returns the bytes read for that.
  std::uint64_t resume(const Waiting& waiting, const std::function<void(std::uint64_t)>& progress);

  bool has(std::size_t unit) const { return done_[unit].load(std::memory_order_acquire) != 0; }
  std::vector<std::size_t> missing() const;

  // How often the bytes have moved: those of unfinished units do not move with them.
  std::uint64_t moves() const { return moves_.load(); }
  // Any thread. offset: in the slice's file.
  void write(std::uint64_t offset, std::span<const std::uint8_t> bytes);
  // Any thread; once all bytes of the unit are written. False: they have been lost in a move after
  // `moves_before`, fetch them again.
  bool finish_unit(std::size_t unit, const wire::Digest& digest, std::uint64_t moves_before);
  // The same for a unit that is there up to state.n_bytes.
  bool note_beginning(std::size_t unit, const Sha256State& state, std::uint64_t moves_before);
  // What is there of an unfinished unit: to be asked for after moves().
  Sha256State beginning(std::size_t unit) const;
  void drop_beginning(std::size_t unit);  // it was wrong

  // When nothing is missing: the file, under its final name, or the memory. Null: a failing disk
  // has cost some units, which are missing again. Throws CancelledError.
  std::shared_ptr<const gguf::File> finish(const Waiting& waiting);
  bool is_kept() const { return kept_; }             // finished as a file of the cache
  const FileState& state() const { return state_; }  // of that file
  std::vector<wire::Digest> digests() const { return digests_; }

  // The names of a slice's temporary files.
  static std::string part_path(const std::string& path) { return path + ".part"; }
  static std::string journal_path(const std::string& path) { return path + ".journal"; }
  static void remove_temporaries(const std::string& path);

 private:
  void start_file(bool is_new);
  void start_file_with_room(bool is_new);
  bool prove(std::size_t unit, const wire::Digest& digest, const CancelFlag* cancel);
  void sync_some(std::size_t n_bytes);
  void sync_all(const Waiting& waiting);
  std::shared_ptr<const gguf::File> finish_file(const Waiting& waiting);
  void move_to_memory(const FileError& error);
  bool copy_unit(std::size_t unit);

  const SliceLayout& layout_;
  std::string path_;
  FileOps& ops_;
  SlowCalls& slow_;
  Warn warn_;
  MakeRoom make_room_;
  // Shared: writing into file or memory. Exclusive: moving from the one to the other.
  std::shared_mutex mutex_;
  Fd part_;
  SliceJournal journal_;
  std::mutex sync_mutex_;
  std::atomic<std::uint64_t> unsynced_{0};  // bytes
  SliceBytes memory_;
  std::uint8_t* data_ = nullptr;  // of memory_
  std::atomic<std::uint64_t> moves_{0};
  std::vector<std::atomic<char>> done_;  // by unit
  std::vector<wire::Digest> digests_;    // of the done ones
  mutable std::mutex beginnings_mutex_;
  std::map<std::size_t, Sha256State> beginnings_;
  bool kept_ = false;
  bool disk_was_left_ = false;
  FileState state_;
};

}  // namespace moesaic::cluster
