// See weight_store.h. An open() tries the local copy, the cache, and the sources, in this order;
// whatever it hands out stays known to manifest() and read() as long as somebody holds it.
#include "cluster/weights/weight_store.h"

#include <algorithm>
#include <mutex>
#include <set>

#include "base/digest.h"
#include "base/errors.h"
#include "cluster/weights/digest_book.h"
#include "cluster/weights/local_copies.h"
#include "cluster/weights/local_files.h"
#include "cluster/weights/served_files.h"
#include "cluster/weights/slice_cache.h"
#include "cluster/weights/slice_pull.h"
#include "cluster/weights/slice_target.h"
#include "cluster/weights/slow_calls.h"

namespace moesaic::cluster {
namespace {

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
            bytes_read_),
        served_(local_, book_, ops, [this](auto& event, auto& text) { log(event, text); }) {
    if (options_.cache_dir.empty()) return;
    try {
      cache_ = std::make_unique<SliceCache>(options_.cache_dir, options_.cache_bytes, ops_, book_,
                                            [this](auto& event, auto& text) { log(event, text); });
    } catch (const IoError& error) {
      log("cache", strcat("no cache: ", error.what()));
    }
  }

  OpenedSlice open(const OpenSlice& request) override {
    if (!request.name.empty() || !request.content.is_known()) check_file_name(request.name);
    if (!request.tensors.empty() && !request.content.is_known()) {
      fail<InternalError>("[weights] a slice of a model that is not known by its content");
    }
    std::string others;  // copies with other weights
    if (std::optional<OpenedSlice> local = open_local(request, others)) return *std::move(local);
    if (request.tensors.empty()) return open_headers(request);
    try {
      return open_cached(request);
    } catch (const IoError& error) {
      if (others.empty()) throw;
      fail<FormatError>(others, "; and the right one cannot be fetched: ", error.what());
    }
  }

  Content identify(const std::shared_ptr<const gguf::File>& file,
                   const ReadOptions& options) override {
    return cluster::identify(local_file_of(file), book_, ops_, options);
  }

  void offer(std::shared_ptr<const gguf::File> file, const Content& content,
             const std::string& name) override {
    if (!is_as_its_headers_say(*file)) {
      log("offer",
          strcat(name, ": not served to others: its tensors are not those of its headers"));
      return;
    }
    try {
      const LocalFile local = local_file_of(file);
      ServedFile served{content, name, file, {}, local.paths, local.states};
      if (local.states.empty()) {  // it is in memory: no book has its digests
        served.digests = read_digests(local, all_units(*file), ops_, {});
      }
      served_.add(std::move(served));
    } catch (const Error& error) {
      log("offer", strcat(name, ": not served to others: ", error.what()));
    }
  }

  std::optional<wire::Manifest> manifest(const wire::ManifestRequest& request) override {
    return served_.manifest(request);
  }

  std::vector<std::uint8_t> read(const wire::BlobRequest& request) override {
    return served_.read(request);
  }

  std::uint64_t bytes_read() const override { return bytes_read_; }

 private:
  void log(const std::string& event, const std::string& text) const {
    if (options_.log) options_.log(event, text);
  }

  // others: told of copies that are not what is asked for.
  std::optional<OpenedSlice> open_local(const OpenSlice& request, std::string& others) {
    if (request.name.empty()) return std::nullopt;
    OpenedSlice opened;
    opened.source = "local copy";
    for (LocalFile& local : local_.find(request.content.headers, request.name)) {
      opened.file = local.file;
      opened.paths = local.paths;
      opened.states = local.states;
      if (request.tensors.empty()) return opened;
      try {
        local_.prove(request, local, &opened.bytes_read);
        served_.add({request.content, request.name, local.file, {}, local.paths, local.states});
        return opened;
      } catch (const FormatError& error) {
        others = error.what();
        log("local", strcat("not used: ", error.what(), "; the right one is fetched"));
      } catch (const IoError& error) {
        log("local", strcat("not used: ", error.what()));
      }
    }
    return std::nullopt;
  }

