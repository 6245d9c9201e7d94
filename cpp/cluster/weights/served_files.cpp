// See served_files.h.
#include "cluster/weights/served_files.h"

#include <fcntl.h>

#include <algorithm>
#include <utility>

#include "base/errors.h"
#include "base/thread_name.h"
#include "cluster/weights/local_files.h"

namespace moesaic::cluster {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kMaxBlobBytes = std::uint64_t{4} << 20;
constexpr std::size_t kMaxOpen = 4;    // files kept open only because somebody asked for them
constexpr auto kAbandonedAfter = 30s;  // those who ask for a manifest ask again and again
constexpr std::size_t kMaxReadings = 8;

std::vector<std::uint8_t> read_headers(const gguf::File& file, const wire::BlobRequest& request) {
  std::vector<std::uint8_t> joined;
  for (const auto header : file.headers()) {
    joined.insert(joined.end(), header.begin(), header.end());
  }
  if (request.offset > joined.size() || request.n_bytes > joined.size() - request.offset) {
    fail<ArgumentError>("[weights] bytes ", request.offset, " + ", request.n_bytes,
                        " of headers of ", joined.size());
  }
  const auto begin = joined.begin() + static_cast<std::ptrdiff_t>(request.offset);
  return {begin, begin + static_cast<std::ptrdiff_t>(request.n_bytes)};
}

}  // namespace

ServedFiles::ServedFiles(LocalCopies& local, DigestBook& book, FileOps& ops, Log log)
    : local_(local), book_(book), ops_(ops), log_(std::move(log)) {}

ServedFiles::~ServedFiles() {
  for (auto& [states, reading] : readings_) reading->cancel.set();
  for (auto& [states, reading] : readings_) reading->thread.join();
}

void ServedFiles::add(ServedFile served) {
  const std::lock_guard lock(mutex_);
  const auto file = served.file.lock();
  std::erase_if(files_, [&](const ServedFile& other) {
    return other.file.expired() || other.file.lock() == file;
  });
  files_.push_back(std::move(served));
}

void ServedFiles::keep_open(const FilePtr& file) {
  const std::lock_guard lock(mutex_);
  open_.push_back(file);
  if (open_.size() > kMaxOpen) open_.erase(open_.begin());
}

std::optional<wire::Manifest> ServedFiles::manifest(const wire::ManifestRequest& request) {
  if (!request.name.empty()) check_file_name(request.name);
  std::optional<wire::Manifest> manifest;
  if (request.identity == wire::Digest{}) {
    manifest = manifest_by_name(request);
  } else {
    manifest = find(request);
    if (!manifest && find_copy(request)) manifest = find(request);
  }
  if (manifest) manifest->request = request.request;
  return manifest;
}

// Among what is in use here. By name the latest counts.
std::optional<wire::Manifest> ServedFiles::find(const wire::ManifestRequest& request) {
  const std::lock_guard lock(mutex_);
  const bool by_name = request.identity == wire::Digest{};
  wire::Manifest manifest;
  UnitDigests digests;
  bool found = false;
  for (auto served = files_.rbegin(); served != files_.rend(); ++served) {
    const auto file = served->file.lock();
    const Content& content = served->content;
    if (!file || (by_name ? served->name != request.name || content.tensors.empty()
                          : content.identity != request.identity)) {
      continue;
    }
    if (found && content.identity != manifest.identity) continue;  // another one of this name
    found = true;
    manifest.identity = content.identity;
    manifest.headers = content.headers;
    if (!content.tensors.empty()) manifest.tensors = content.tensors;
    manifest.name = served->name;
    manifest.is_file |= !served->states.empty();
    manifest.header_bytes = 0;
    for (const auto header : file->headers()) manifest.header_bytes += header.size();
    digests.insert(served->digests.begin(), served->digests.end());
    digests.merge(book_.find(served->states));
  }
  if (!found) return std::nullopt;
  manifest.units.reserve(digests.size());
  for (const auto& [unit, digest] : digests) {
    manifest.units.push_back({unit.tensor, unit.expert, digest});
  }
  return manifest;
}

// A copy that may be what is asked for.
bool ServedFiles::find_copy(const wire::ManifestRequest& request) {
  if (request.name.empty()) return false;
  bool found = false;
  for (const LocalFile& local : local_.find(request.headers, request.name)) {
    ServedFile served{{}, request.name, local.file, {}, local.paths, local.states};
    if (const auto known = remembered_content(local, book_)) {
      if (known->identity != request.identity) continue;
      served.content = *known;
    } else {
      served.content.identity = request.identity;
      served.content.headers = local.headers;
    }
    add(std::move(served));
    keep_open(local.file);
    found = true;
  }
  return found;
}

// A copy comes before what is in use: its file may have been replaced since.
std::optional<wire::Manifest> ServedFiles::manifest_by_name(const wire::ManifestRequest& request) {
  if (request.name.empty()) return std::nullopt;
  std::vector<LocalFile> copies = local_.find({}, request.name);
  if (copies.empty()) return find(request);
  const LocalFile& local = copies.front();
  const std::optional<Content> content = remembered_content(local, book_);
  if (!content) return read_all(local);
  add({*content, request.name, local.file, {}, local.paths, local.states});
  keep_open(local.file);
  wire::ManifestRequest known = request;
  known.identity = content->identity;
  return find(known);
}

