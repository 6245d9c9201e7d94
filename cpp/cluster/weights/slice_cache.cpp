// See slice_cache.h.
#include "cluster/weights/slice_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <thread>
#include <tuple>

#include "base/digest.h"
#include "cluster/weights/hash_units.h"
#include "cluster/weights/slice_source.h"
#include "cluster/weights/slice_target.h"

namespace moesaic::cluster {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr auto kLockPoll = 20ms;
// Somebody may come back for what was half fetched; after this long nobody does.
constexpr auto kAbandonedAfter = std::chrono::hours(7 * 24);

std::string lock_path(const std::string& path) {
  return path.substr(0, path.size() - std::strlen(".slice")) + ".lock";
}

bool is_old(const fs::path& path) {
  std::error_code error;
  const fs::file_time_type time = fs::last_write_time(path, error);
  return !error && fs::file_time_type::clock::now() - time > kAbandonedAfter;
}

}  // namespace

SliceCache::SliceCache(std::string folder, std::uint64_t limit_bytes, FileOps& ops,
                       DigestBook& book, Log log)
    : folder_(std::move(folder)),
      limit_bytes_(limit_bytes),
      ops_(ops),
      book_(book),
      log_(std::move(log)) {
  make_folder(folder_);
  clean();
}

std::string SliceCache::path_of(const wire::Digest& identity,
                                const std::vector<std::string>& tensors) const {
  const wire::Digest descriptor = slice_descriptor(tensors);
  Sha256 sha;
  sha.update(identity.data(), identity.size());
  sha.update(descriptor.data(), descriptor.size());
  return strcat(folder_, "/", to_hex(sha.finish()), ".slice");
}

SliceCache::Lock SliceCache::lock(const std::string& path, const Waiting& waiting) const {
  bool said = false;
  WaitingVoice voice(waiting);
  for (;;) {
    if (waiting.cancel != nullptr) waiting.cancel->check();
    if (Fd fd = try_lock_file(ops_, lock_path(path))) {
      futimens(fd.get(), nullptr);  // when the slice was last used: make_room
      return Lock(std::move(fd));
    }
    if (!said) log_("cache", "waiting for another process that fetches the same slice");
    said = true;
    voice.say("waiting for another load");
    std::this_thread::sleep_for(kLockPoll);
  }
}

std::optional<SliceCache::Found> SliceCache::open(const Query& query, std::uint64_t* wasted_bytes) {
  const std::string path = path_of(query.content.identity, query.tensors);
  if (::access(path.c_str(), F_OK) != 0) return std::nullopt;
  std::uint64_t n_read = 0;
  try {
    Fd fd = open_file(ops_, path, O_RDONLY);
    const FileStates states{file_state(fd.get(), path)};
    const SliceInfo info =
        read_slice_info(ops_, fd.get(), path, query.content, query.tensors, query.name);
    const SliceLayout& layout = info.layout;
    Found found;
    for (std::size_t i = 0; i < layout.units.size(); ++i) {
      found.digests.emplace_hint(found.digests.end(), layout.units[i], info.digests[i]);
    }
    found.state = states[0];
    for (const SlicePlace& place : layout.places) {
      if (prove_tensor(*layout.directory, query.content, place.tensor, found.digests) ==
          Proof::kGood) {
        continue;
      }
      fail<FormatError>("[weights] ", path, ": the digest of ",
                        layout.directory->tensors()[place.tensor].name,
                        " is not that of the model");
    }
    const bool known = book_.find(states) == found.digests;
    if (query.digests == wire::DigestPolicy::kAlways ||
        (query.digests == wire::DigestPolicy::kFirst && !known)) {
      let_stamps_settle(states, query.cancel);
      HashJob job;
      job.paths = {path};
      job.cancel = query.cancel;
      for (std::size_t i = 0; i < layout.units.size(); ++i) {
        const SliceLayout::Range range = layout.range(i);
        job.pieces.push_back({0, range.offset, range.n_bytes});
      }
      job.progress = [&](std::uint64_t done) {
        n_read = done;
        if (query.progress) query.progress(done, layout.weights_bytes);
      };
      const std::vector<wire::Digest> made = hash_units(job, ops_);
      for (std::size_t i = 0; i < made.size(); ++i) {
        if (made[i] != info.digests[i]) {
          fail<FormatError>("[weights] ", path, ": ", unit_name(*layout.directory, layout.units[i]),
                            ": its bytes do not give the digest with which they were written");
        }
      }
      if (file_states(job.paths) != states) {
        fail<FormatError>("[weights] ", path, ": changed while it was read");
      }
      book_.add(states, found.digests);
    }
    found.file = make_slice_file(layout, map_slice(std::move(fd), layout, path));
    found.bytes_read = n_read;
    return found;
  } catch (const FormatError& error) {
    set_aside(path, error.what());
  } catch (const FileError& error) {
    if (error.error == EIO) {
      set_aside(path, error.what());
    } else {  // of this process or the folder, not of the file's content
      log_("cache", error.what());
    }
  }
  *wasted_bytes += n_read;
  return std::nullopt;
}

std::shared_ptr<const gguf::File> SliceCache::headers(const Content& content,
                                                      const std::string& name) const {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_, error)) {
    const std::string path = entry.path().string();
    if (!path.ends_with(".slice") && !path.ends_with(".slice.part")) continue;
    try {
      const Fd fd = open_file(ops_, path, O_RDONLY);
      if (auto file = read_slice_headers(ops_, fd.get(), path, content, name)) return file;
    } catch (const Error&) {  // damaged: found and set aside by whoever opens it as a slice
    }
  }
  return nullptr;
}

