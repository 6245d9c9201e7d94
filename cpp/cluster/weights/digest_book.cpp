// See digest_book.h. A sidecar file, all little endian:
//   8 bytes magic "MSDIGST1", u32 number of parts, their states (6 x u64 each), u64 number of
//   units, the units (u32 tensor, u32 expert, 32 bytes), SHA-256 of all that.
#include "cluster/weights/digest_book.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <thread>

#include "base/digest.h"

namespace moesaic::cluster {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr char kMagic[8] = {'M', 'S', 'D', 'I', 'G', 'S', 'T', '1'};
constexpr std::size_t kUnitBytes = 40;
constexpr std::size_t kMaxBooks = 256;  // older ones are of files long changed
constexpr std::uint64_t kMaxBookBytes = std::uint64_t{1} << 28;
constexpr auto kStampGrain = 50ms;
constexpr auto kCoarseGrain = 2s + 50ms;  // FAT counts in two seconds
constexpr auto kMostSkew = 60s;
constexpr auto kSettlePoll = 20ms;
constexpr auto kLockPoll = 2ms;
// A book is written in milliseconds; whoever has the lock for this long hangs. Going on without it
// can cost a later start some reading, nothing else.
constexpr auto kLockPatience = 2s;

template <typename T>
void put(std::vector<std::uint8_t>& out, T value) {
  const std::size_t at = out.size();
  out.resize(at + sizeof(T));
  std::memcpy(out.data() + at, &value, sizeof(T));
}

std::vector<std::uint8_t> encode(const FileStates& states) {
  std::vector<std::uint8_t> out(kMagic, kMagic + sizeof kMagic);
  put(out, static_cast<std::uint32_t>(states.size()));
  for (const FileState& state : states) {
    put(out, state.device);
    put(out, state.inode);
    put(out, state.size);
    put(out, state.modified_ns);
    put(out, state.changed_ns);
    put(out, state.born_ns);
  }
  return out;
}

std::int64_t nanoseconds(const struct statx_timestamp& time) {
  return static_cast<std::int64_t>(time.tv_sec) * 1000000000 + time.tv_nsec;
}

FileState look(int fd, const char* name, int flags, const std::string& path) {
  struct statx info {};
  if (statx(fd, name, flags, STATX_BASIC_STATS | STATX_BTIME, &info) != 0) {
    const int error = errno;
    throw FileError(strcat("[weights] ", path, ": cannot look at it: ", std::strerror(error)),
                    error);
  }
  FileState state;
  state.device = (std::uint64_t{info.stx_dev_major} << 32) | info.stx_dev_minor;
  state.inode = info.stx_ino;
  state.size = info.stx_size;
  state.modified_ns = nanoseconds(info.stx_mtime);
  state.changed_ns = nanoseconds(info.stx_ctime);
  if ((info.stx_mask & STATX_BTIME) != 0) state.born_ns = nanoseconds(info.stx_btime);
  return state;
}

}  // namespace

FileState file_state(int fd, const std::string& path) { return look(fd, "", AT_EMPTY_PATH, path); }

FileStates file_states(std::span<const std::string> paths) {
  FileStates states;
  for (const std::string& path : paths) states.push_back(look(AT_FDCWD, path.c_str(), 0, path));
  return states;
}

std::chrono::nanoseconds settle_time(const FileStates& states, std::int64_t now_ns) {
  std::chrono::nanoseconds wait{0};
  for (const FileState& state : states) {
    constexpr std::int64_t kSecond = 1'000'000'000;
    const bool is_coarse = state.changed_ns % kSecond == 0;  // by chance once in a billion
    const std::chrono::nanoseconds grain = is_coarse ? kCoarseGrain : kStampGrain;
    const std::chrono::nanoseconds age(now_ns - state.changed_ns);
    // A server's clock may be some seconds ahead: its grain may not be over. A stamp of the far
    // future is that of a clock that has jumped, and the next change gets another one.
    if (age < -kMostSkew) continue;
    if (age < grain) wait = std::max(wait, age.count() < 0 ? grain : grain - age);
  }
  return wait;
}

void let_stamps_settle(const FileStates& states, const CancelFlag* cancel) {
  timespec time{};
  clock_gettime(CLOCK_REALTIME, &time);
  const std::int64_t now = static_cast<std::int64_t>(time.tv_sec) * 1000000000 + time.tv_nsec;
  const auto until = std::chrono::steady_clock::now() + settle_time(states, now);
  for (auto at = std::chrono::steady_clock::now(); at < until;
       at = std::chrono::steady_clock::now()) {
    if (cancel != nullptr) cancel->check();
    std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(until - at, kSettlePoll));
  }
}

DigestBook::DigestBook(std::string folder, FileOps& ops, Log log)
    : folder_(std::move(folder)), ops_(ops), log_(std::move(log)) {}

