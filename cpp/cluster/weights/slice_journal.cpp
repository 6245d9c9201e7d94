// See slice_journal.h. A journal, all little endian:
//   head    8 bytes magic; SHA-256 of the slice's head; SHA-256 of the boot's id; u64 inode and i64
//           time of birth of the temporary file
//   record  u32 kind, u32 unit, u64 number, 32 bytes, u32 0, u32 CRC-32C of those. A torn one ends
//           the journal.
// kind 1, a unit: 0, its digest. 2, a unit's beginning: how many bytes of it are there (0: none any
// more), the sum's words after them.
// 3, a mark: how many records it is for. 4, a seal: the file's length; its times of modification
// and change.
#include "cluster/weights/slice_journal.h"

#include <fcntl.h>

#include <algorithm>
#include <cstring>

#include "base/crc32c.h"

namespace moesaic::cluster {
namespace {

constexpr char kMagic[8] = {'M', 'O', 'E', 'J', 'R', 'N', 'L', '2'};
constexpr std::size_t kDigestBytes = sizeof(wire::Digest);
constexpr std::size_t kHeadBytes = sizeof kMagic + 2 * kDigestBytes + 16;
constexpr std::size_t kRecordBytes = 56;
constexpr std::size_t kChecked = kRecordBytes - 4;
constexpr std::uint64_t kMaxBytes = std::uint64_t{1} << 28;
// A write is noted at once; but on a slow disk the write itself may take a while.
constexpr std::int64_t kSameBootSlack = 5'000'000'000;
// After a power cut the two stamps may be as old as the kernel leaves inodes unwritten.
constexpr std::int64_t kOtherBootSlack = 60'000'000'000;

template <typename T>
void append_to(std::vector<std::uint8_t>& out, const T& value) {
  const std::size_t at = out.size();
  out.resize(at + sizeof(T));
  std::memcpy(out.data() + at, &value, sizeof(T));
}

}  // namespace

enum class Kind : std::uint32_t { kUnit = 1, kBeginning = 2, kMark = 3, kSeal = 4 };

struct SliceJournal::Record {
  Kind kind = Kind::kUnit;
  std::uint32_t unit = 0;
  std::uint64_t number = 0;
  wire::Digest bytes{};
};

void SliceJournal::put(std::vector<std::uint8_t>& out, const Record& record) {
  const std::size_t at = out.size();
  append_to(out, record.kind);
  append_to(out, record.unit);
  append_to(out, record.number);
  append_to(out, record.bytes);
  append_to(out, std::uint32_t{0});
  append_to(out, crc32c(0, out.data() + at, kChecked));
}

bool SliceJournal::get(const std::uint8_t* bytes, Record& record) {
  std::uint32_t crc = 0;
  std::memcpy(&crc, bytes + kChecked, 4);
  if (crc != crc32c(0, bytes, kChecked)) return false;
  std::memcpy(&record.kind, bytes, 4);
  std::memcpy(&record.unit, bytes + 4, 4);
  std::memcpy(&record.number, bytes + 8, 8);
  std::memcpy(record.bytes.data(), bytes + 16, kDigestBytes);
  return true;
}

SliceJournal::SliceJournal(const SliceLayout& layout, std::string path, FileOps& ops)
    : layout_(layout), path_(std::move(path)), ops_(ops) {}

std::vector<std::uint8_t> SliceJournal::head(const FileState& part, const std::string& boot) const {
  std::vector<std::uint8_t> bytes(kMagic, kMagic + sizeof kMagic);
  append_to(bytes, sha256(layout_.head.data(), layout_.head.size()));
  append_to(bytes, sha256(boot.data(), boot.size()));
  append_to(bytes, part.inode);
  append_to(bytes, part.born_ns);
  return bytes;
}

// Up to the first one that is torn, or that no journal of this slice has.
std::vector<SliceJournal::Record> SliceJournal::records(std::span<const std::uint8_t> bytes) const {
  std::vector<Record> found;
  for (; bytes.size() >= kRecordBytes; bytes = bytes.subspan(kRecordBytes)) {
    Record record;
    if (!get(bytes.data(), record)) break;
    const bool is_note = record.kind == Kind::kUnit || record.kind == Kind::kBeginning;
    if (is_note && record.unit >= layout_.units.size()) break;
    if (record.kind == Kind::kBeginning &&
        (record.number % 64 != 0 || record.number >= layout_.range(record.unit).n_bytes)) {
      break;
    }
    if (record.kind == Kind::kMark && record.number > found.size()) break;
    found.push_back(record);
  }
  return found;
}

SliceJournal::Content SliceJournal::read(const FileState& part) const {
  const Fd fd = open_file(ops_, path_, O_RDONLY | O_CREAT);
  const FileState own = file_state(fd.get(), path_);
  std::vector<std::uint8_t> bytes(std::min(own.size, kMaxBytes));
  read_at(ops_, fd.get(), bytes, 0, path_);
  Content content;
  const std::string boot = ops_.boot_id();
  const std::vector<std::uint8_t> same_boot = head(part, boot);
  constexpr std::size_t kBootAt = sizeof kMagic + kDigestBytes;
  constexpr std::size_t kFileAt = kBootAt + kDigestBytes;
  const auto equal = [&](std::size_t begin, std::size_t end) {
    return std::equal(same_boot.begin() + static_cast<std::ptrdiff_t>(begin),
                      same_boot.begin() + static_cast<std::ptrdiff_t>(end),
                      bytes.begin() + static_cast<std::ptrdiff_t>(begin));
  };
  if (bytes.size() < kHeadBytes || part.size != layout_.file_bytes || !equal(0, kBootAt)) {
    return content;
  }
  const std::vector<Record> all = records(std::span(bytes).subspan(kHeadBytes));
  const bool is_same_boot = !boot.empty() && equal(kBootAt, kFileAt);

  std::size_t n_believed = 0;  // of the records
  if (equal(kFileAt, kHeadBytes)) {
    if (!all.empty() && all.back().kind == Kind::kSeal) {
      std::int64_t stamps[2];
      std::memcpy(stamps, all.back().bytes.data(), sizeof stamps);
      const bool is_untouched = all.back().number == part.size && stamps[0] == part.modified_ns &&
                                stamps[1] == part.changed_ns;
      if (is_untouched) n_believed = all.size();
    } else if (part.modified_ns <=
               own.modified_ns + (is_same_boot ? kSameBootSlack : kOtherBootSlack)) {
      for (const Record& record : all) {
        if (record.kind == Kind::kMark) n_believed = record.number;
      }
      if (is_same_boot) n_believed = all.size();
    }
  }
  std::map<std::size_t, wire::Digest> believed;
  std::map<std::size_t, wire::Digest> doubted;
  for (std::size_t i = 0; i < all.size(); ++i) {
    const Record& record = all[i];
    if (record.kind == Kind::kUnit) {
      (i < n_believed ? believed : doubted)[record.unit] = record.bytes;
    } else if (record.kind == Kind::kBeginning && record.number == 0) {
      content.beginnings.erase(record.unit);  // whatever is believed: it has been written over
    } else if (record.kind == Kind::kBeginning && i < n_believed) {
      Sha256State state;
      state.n_bytes = record.number;
      std::memcpy(state.words.data(), record.bytes.data(), kDigestBytes);
      content.beginnings[record.unit] = state;
    }
  }
  std::erase_if(doubted, [&](const auto& unit) { return believed.contains(unit.first); });
  std::erase_if(content.beginnings,
                [&](const auto& beginning) { return believed.contains(beginning.first); });
  content.believed.assign(believed.begin(), believed.end());
  content.doubted.assign(doubted.begin(), doubted.end());
  return content;
}

void SliceJournal::start(const FileState& part, const std::vector<Unit>& units,
                         const std::map<std::size_t, Sha256State>& beginnings) {
  std::vector<std::uint8_t> bytes = head(part, ops_.boot_id());
  n_notes_ = 0;
  for (const auto& [unit, digest] : units) {
    put(bytes, {Kind::kUnit, static_cast<std::uint32_t>(unit), 0, digest});
    ++n_notes_;
  }
  for (const auto& [unit, state] : beginnings) {
    Record record{Kind::kBeginning, static_cast<std::uint32_t>(unit), state.n_bytes, {}};
    std::memcpy(record.bytes.data(), state.words.data(), kDigestBytes);
    put(bytes, record);
    ++n_notes_;
  }
  put(bytes, {Kind::kMark, 0, n_notes_, {}});
  ++n_notes_;
  replace_file(ops_, path_, bytes);
  n_bytes_ = bytes.size();
  fd_ = open_file(ops_, path_, O_RDWR);
}

void SliceJournal::append(const Record& record) {
  std::vector<std::uint8_t> bytes;
  put(bytes, record);
  const std::lock_guard lock(mutex_);
  write_at(ops_, fd_.get(), bytes, n_bytes_, path_);
  n_bytes_ += bytes.size();
  ++n_notes_;
}

void SliceJournal::add_unit(std::size_t unit, const wire::Digest& digest) {
  append({Kind::kUnit, static_cast<std::uint32_t>(unit), 0, digest});
}

void SliceJournal::add_beginning(std::size_t unit, const Sha256State& state) {
  Record record{Kind::kBeginning, static_cast<std::uint32_t>(unit), state.n_bytes, {}};
  std::memcpy(record.bytes.data(), state.words.data(), kDigestBytes);
  append(record);
}

void SliceJournal::drop_beginning(std::size_t unit) {
  add_beginning(unit, {});
  sync();
}

std::uint64_t SliceJournal::n_notes() const {
  const std::lock_guard lock(mutex_);
  return n_notes_;
}

void SliceJournal::mark(std::uint64_t n_notes) {
  append({Kind::kMark, 0, n_notes, {}});
  sync();
}

void SliceJournal::seal(const FileState& part) {
  Record record{Kind::kSeal, 0, part.size, {}};
  const std::int64_t stamps[2] = {part.modified_ns, part.changed_ns};
  std::memcpy(record.bytes.data(), stamps, sizeof stamps);
  append(record);
  sync();
}

void SliceJournal::sync() { sync_file(ops_, fd_.get(), path_); }

}  // namespace moesaic::cluster
