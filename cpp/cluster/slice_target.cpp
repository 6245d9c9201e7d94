// See slice_target.h. The journal: 8 bytes magic, SHA-256 of the slice's head, then per finished
// unit u32 number, 32 bytes of digest, u32 CRC-32C of those. A torn record ends it. It needs no
// order with the data: whoever goes on proves every unit that it names.
#include "cluster/slice_target.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <mutex>

#include "base/crc32c.h"
#include "base/digest.h"
#include "cluster/digest_book.h"

namespace moesaic::cluster {
namespace {

constexpr char kMagic[8] = {'M', 'O', 'E', 'J', 'R', 'N', 'L', '1'};
constexpr std::size_t kRecordBytes = 40;
constexpr std::size_t kPieceBytes = std::size_t{1} << 20;
constexpr std::uint64_t kFlushBytes = std::uint64_t{16} << 20;

std::vector<std::uint8_t> journal_head(const SliceLayout& layout) {
  Sha256 sha;
  sha.update(layout.head.data(), layout.head.size());
  const wire::Digest digest = sha.finish();
  std::vector<std::uint8_t> head(sizeof kMagic + digest.size());
  std::memcpy(head.data(), kMagic, sizeof kMagic);
  std::memcpy(head.data() + sizeof kMagic, digest.data(), digest.size());
  return head;
}

}  // namespace

SliceTarget::SliceTarget(const SliceLayout& layout, const std::string& path, FileOps& ops,
                         Warn warn, MakeRoom make_room)
    : layout_(layout),
      path_(path),
      ops_(ops),
      warn_(std::move(warn)),
      make_room_(std::move(make_room)),
      done_(layout.units.size()),
      digests_(layout.units.size()) {
  if (path_.empty()) {
    memory_ = slice_memory(layout_, &data_);
    return;
  }
  try {
    part_ = open_file(ops_, part_path(path_), O_RDWR | O_CREAT);
    journal_ = open_file(ops_, journal_path(path_), O_RDWR | O_CREAT);
  } catch (const FileError& error) {
    move_to_memory(error);
  }
}

void SliceTarget::remove_temporaries(const std::string& path) {
  ::unlink(part_path(path).c_str());
  ::unlink(journal_path(path).c_str());
}

std::vector<std::pair<std::size_t, wire::Digest>> SliceTarget::read_journal() const {
  const std::string path = journal_path(path_);
  std::vector<std::pair<std::size_t, wire::Digest>> units;
  const std::vector<std::uint8_t> head = journal_head(layout_);
  const std::uint64_t size = file_state(journal_.get(), path).size;
  const std::uint64_t most = head.size() + 2 * layout_.units.size() * kRecordBytes;
  std::vector<std::uint8_t> bytes(std::min(size, most));
  read_at(ops_, journal_.get(), bytes, 0, path);
  if (bytes.size() < head.size() || !std::equal(head.begin(), head.end(), bytes.begin())) {
    return units;
  }
  for (std::size_t at = head.size(); at + kRecordBytes <= bytes.size(); at += kRecordBytes) {
    std::uint32_t unit = 0;
    std::uint32_t crc = 0;
    wire::Digest digest;
    std::memcpy(&unit, bytes.data() + at, 4);
    std::memcpy(digest.data(), bytes.data() + at + 4, digest.size());
    std::memcpy(&crc, bytes.data() + at + 36, 4);
    if (crc != crc32c(0, bytes.data() + at, 36) || unit >= layout_.units.size()) break;
    units.emplace_back(unit, digest);
  }
  return units;
}

std::uint64_t SliceTarget::resume(const CancelFlag* cancel,
                                  const std::function<void(std::uint64_t)>& progress) {
  if (!part_) return 0;
  std::uint64_t n_read = 0;
  std::vector<std::pair<std::size_t, wire::Digest>> found;
  try {
    const bool whole = file_state(part_.get(), part_path(path_)).size == layout_.file_bytes;
    if (whole) found = read_journal();
    std::vector<std::uint8_t> piece(kPieceBytes);
    for (const auto& [unit, digest] : found) {
      if (has(unit)) continue;
      Sha256 sha;
      SliceLayout::Range left = layout_.range(unit);
      n_read += left.n_bytes;
      while (left.n_bytes > 0) {
        if (cancel != nullptr) cancel->check();
        const std::size_t n = std::min<std::uint64_t>(left.n_bytes, kPieceBytes);
        read_at(ops_, part_.get(), std::span(piece).first(n), left.offset, path_);
        sha.update(piece.data(), n);
        left.offset += n;
        left.n_bytes -= n;
      }
      if (sha.finish() == digest) {
        digests_[unit] = digest;
        done_[unit].store(1, std::memory_order_release);
      }
      if (progress) progress(n_read);
    }
  } catch (const FileError&) {  // what cannot be read is fetched
  }
  try {
    start_file_with_room();
  } catch (const FileError& error) {
    move_to_memory(error);
  }
  return n_read;
}

void SliceTarget::start_file_with_room() {
  try {
    start_file();
  } catch (const FileError& error) {
    const bool is_full = error.error == ENOSPC || error.error == EDQUOT;
    if (!is_full || !make_room_ || !make_room_(layout_.file_bytes)) throw;
    start_file();
  }
}

// Head and journal as they must be, the file at its full length.
void SliceTarget::start_file() {
  const std::string part = part_path(path_);
  reserve_file(ops_, part_.get(), layout_.file_bytes, part);
  write_at(ops_, part_.get(), layout_.head, 0, part);
  const std::vector<std::uint8_t> head = journal_head(layout_);
  truncate_file(ops_, journal_.get(), 0, journal_path(path_));
  write_at(ops_, journal_.get(), head, 0, journal_path(path_));
  journal_bytes_ = head.size();
  for (std::size_t unit = 0; unit < done_.size(); ++unit) {
    if (has(unit)) append_to_journal(unit, digests_[unit]);
  }
}

void SliceTarget::append_to_journal(std::size_t unit, const wire::Digest& digest) {
  std::uint8_t record[kRecordBytes];
  const auto number = static_cast<std::uint32_t>(unit);
  std::memcpy(record, &number, 4);
  std::memcpy(record + 4, digest.data(), digest.size());
  const std::uint32_t crc = crc32c(0, record, 36);
  std::memcpy(record + 36, &crc, 4);
  const std::lock_guard lock(journal_mutex_);
  write_at(ops_, journal_.get(), record, journal_bytes_, journal_path(path_));
  journal_bytes_ += kRecordBytes;
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
      }
      return;
    } catch (const FileError& error) {
      move_to_memory(error);
    }
  }
}