std::optional<wire::Manifest> ServedFiles::read_all(const LocalFile& local) {
  const std::lock_guard lock(mutex_);
  std::erase_if(readings_, [&](auto& each) {
    if (!each.second->is_over || each.first == local.states) return false;
    each.second->thread.join();
    return true;
  });
  std::unique_ptr<Reading>& reading = readings_[local.states];
  if (!reading) {
    if (readings_.size() > kMaxReadings) {
      readings_.erase(local.states);
      fail<IoError>("[weights] ", kMaxReadings, " files are being read already");
    }
    reading = std::make_unique<Reading>();
    reading->thread = std::thread([this, local, own = reading.get()] {
      name_this_thread("moesaic-identify");
      try {
        const std::lock_guard turn(turn_);
        ReadOptions options;
        options.cancel = &own->cancel;
        options.progress = [&](std::uint64_t done, std::uint64_t total) {
          own->total_bytes = std::max<std::uint64_t>(total, 1);
          own->done_bytes = done;
          if (Clock::now() - own->asked.load() > kAbandonedAfter) own->cancel.set();
        };
        identify(local, book_, ops_, options);
      } catch (const std::exception& error) {
        own->error = error.what();
      }
      own->is_over = true;
    });
  }
  reading->asked = Clock::now();
  if (!reading->is_over) {
    wire::Manifest manifest;
    manifest.headers = local.headers;
    manifest.hashed_bytes = reading->done_bytes;
    manifest.total_bytes = reading->total_bytes;
    return manifest;
  }
  const std::string error = reading->error;
  reading->thread.join();
  readings_.erase(local.states);
  // Without an error it has been remembered since the caller looked, or cannot be: asked again.
  if (error.empty()) {
    wire::Manifest manifest;
    manifest.total_bytes = 1;
    return manifest;
  }
  log_("local", strcat(local.paths[0], ": not used: ", error));
  return std::nullopt;
}

std::vector<std::pair<ServedFile, ServedFiles::FilePtr>> ServedFiles::with_identity(
    const wire::Digest& identity) {
  const std::lock_guard lock(mutex_);
  std::vector<std::pair<ServedFile, FilePtr>> files;
  for (const ServedFile& served : files_) {
    if (served.content.identity != identity) continue;
    if (auto file = served.file.lock()) files.emplace_back(served, std::move(file));
  }
  // What is only claimed comes last.
  std::stable_sort(files.begin(), files.end(), [](const auto& a, const auto& b) {
    return a.first.content.tensors.empty() < b.first.content.tensors.empty();
  });
  return files;
}

std::vector<std::uint8_t> ServedFiles::read(const wire::BlobRequest& request) {
  if (request.n_bytes == 0 || request.n_bytes > kMaxBlobBytes) {
    fail<ArgumentError>("[weights] a blob of ", request.n_bytes, " bytes, need 1 to ",
                        kMaxBlobBytes);
  }
  std::string why = "this model is not here";
  for (const auto& [served, file] : with_identity(request.identity)) {
    if (request.tensor == wire::kHeaderTensor) return read_headers(*file, request);
    if (request.tensor >= file->tensors().size()) {
      fail<ArgumentError>("[weights] tensor ", request.tensor, " of ", file->tensors().size());
    }
    const gguf::TensorInfo& tensor = file->tensors()[request.tensor];
    if (request.offset > tensor.n_bytes || request.n_bytes > tensor.n_bytes - request.offset) {
      fail<ArgumentError>("[weights] bytes ", request.offset, " + ", request.n_bytes, " of ",
                          tensor.name, ", which has ", tensor.n_bytes);
    }
    try {
      return read_tensor(served, *file, request);
    } catch (const ArgumentError&) {  // not of this slice; maybe of another
      why = "this tensor is not here";
    } catch (const IoError& error) {
      why = error.what();
    }
  }
  fail<IoError>("[weights] ", why);
}

// From the disk, not through the mapping: a file that was cut off is an error and not a signal.
std::vector<std::uint8_t> ServedFiles::read_tensor(const ServedFile& served, const gguf::File& file,
                                                   const wire::BlobRequest& request) {
  const gguf::TensorInfo& tensor = file.tensors()[request.tensor];
  if (served.states.empty()) {
    const auto bytes = file.bytes(tensor).subspan(request.offset, request.n_bytes);
    return {bytes.begin(), bytes.end()};
  }
  const auto part = static_cast<std::size_t>(tensor.file);
  const std::string& path = served.paths[part];
  const Fd fd = open_file(ops_, path, O_RDONLY);
  const auto check = [&] {
    if (file_state(fd.get(), path) != served.states[part]) {
      fail<IoError>("[weights] ", path, ": it has changed since it was opened");
    }
  };
  check();
  std::vector<std::uint8_t> bytes(request.n_bytes);
  read_at(ops_, fd.get(), bytes, tensor.offset + request.offset, path);
  check();
  return bytes;
}

}  // namespace moesaic::cluster
