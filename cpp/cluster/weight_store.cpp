// See weight_store.h. An open() tries the local copy, the cache, and the sources, in this order;
// whatever it hands out stays known to manifest() and read() as long as somebody holds it.
#include "cluster/weight_store.h"

#include <algorithm>
#include <mutex>
#include <set>

#include "base/digest.h"
#include "base/errors.h"
#include "cluster/digest_book.h"
#include "cluster/local_copies.h"
#include "cluster/local_files.h"
#include "cluster/slice_cache.h"
#include "cluster/slice_pull.h"
#include "cluster/slice_target.h"

namespace moesaic::cluster {
namespace {

constexpr std::uint64_t kMaxBlobBytes = std::uint64_t{4} << 20;
constexpr std::size_t kMaxServed = 4;  // files kept open only because somebody asked for them

// What others can be served from.
struct Held {
  wire::Digest identity{};
  std::string name;
  std::weak_ptr<const gguf::File> file;
  UnitDigests digests;  // of a slice; those of files are in the book under their states
  FileStates states;
};

// Tensors travel by their number in the directory, which must be that of the headers (a view that
// shows other tensors would send the wrong ones).
bool is_as_its_headers_say(const gguf::File& file) {
  std::vector<std::vector<std::uint8_t>> headers;
  for (const auto header : file.headers()) headers.emplace_back(header.begin(), header.end());
  const auto own = gguf::File::from_headers(std::move(headers), file.paths()[0]);
  const auto same = [](const gguf::TensorInfo& a, const gguf::TensorInfo& b) {
    return a.name == b.name && a.n_bytes == b.n_bytes;
  };
  return std::equal(file.tensors().begin(), file.tensors().end(), own->tensors().begin(),
                    own->tensors().end(), same);
}

class Store final : public WeightStore {
 public:
  Store(const StoreOptions& options, FileOps& ops)
      : options_(options),
        ops_(ops),
        book_(options.cache_dir, ops, [this](auto& event, auto& text) { log(event, text); }),
        local_(
            options.models_dir, ops, book_, [this](auto& event, auto& text) { log(event, text); },
            bytes_read_) {
    if (options_.cache_dir.empty()) return;
    try {
      cache_ = std::make_unique<SliceCache>(options_.cache_dir, ops_, book_,
                                            [this](auto& event, auto& text) { log(event, text); });
    } catch (const IoError& error) {
      log("cache", strcat("no cache: ", error.what()));
    }
  }

  OpenedSlice open(const OpenSlice& request) override {
    if (!request.name.empty() || request.identity == wire::Digest{}) check_file_name(request.name);
    if (std::optional<OpenedSlice> local = open_local(request)) return *std::move(local);
    if (request.tensors.empty()) return open_headers(request);
    return open_cached(request);
  }

  void offer(std::shared_ptr<const gguf::File> file, const std::string& name) override {
    if (!is_as_its_headers_say(*file)) {
      log("offer",
          strcat(name, ": not served to others: its tensors are not those of its headers"));
      return;
    }
    FileStates states;
    try {
      states = file_states(file->paths());
    } catch (const IoError&) {  // from memory, or headers alone: no digests
    }
    hold({header_identity(*file), name, file, {}, std::move(states)});
  }

  std::optional<wire::Manifest> manifest(const wire::ManifestRequest& request) override {
    wire::Manifest manifest;
    manifest.request = request.request;
    if (!request.name.empty()) check_file_name(request.name);
    if (!fill_from_held(request, manifest)) {
      if (request.name.empty()) return std::nullopt;
      std::optional<LocalFile> local = local_.find(request.identity, request.name);
      if (!local) return std::nullopt;
      hold({local->identity, request.name, local->file, {}, local->states});
      {
        const std::lock_guard lock(mutex_);
        served_.push_back(local->file);
        if (served_.size() > kMaxServed) served_.erase(served_.begin());
      }
      fill_from_held(request, manifest);
    }
    return manifest;
  }

  std::vector<std::uint8_t> read(const wire::BlobRequest& request) override {
    if (request.n_bytes == 0 || request.n_bytes > kMaxBlobBytes) {
      fail<ArgumentError>("[weights] a blob of ", request.n_bytes, " bytes, need 1 to ",
                          kMaxBlobBytes);
    }
    bool known = false;
    for (const auto& file : held_files(request.identity)) {
      known = true;
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
        const auto bytes = file->bytes(tensor).subspan(request.offset, request.n_bytes);
        return {bytes.begin(), bytes.end()};
      } catch (const ArgumentError&) {  // not of this slice; maybe of another
      }
    }
    fail<IoError>("[weights] ", known ? "this tensor is" : "this model is", " not here");
  }