void SliceCache::remember(const std::string& path, const UnitDigests& digests) {
  try {
    book_.add(file_states(std::span(&path, 1)), digests);
  } catch (const IoError& error) {
    log_("digests", strcat("digests are not remembered for the next start: ", error.what()));
  }
}

void SliceCache::drop_bad() const {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_, error)) {
    if (entry.path().extension() == ".bad") fs::remove(entry.path(), error);
  }
}

std::shared_ptr<BlobSource> SliceCache::source(const Content& content, const std::string& name,
                                               const std::string& path) const {
  auto source = std::make_shared<SliceSource>(ops_, content, name);
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_, error)) {
    if (entry.path().extension() == ".slice" && entry.path() != path) {
      source->add(entry.path().string());
    }
  }
  return source->empty() ? nullptr : source;
}

// Nothing: it is no file that could go, or somebody uses it.
std::optional<SliceCache::Evictable> SliceCache::evictable(const std::string& file) const {
  Evictable found;
  found.file = file;
  found.is_slice = file.ends_with(".slice");
  const bool is_part = file.ends_with(".part");
  if (!found.is_slice && !is_part && !file.ends_with(".bad")) return std::nullopt;
  std::error_code error;
  found.n_bytes = fs::file_size(file, error);
  if (file.ends_with(".bad")) return found;
  const std::string lock = lock_path(is_part ? file.substr(0, file.size() - 5) : file);
  try {
    found.locks.push_back(try_lock_file(ops_, lock));
    if (!found.locks[0]) return std::nullopt;
    found.used = fs::last_write_time(lock, error);
    if (found.is_slice) {  // mapped by whoever has it open: no room would be won
      found.locks.push_back(open_file(ops_, file, O_RDONLY));
      if (flock(found.locks[1].get(), LOCK_EX | LOCK_NB) != 0) return std::nullopt;
    }
  } catch (const IoError&) {
    return std::nullopt;
  }
  return found;
}

std::uint64_t SliceCache::room_bytes() const {
  const auto less = [](std::uint64_t a, std::uint64_t b) { return a > b ? a - b : 0; };
  const std::uint64_t on_disk =
      less(ops_.free_bytes(folder_.c_str()), ops_.reserve_bytes(folder_.c_str()));
  if (limit_bytes_ == 0) return on_disk;
  std::uint64_t used = 0;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_, error)) {
    const std::string ending = entry.path().extension().string();
    if (ending != ".slice" && ending != ".part" && ending != ".bad") continue;
    const std::uint64_t n_bytes = entry.file_size(error);
    if (!error) used += n_bytes;
  }
  return std::min(on_disk, less(limit_bytes_, used));
}

bool SliceCache::make_room(const std::string& path, std::uint64_t n_bytes) const {
  std::error_code error;
  std::vector<Evictable> all;
  std::uint64_t sum = room_bytes();
  if (sum >= n_bytes) return true;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_, error)) {
    const std::string file = entry.path().string();
    const bool is_its_own = file.starts_with(path) && !file.ends_with(".bad");
    if (is_its_own) continue;
    if (std::optional<Evictable> found = evictable(file)) {
      sum += found->n_bytes;
      all.push_back(*std::move(found));
    }
  }
  if (sum < n_bytes) return false;
  std::sort(all.begin(), all.end(), [](const Evictable& a, const Evictable& b) {
    return std::tie(a.is_slice, a.used) < std::tie(b.is_slice, b.used);
  });
  for (Evictable& one : all) {
    if (room_bytes() >= n_bytes) break;
    log_("cache", strcat("no room for another slice: ", one.file, ", ", one.n_bytes >> 20,
                         " MiB, is thrown out"));
    one.locks.clear();
    fs::remove(one.file, error);
    if (one.file.ends_with(".part")) {
      fs::remove(fs::path(one.file).replace_extension(".journal"), error);
    }
  }
  return room_bytes() >= n_bytes;
}

void SliceCache::set_aside(const std::string& path, const std::string& why) const {
  drop_bad();
  const std::string bad = path + ".bad";
  if (::rename(path.c_str(), bad.c_str()) != 0) ::unlink(path.c_str());
  log_("quarantine", strcat("a damaged file of the cache is set aside as ", bad, ": ", why));
}

void SliceCache::clean() const {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_, error)) {
    const fs::path path = entry.path();
    const std::string name = path.filename().string();
    const std::size_t pid_at = name.find(".tmp-");
    if (pid_at != std::string::npos) {  // of a small file: its process writes it in one go
      // Earlier releases had no lock but the number of the process, which tells something only when
      // it is one of this container.
      const long pid = std::strtol(name.c_str() + pid_at + 5, nullptr, 10);
      if (pid > 0 && fs::exists(strcat("/proc/", pid), error)) continue;
      try {
        remove_if_abandoned(ops_, path.string());
      } catch (const IoError&) {  // not ours to remove
      }
      continue;
    }
    const bool is_part = name.ends_with(".slice.part");
    if (!is_part && !name.ends_with(".slice.journal")) continue;
    const fs::path slice = path.parent_path() / path.stem();
    const bool resumable = is_part ? fs::exists(slice.string() + ".journal", error)
                                   : fs::exists(slice.string() + ".part", error);
    if (resumable && !is_old(path)) continue;
    try {
      if (try_lock_file(ops_, lock_path(slice.string()))) fs::remove(path, error);
    } catch (const IoError&) {  // not ours to remove
    }
  }
}

}  // namespace moesaic::cluster