  OpenedSlice open_headers(const OpenSlice& request) {
    OpenedSlice opened;
    if (cache_ && request.content.is_known()) {
      opened.file = cache_->headers(request.content, request.name);
      opened.source = "cache";
      if (opened.file) return opened;
    }
    std::atomic<std::uint64_t> n_fetched{0};
    opened.file = headers_from(ask(request), request, n_fetched);
    opened.bytes_read = n_fetched;
    bytes_read_ += n_fetched;
    opened.source = "pulled, not kept";
    return opened;
  }

  // Says what it waits for by its progress: without a word a load would be taken for stuck.
  static Waiting waiting_of(const OpenSlice& request) {
    Waiting waiting{request.cancel, {}};
    if (request.progress) {
      waiting.say = [&request](const char* what) { request.progress(0, 1, what); };
    }
    return waiting;
  }

  static Manifests ask(const OpenSlice& request) {
    return ask_manifests(request.sources, request.content, request.name, request.cancel);
  }

  // Headers are asked for before the slice is: those fetched last are kept, to come once.
  std::shared_ptr<const gguf::File> headers_from(const Manifests& manifests,
                                                 const OpenSlice& request,
                                                 std::atomic<std::uint64_t>& n_fetched) {
    const wire::Digest& wanted = request.content.headers;
    {
      const std::lock_guard lock(mutex_);
      if (headers_ && wanted == headers_digest_ && headers_->paths()[0] == request.name) {
        return headers_;
      }
    }
    if (cache_ && request.content.is_known()) {
      if (auto file = cache_->headers(request.content, request.name)) return file;
    }
    auto file = pull_headers(manifests, wanted, request.name, request.cancel, &n_fetched);
    const std::lock_guard lock(mutex_);
    headers_digest_ = header_identity(*file);
    headers_ = file;
    return file;
  }

  OpenedSlice open_cached(const OpenSlice& request) {
    OpenedSlice opened;
    std::optional<SliceCache::Lock> lock;
    std::string path;
    if (cache_) {
      path = cache_->path_of(request.content.identity, request.tensors);
      try {
        lock = cache_->lock(path, waiting_of(request));
      } catch (const FileError& error) {
        log("cache", strcat(error.what(), "; the slice is kept in memory only"));
        path.clear();
      }
    }
    if (lock) {
      SliceCache::Query query{request.content, request.tensors, request.name,
                              request.digests, request.cancel,  {}};
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
        opened.paths = {path};
        opened.states = {found->state};
        served_.add(
            {request.content, request.name, opened.file, std::move(found->digests), {}, {}});
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
      const Manifests manifests = ask(request);
      const SliceLayout layout = make_layout(headers_from(manifests, request, n_fetched),
                                             request.content.identity, request.tensors);
      const std::uint64_t n_headers = n_fetched;
      SliceTarget target(
          layout, path, ops_, slow_, [this](const std::string& text) { log("cache", text); },
          [&](std::uint64_t n_bytes) { return cache_->make_room(path, n_bytes); });
      const auto report = [&](std::uint64_t done) {
        if (!request.progress) return;
        request.progress(std::min(done, layout.weights_bytes), layout.weights_bytes, "pull");
      };
      resumed = target.resume(waiting_of(request), report);
      PullJob job{&layout,    &request.content, &target,    {},
                  &manifests, request.cancel,   &n_fetched, {}};
      job.progress = [&] { report(resumed + n_fetched - n_headers); };
      copy_from_other_slices(request, path, job);
      while (!opened.file) {
        job.units = target.missing();
        pull_units(job);
        opened.file = target.finish(waiting_of(request));
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
    const auto own = cache_->source(request.content, request.name, path);
    if (!own) return;
    const Manifests manifests = ask_manifests({own}, request.content, request.name, request.cancel);
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
    if (target.is_kept()) {
      slow_.finish(waiting_of(request), "writing to disk",
                   [&] { cache_->remember(path, digests); });
      opened.paths = {path};
      opened.states = {target.state()};
    }
    served_.add({request.content, request.name, opened.file, std::move(digests), {}, {}});
  }

  StoreOptions options_;
  FileOps& ops_;
  SlowCalls slow_;
  DigestBook book_;
  std::atomic<std::uint64_t> bytes_read_{0};
  LocalCopies local_;
  std::unique_ptr<SliceCache> cache_;  // null: nothing is kept
  ServedFiles served_;
  std::mutex mutex_;
  wire::Digest headers_digest_{};
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