  std::uint64_t bytes_read() const override { return bytes_read_; }

 private:
  void log(const std::string& event, const std::string& text) const {
    if (options_.log) options_.log(event, text);
  }

  void hold(Held held) {
    const std::lock_guard lock(mutex_);
    const auto file = held.file.lock();
    std::erase_if(held_, [&](const Held& other) {
      return other.file.expired() || other.file.lock() == file;
    });
    held_.push_back(std::move(held));
  }

  std::vector<std::shared_ptr<const gguf::File>> held_files(const wire::Digest& identity) {
    const std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<const gguf::File>> files;
    for (const Held& held : held_) {
      if (held.identity != identity) continue;
      if (auto file = held.file.lock()) files.push_back(std::move(file));
    }
    return files;
  }

  bool fill_from_held(const wire::ManifestRequest& request, wire::Manifest& manifest) {
    const std::lock_guard lock(mutex_);
    const bool by_name = request.identity == wire::Digest{};
    UnitDigests digests;
    bool found = false;
    for (const Held& held : held_) {
      const auto file = held.file.lock();
      if (!file || (by_name ? held.name != request.name : held.identity != request.identity)) {
        continue;
      }
      if (found && held.identity != manifest.identity) continue;  // another file of this name
      found = true;
      manifest.identity = held.identity;
      manifest.name = held.name;
      manifest.header_bytes = 0;
      for (const auto header : file->headers()) manifest.header_bytes += header.size();
      digests.insert(held.digests.begin(), held.digests.end());
      digests.merge(book_.find(held.states));
    }
    manifest.units.reserve(digests.size());
    for (const auto& [unit, digest] : digests) {
      manifest.units.push_back({unit.tensor, unit.expert, digest});
    }
    return found;
  }