bool SliceTarget::finish_unit(std::size_t unit, const wire::Digest& digest,
                              std::uint64_t moves_before) {
  try {
    const std::shared_lock lock(mutex_);
    if (moves_ != moves_before) return false;
    digests_[unit] = digest;
    if (data_ == nullptr) append_to_journal(unit, digest);
    done_[unit].store(1, std::memory_order_release);
    return true;
  } catch (const FileError& error) {
    move_to_memory(error);
    return false;
  }
}

std::shared_ptr<const gguf::File> SliceTarget::finish(const CancelFlag* cancel) {
  if (data_ == nullptr) {
    try {
      return finish_file(cancel);
    } catch (const FileError& error) {
      move_to_memory(error);
    }
    if (!missing().empty()) return nullptr;
  }
  return make_slice_file(layout_, memory_);
}

std::shared_ptr<const gguf::File> SliceTarget::finish_file(const CancelFlag* cancel) {
  const std::string part = part_path(path_);
  for (std::uint64_t at = 0; at < layout_.file_bytes; at += kFlushBytes) {
    if (cancel != nullptr) cancel->check();  // an fsync of it all could not be interrupted
    ops_.flush(part_.get(), at, kFlushBytes, true);
  }
  write_at(ops_, part_.get(), make_trailer(layout_, digests_), layout_.trailer_offset, part);
  sync_file(ops_, part_.get(), part);
  SliceBytes bytes = map_slice(open_file(ops_, part, O_RDONLY), layout_, part);
  rename_file(ops_, part, path_);
  ::unlink(journal_path(path_).c_str());
  kept_ = true;
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
  ++moves_;
  part_.reset();
  journal_.reset();
  remove_temporaries(path_);
  ::unlink(path_.c_str());  // renamed, but not known to last
}

}  // namespace moesaic::cluster
