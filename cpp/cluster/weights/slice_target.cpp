// See slice_target.h.
#include "cluster/weights/slice_target.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/digest.h"
#include "cluster/weights/digest_book.h"

namespace moesaic::cluster {
namespace {

constexpr std::size_t kPieceBytes = std::size_t{1} << 20;
constexpr std::uint64_t kFlushBytes = std::uint64_t{16} << 20;
// What a power cut may cost: synced each time another 1/kSyncParts of the slice is there, within
// bounds: a sync waits for the disk, and so does who ends a pull.
constexpr std::uint64_t kSyncParts = 128;
constexpr std::uint64_t kLeastSyncBytes = std::uint64_t{8} << 20;
constexpr std::uint64_t kMostSyncBytes = std::uint64_t{128} << 20;
constexpr const char* kWriting = "writing to disk";

}  // namespace

SliceTarget::SliceTarget(const SliceLayout& layout, const std::string& path, FileOps& ops,
                         SlowCalls& slow, Warn warn, MakeRoom make_room)
    : layout_(layout),
      path_(path),
      ops_(ops),
      slow_(slow),
      warn_(std::move(warn)),
      make_room_(std::move(make_room)),
      journal_(layout, journal_path(path), ops),
      done_(layout.units.size()),
      digests_(layout.units.size()) {
  if (path_.empty()) {
    memory_ = slice_memory(layout_, &data_);
    return;
  }
  try {
    part_ = open_file(ops_, part_path(path_), O_RDWR | O_CREAT);
  } catch (const FileError& error) {
    move_to_memory(error);
  }
}

SliceTarget::~SliceTarget() {
  if (kept_ || disk_was_left_ || data_ != nullptr || !journal_.is_started()) return;
  try {
    sync_file(ops_, part_.get(), part_path(path_));
    journal_.seal(file_state(part_.get(), part_path(path_)));
  } catch (const FileError&) {  // then it is as after a kill
  }
}

void SliceTarget::remove_temporaries(const std::string& path) {
  ::unlink(part_path(path).c_str());
  ::unlink(journal_path(path).c_str());
}

std::uint64_t SliceTarget::resume(const Waiting& waiting,
                                  const std::function<void(std::uint64_t)>& progress) {
  if (!part_) return 0;
  std::uint64_t n_read = 0;
  const auto take = [&](std::size_t unit, const wire::Digest& digest) {
    digests_[unit] = digest;
    done_[unit].store(1, std::memory_order_release);
  };
  bool is_new = true;
  try {
    SliceJournal::Content found = journal_.read(file_state(part_.get(), part_path(path_)));
    is_new = found.believed.empty() && found.doubted.empty() && found.beginnings.empty();
    for (const auto& [unit, digest] : found.believed) take(unit, digest);
    beginnings_ = std::move(found.beginnings);
    for (const auto& [unit, digest] : found.doubted) {
      n_read += layout_.range(unit).n_bytes;
      if (prove(unit, digest, waiting.cancel)) take(unit, digest);
      if (progress) progress(n_read);
    }
  } catch (const FileError&) {  // what cannot be read is fetched
  }
  try {
    if (!is_new) sync_all(waiting);  // what another process has left may not be written yet
    slow_.finish(waiting, kWriting, [&] { start_file_with_room(is_new); });
  } catch (const FileError& error) {
    move_to_memory(error);
  }
  return n_read;
}

bool SliceTarget::prove(std::size_t unit, const wire::Digest& digest, const CancelFlag* cancel) {
  std::vector<std::uint8_t> piece(kPieceBytes);
  Sha256 sha;
  SliceLayout::Range left = layout_.range(unit);
  while (left.n_bytes > 0) {
    if (cancel != nullptr) cancel->check();
    const std::size_t n = std::min<std::uint64_t>(left.n_bytes, kPieceBytes);
    read_at(ops_, part_.get(), std::span(piece).first(n), left.offset, path_);
    sha.update(piece.data(), n);
    left.offset += n;
    left.n_bytes -= n;
  }
  return sha.finish() == digest;
}

void SliceTarget::start_file_with_room(bool is_new) {
  if (is_new && make_room_ && !make_room_(layout_.file_bytes)) {
    throw FileError(strcat("[weights] ", path_, ": no room for ", layout_.file_bytes >> 20,
                           " MiB within the cache's size (--cache-size) and the 5 % of the disk "
                           "that stay free"),
                    ENOSPC);
  }
  try {
    start_file(is_new);
  } catch (const FileError& error) {
    const bool is_full = error.error == ENOSPC || error.error == EDQUOT;
    if (!is_full || !make_room_ || !make_room_(layout_.file_bytes)) throw;
    start_file(is_new);
  }
}

// A file at its full length, and a journal that says what is there of it. One that is gone on with
// is not written to before: its stamps are what its journal knows it by.
void SliceTarget::start_file(bool is_new) {
  const std::string part = part_path(path_);
  if (is_new) {
    reserve_file(ops_, part_.get(), layout_.file_bytes, part);
    write_at(ops_, part_.get(), layout_.head, 0, part);  // with the headers: they come once
  }
  std::vector<SliceJournal::Unit> units;
  for (std::size_t unit = 0; unit < done_.size(); ++unit) {
    if (has(unit)) units.emplace_back(unit, digests_[unit]);
  }
  journal_.start(file_state(part_.get(), part), units, beginnings_);
}

std::vector<std::size_t> SliceTarget::missing() const {
  std::vector<std::size_t> units;
  for (std::size_t unit = 0; unit < done_.size(); ++unit) {
    if (!has(unit)) units.push_back(unit);
  }
  return units;
}

void SliceTarget::write(std::uint64_t offset, std::span<const std::uint8_t> bytes) {
  for (;;) {
    try {
      const std::shared_lock lock(mutex_);
      if (data_ != nullptr) {
        std::memcpy(data_ + offset, bytes.data(), bytes.size());
      } else {
        write_at(ops_, part_.get(), bytes, offset, part_path(path_));
        ops_.flush(part_.get(), offset, bytes.size(), false);  // while more is on its way
        sync_some(bytes.size());
      }
      return;
    } catch (const FileError& error) {
      move_to_memory(error);
    }
  }
}

// With the lock that writing takes.
void SliceTarget::sync_some(std::size_t n_bytes) {
  const std::uint64_t enough =
      std::clamp(layout_.weights_bytes / kSyncParts, kLeastSyncBytes, kMostSyncBytes);
  if ((unsynced_ += n_bytes) < enough) return;
  const std::unique_lock lock(sync_mutex_, std::try_to_lock);
  if (!lock) return;  // somebody is at it
  unsynced_ = 0;
  const std::uint64_t n_notes = journal_.n_notes();
  sync_file(ops_, part_.get(), part_path(path_));
  journal_.mark(n_notes);
}

bool SliceTarget::finish_unit(std::size_t unit, const wire::Digest& digest,
                              std::uint64_t moves_before) {
  try {
    const std::shared_lock lock(mutex_);
    if (moves_ != moves_before) return false;
    digests_[unit] = digest;
    if (data_ == nullptr) journal_.add_unit(unit, digest);
    done_[unit].store(1, std::memory_order_release);
    const std::lock_guard beginnings(beginnings_mutex_);
    beginnings_.erase(unit);
    return true;
  } catch (const FileError& error) {
    move_to_memory(error);
    return false;
  }
}

bool SliceTarget::note_beginning(std::size_t unit, const Sha256State& state,
                                 std::uint64_t moves_before) {
  try {
    const std::shared_lock lock(mutex_);
    if (moves_ != moves_before) return false;
    if (data_ == nullptr) journal_.add_beginning(unit, state);
    const std::lock_guard beginnings(beginnings_mutex_);
    beginnings_[unit] = state;
    return true;
  } catch (const FileError& error) {
    move_to_memory(error);
    return false;
  }
}

Sha256State SliceTarget::beginning(std::size_t unit) const {
  const std::lock_guard lock(beginnings_mutex_);
  const auto found = beginnings_.find(unit);
  return found == beginnings_.end() ? Sha256State() : found->second;
}

void SliceTarget::drop_beginning(std::size_t unit) {
  {
    const std::lock_guard lock(beginnings_mutex_);
    if (beginnings_.erase(unit) == 0) return;
  }
  try {
    const std::shared_lock lock(mutex_);
    if (data_ == nullptr) journal_.drop_beginning(unit);
  } catch (const FileError& error) {
    move_to_memory(error);
  }
}

std::shared_ptr<const gguf::File> SliceTarget::finish(const Waiting& waiting) {
  if (data_ == nullptr) {
    try {
      return finish_file(waiting);
    } catch (const FileError& error) {
      move_to_memory(error);
    }
    if (!missing().empty()) return nullptr;
  }
  return make_slice_file(layout_, memory_);
}

// All of the file is on the disk then. The wait may be left at any time.
void SliceTarget::sync_all(const Waiting& waiting) {
  if (waiting.cancel != nullptr) waiting.cancel->check();
  const std::string part = part_path(path_);
  const auto own = std::make_shared<Fd>(open_file(ops_, part, O_RDWR));  // lives with the call
  try {
    slow_.run(waiting, kWriting,
              [&ops = ops_, n_bytes = layout_.file_bytes, own, part](const CancelFlag& is_left) {
                // Little by little: the fsync of it all could not be interrupted.
                for (std::uint64_t at = 0; at < n_bytes && !is_left.is_set(); at += kFlushBytes) {
                  ops.flush(own->get(), at, kFlushBytes, true);
                }
                if (!is_left.is_set()) sync_file(ops, own->get(), part);
              });
  } catch (const FileError&) {
    throw;
  } catch (...) {
    disk_was_left_ = true;
    throw;
  }
}

std::shared_ptr<const gguf::File> SliceTarget::finish_file(const Waiting& waiting) {
  const std::string part = part_path(path_);
  write_at(ops_, part_.get(), layout_.head, 0, part);
  write_at(ops_, part_.get(), make_trailer(layout_, digests_), layout_.trailer_offset, part);
  sync_all(waiting);
  SliceBytes bytes = map_slice(open_file(ops_, part, O_RDONLY), layout_, part);
  slow_.finish(waiting, kWriting, [&] {
    rename_file(ops_, part, path_);
    ::unlink(journal_path(path_).c_str());
    kept_ = true;
  });
  state_ = file_state(open_file(ops_, path_, O_RDONLY).get(), path_);
  return make_slice_file(layout_, std::move(bytes));
}

// A unit from the file into memory, proven on the way: a failing disk may hand out anything.
bool SliceTarget::copy_unit(std::size_t unit) {
  const SliceLayout::Range range = layout_.range(unit);
  std::uint8_t* to = data_ + range.offset;
  try {
    read_at(ops_, part_.get(), {to, range.n_bytes}, range.offset, part_path(path_));
  } catch (const FileError&) {
    return false;
  }
  Sha256 sha;
  sha.update(to, range.n_bytes);
  return sha.finish() == digests_[unit];
}

void SliceTarget::move_to_memory(const FileError& error) {
  const std::unique_lock lock(mutex_);
  if (data_ != nullptr) return;  // another thread was first
  kept_ = false;
  warn_(strcat(error.what(), "; the slice of ", layout_.weights_bytes >> 20,
               " MiB is kept in memory only and will be fetched again at the next start"));
  try {
    memory_ = slice_memory(layout_, &data_);
  } catch (const OutOfMemoryError&) {
    remove_temporaries(path_);
    throw;
  }
  for (std::size_t unit = 0; unit < done_.size(); ++unit) {
    if (has(unit) && !copy_unit(unit)) done_[unit].store(0, std::memory_order_release);
  }
  {
    const std::lock_guard beginnings(beginnings_mutex_);
    beginnings_.clear();
  }
  ++moves_;
  part_.reset();
  journal_.close();
  remove_temporaries(path_);
  ::unlink(path_.c_str());  // renamed, but not known to last
}

}  // namespace moesaic::cluster