  static std::vector<std::uint8_t> read_headers(const gguf::File& file,
                                                const wire::BlobRequest& request) {
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

  std::optional<OpenedSlice> open_local(const OpenSlice& request) {
    if (request.name.empty()) return std::nullopt;
    std::optional<LocalFile> local = local_.find(request.identity, request.name);
    if (!local) return std::nullopt;
    OpenedSlice opened;
    opened.source = "local copy";
    opened.file = local->file;
    if (!request.tensors.empty()) {
      try {
        local_.prove(request, *local, &opened.bytes_read);
      } catch (const IoError& error) {
        log("local", strcat(local->paths[0], ": not used: ", error.what()));
        return std::nullopt;
      }
    }
    hold({local->identity, request.name, local->file, {}, local->states});
    return opened;
  }

  OpenedSlice open_headers(const OpenSlice& request) {
    OpenedSlice opened;
    if (cache_ && request.identity != wire::Digest{}) {
      opened.file = cache_->headers(request.identity, request.name);
      opened.source = "cache";
      if (opened.file) return opened;
    }
    const Manifests manifests =
        ask_manifests(request.sources, request.identity, request.name, request.cancel);
    std::atomic<std::uint64_t> n_fetched{0};
    opened.file = headers_from(manifests, request, n_fetched);
    opened.bytes_read = n_fetched;
    bytes_read_ += n_fetched;
    opened.source = "pulled, not kept";
    return opened;
  }

  // Headers are asked for before the slice is: those fetched last are kept, to come once.
  std::shared_ptr<const gguf::File> headers_from(const Manifests& manifests,
                                                 const OpenSlice& request,
                                                 std::atomic<std::uint64_t>& n_fetched) {
    {
      const std::lock_guard lock(mutex_);
      if (headers_ && request.identity == headers_identity_ &&
          headers_->paths()[0] == request.name) {
        return headers_;
      }
    }
    if (cache_ && request.identity != wire::Digest{}) {
      if (auto file = cache_->headers(request.identity, request.name)) return file;
    }
    auto file = pull_headers(manifests, request.identity, request.name, request.cancel, &n_fetched);
    const std::lock_guard lock(mutex_);
    headers_identity_ = header_identity(*file);
    headers_ = file;
    return file;
  }

  OpenedSlice open_cached(const OpenSlice& request) {
    OpenedSlice opened;
    std::optional<SliceCache::Lock> lock;
    std::string path;
    // Without an identity there is no name in the cache: the slice is pulled.
    if (cache_ && request.identity != wire::Digest{}) {
      path = cache_->path_of(request.identity, request.tensors);
      try {
        lock = cache_->lock(path, request.cancel);
      } catch (const FileError& error) {
        log("cache", strcat(error.what(), "; the slice is kept in memory only"));
        path.clear();
      }
    }
    if (lock) {
      SliceCache::Query query{request.identity, request.tensors, request.name,
                              request.digests,  request.cancel,  {}};
      query.progress = [&](std::uint64_t done, std::uint64_t total) {
        if (request.progress) request.progress(done, total, "verify");
      };
      std::uint64_t wasted = 0;
      std::optional<SliceCache::Found> found = cache_->open(query, &wasted);
      opened.bytes_read = wasted + (found ? found->bytes_read : 0);
      bytes_read_ += opened.bytes_read;
      if (found) {
        opened.file = found->file;
        opened.source = "cache";
        hold({request.identity, request.name, opened.file, std::move(found->digests), {}});
        return opened;
      }
    }
    pull(request, path, opened);
    return opened;
  }

  // path: of the cache's file; empty: not kept. The slice's lock is held.
  void pull(const OpenSlice& request, const std::string& path, OpenedSlice& opened) {
    std::atomic<std::uint64_t> n_fetched{0};
    std::uint64_t resumed = 0;
    try {
      const Manifests manifests =
          ask_manifests(request.sources, request.identity, request.name, request.cancel);
      const SliceLayout layout =
          make_layout(headers_from(manifests, request, n_fetched), request.tensors);
      const std::uint64_t n_headers = n_fetched;
      SliceTarget target(
          layout, path, ops_, [this](const std::string& text) { log("cache", text); },
          [&](std::uint64_t n_bytes) { return cache_->make_room(path, n_bytes); });
      const auto report = [&](std::uint64_t done) {
        if (!request.progress) return;
        request.progress(std::min(done, layout.weights_bytes), layout.weights_bytes, "pull");
      };
      resumed = target.resume(request.cancel, report);
      PullJob job{&layout, &target, {}, &manifests, request.cancel, &n_fetched, {}};
      job.progress = [&] { report(resumed + n_fetched - n_headers); };
      copy_from_other_slices(request, path, job);
      while (!opened.file) {
        job.units = target.missing();
        pull_units(job);
        opened.file = target.finish(request.cancel);
      }
      report(layout.weights_bytes);
      publish(request, path, layout, target, opened);
    } catch (...) {
      bytes_read_ += resumed + n_fetched;
      throw;
    }
    bytes_read_ += resumed + n_fetched;
    opened.bytes_read += resumed + n_fetched;
  }

  // What the cache has of the slice under other names, after an earlier plan.
  void copy_from_other_slices(const OpenSlice& request, const std::string& path,
                              const PullJob& pull) {
    if (path.empty()) return;
    const auto own = cache_->source(request.identity, request.name, path);
    if (!own) return;
    const Manifests manifests =
        ask_manifests({own}, request.identity, request.name, request.cancel);
    std::set<UnitKey> has;
    for (const SourceManifest& found : manifests.found) {
      for (const wire::UnitDigest& unit : found.manifest.units) {
        has.insert({unit.tensor, unit.expert});
      }
    }
    PullJob job = pull;
    job.manifests = &manifests;
    for (const std::size_t unit : pull.target->missing()) {
      if (has.contains(pull.layout->units[unit])) job.units.push_back(unit);
    }
    try {
      pull_units(job);
    } catch (const IoError& error) {  // then it comes over the net
      log("cache", error.what());
    } catch (const FormatError& error) {
      log("cache", error.what());
    }
  }

  void publish(const OpenSlice& request, const std::string& path, const SliceLayout& layout,
               const SliceTarget& target, OpenedSlice& opened) {
    opened.source = target.is_kept() ? "pulled" : "pulled, not kept";
    UnitDigests digests;
    const std::vector<wire::Digest> made = target.digests();
    for (std::size_t i = 0; i < made.size(); ++i) digests[layout.units[i]] = made[i];
    if (target.is_kept()) cache_->remember(path, digests);
    hold({layout.identity, request.name, opened.file, std::move(digests), {}});
  }

  StoreOptions options_;
  FileOps& ops_;
  DigestBook book_;
  std::atomic<std::uint64_t> bytes_read_{0};
  LocalCopies local_;
  std::unique_ptr<SliceCache> cache_;  // null: nothing is kept
  std::mutex mutex_;
  std::vector<Held> held_;
  std::vector<std::shared_ptr<const gguf::File>> served_;
  wire::Digest headers_identity_{};
  std::shared_ptr<const gguf::File> headers_;  // fetched last
};

FileOps& system_ops() {
  static FileOps ops;
  return ops;
}

}  // namespace

std::unique_ptr<WeightStore> WeightStore::make(const StoreOptions& options) {
  return std::make_unique<Store>(options, options.ops == nullptr ? system_ops() : *options.ops);
}

}  // namespace moesaic::cluster