std::string DigestBook::path_of(const FileStates& states) const {
  const std::vector<std::uint8_t> key = encode(states);
  return strcat(folder_, "/", to_hex(sha256(key.data(), key.size())), ".digests");
}

UnitDigests DigestBook::find(const FileStates& states) {
  if (states.empty()) return {};
  const std::lock_guard lock(mutex_);
  const auto known = known_.find(states);
  if (known != known_.end()) return known->second;
  if (folder_.empty()) return {};
  UnitDigests digests = read(path_of(states), states);
  if (!digests.empty()) known_[states] = digests;
  return digests;
}

UnitDigests DigestBook::read(const std::string& path, const FileStates& states) const {
  std::vector<std::uint8_t> bytes;
  try {
    const Fd fd = open_file(ops_, path, O_RDONLY);
    const std::uint64_t size = file_state(fd.get(), path).size;
    if (size > kMaxBookBytes) return {};
    bytes.resize(size);
    read_at(ops_, fd.get(), bytes, 0, path);
  } catch (const IoError&) {
    return {};  // none yet, or unreadable: the digests are made again
  }
  const std::vector<std::uint8_t> head = encode(states);
  constexpr std::size_t kDigest = sizeof(wire::Digest);
  if (bytes.size() < head.size() + 8 + kDigest ||
      !std::equal(head.begin(), head.end(), bytes.begin())) {
    return {};
  }
  const std::span<const std::uint8_t> body = std::span(bytes).first(bytes.size() - kDigest);
  const wire::Digest sum = sha256(body.data(), body.size());
  std::uint64_t n = 0;
  std::memcpy(&n, bytes.data() + head.size(), sizeof n);
  const std::size_t left = body.size() - head.size() - sizeof n;
  if (!std::equal(sum.begin(), sum.end(), bytes.end() - static_cast<std::ptrdiff_t>(kDigest)) ||
      left % kUnitBytes != 0 || n != left / kUnitBytes) {
    return {};
  }
  UnitDigests digests;
  const std::uint8_t* at = bytes.data() + head.size() + sizeof n;
  for (std::uint64_t i = 0; i < n; ++i, at += kUnitBytes) {
    UnitKey unit;
    std::memcpy(&unit.tensor, at, 4);
    std::memcpy(&unit.expert, at + 4, 4);
    wire::Digest digest;
    std::memcpy(digest.data(), at + 8, digest.size());
    digests.emplace_hint(digests.end(), unit, digest);
  }
  return digests;
}

Fd DigestBook::lock_folder() const {
  const auto until = std::chrono::steady_clock::now() + kLockPatience;
  for (;;) {
    Fd fd = try_lock_file(ops_, strcat(folder_, "/digests.lock"));
    if (fd || std::chrono::steady_clock::now() >= until) return fd;
    std::this_thread::sleep_for(kLockPoll);
  }
}

void DigestBook::add(const FileStates& states, const UnitDigests& digests) {
  if (states.empty() || digests.empty()) return;
  const std::lock_guard lock(mutex_);
  UnitDigests& known = known_[states];
  for (const auto& [unit, digest] : digests) known[unit] = digest;
  if (folder_.empty()) return;
  try {
    make_folder(folder_);
    // Workers of one machine share the folder, and two slices of one file share its book: read,
    // added to and written in one go, or the one that writes last would undo the other.
    const Fd folder_lock = lock_folder();
    known.merge(read(path_of(states), states));
    write(states, known);
    prune();
  } catch (const IoError& error) {
    log_("digests", strcat("digests are not remembered for the next start: ", error.what()));
  }
}

void DigestBook::write(const FileStates& states, const UnitDigests& known) const {
  std::vector<std::uint8_t> bytes = encode(states);
  bytes.reserve(bytes.size() + known.size() * kUnitBytes + 64);
  put(bytes, static_cast<std::uint64_t>(known.size()));
  for (const auto& [unit, digest] : known) {
    put(bytes, unit.tensor);
    put(bytes, unit.expert);
    bytes.insert(bytes.end(), digest.begin(), digest.end());
  }
  const wire::Digest sum = sha256(bytes.data(), bytes.size());
  bytes.insert(bytes.end(), sum.begin(), sum.end());
  replace_file(ops_, path_of(states), bytes);
}

void DigestBook::forget(const FileStates& states) {
  const std::lock_guard lock(mutex_);
  known_.erase(states);
  if (!folder_.empty()) ::unlink(path_of(states).c_str());
}

void DigestBook::prune() const {
  std::vector<std::pair<fs::file_time_type, fs::path>> books;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_, error)) {
    if (entry.path().extension() != ".digests") continue;
    const fs::file_time_type time = entry.last_write_time(error);
    if (!error) books.emplace_back(time, entry.path());
  }
  if (books.size() <= kMaxBooks) return;
  std::sort(books.begin(), books.end());
  for (std::size_t i = 0; i < books.size() - kMaxBooks; ++i) fs::remove(books[i].second, error);
}

}  // namespace moesaic::cluster
