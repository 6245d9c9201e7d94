// See slice_pull.h. Work is cut into runs of neighbouring units of one tensor. A thread fetches its
// run in order, in chunks, hashing as they come; several threads per source keep the link full.
#include "cluster/weights/slice_pull.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>

#include "base/digest.h"
#include "base/errors.h"
#include "base/thread_name.h"

namespace moesaic::cluster {
namespace {

using namespace std::chrono_literals;

constexpr std::uint64_t kChunkBytes = std::uint64_t{4} << 20;  // RELIABILITY, transport rule 4
// What is on its way when a worker is killed comes twice. All chunks on their way together are at
// most 1/kChunkParts of the slice, so that some kills later it is still below 1.02 times the slice.
constexpr std::uint64_t kChunkParts = 400;
constexpr std::uint64_t kLeastChunkBytes = std::uint64_t{64} << 10;
constexpr std::uint64_t kRunBytes = std::uint64_t{8} << 20;
constexpr std::size_t kThreadsPerSource = 4;
constexpr std::size_t kMaxSources = 4;  // at once; more only wait for the same link
constexpr int kMaxFailures = 3;         // of a source in a row, before it is left alone
constexpr std::uint64_t kMaxHeadersBytes = std::uint64_t{1} << 28;
constexpr auto kReportEvery = 50ms;
constexpr auto kAskAgain = 50ms;  // a source that makes its identity

struct Run {
  std::size_t first = 0;  // unit of the layout
  std::size_t count = 0;
  std::uint64_t refused_by = 0;  // bit per source that does not have it
  std::uint64_t avoids = 0;      // bit per source that sent it wrong, while others may be asked

  bool may_come_from(std::size_t s) const { return ((refused_by | avoids) >> s & 1) == 0; }
};

[[noreturn]] void no_source_has(const std::string& name, const std::vector<std::string>& failures) {
  std::string text;
  for (const std::string& failure : failures) text += (text.empty() ? "" : "; ") + failure;
  fail<IoError>("[weights] ", name,
                ": no source has it: ", text.empty() ? "there are none to ask" : text);
}

class Puller {
 public:
  explicit Puller(const PullJob& job) : job_(job), layout_(*job.layout), target_(*job.target) {
    for (const SourceManifest& found : job.manifests->found) {
      if (sources_.size() < kMaxSources) sources_.push_back({&found});
      // From any source: what proves itself is right.
      UnitDigests claimed;
      for (const wire::UnitDigest& unit : found.manifest.units) {
        claimed[{unit.tensor, unit.expert}] = unit.sha256;
      }
      digests_.merge(proven_units(*layout_.directory, *job.content, claimed));
    }
    attempts_.resize(layout_.units.size());
  }

  void run() {
    cut(job_.units);
    if (runs_.empty()) return;
    const std::string& name = layout_.directory->paths()[0];
    if (sources_.empty()) no_source_has(name, job_.manifests->failures);
    for (const std::size_t unit : job_.units) {
      if (digests_.contains(layout_.units[unit])) continue;
      fail<IoError>("[weights] ", name, ": no source has ",
                    unit_name(*layout_.directory, layout_.units[unit]),
                    " of the model that is asked for (fingerprint ",
                    short_hex(job_.content->identity), "): they hold other weights, or none");
    }
    std::vector<std::jthread> threads;
    const int n_each = static_cast<int>(std::min<std::size_t>(runs_.size(), kThreadsPerSource));
    running_ = static_cast<int>(sources_.size()) * n_each;
    chunk_bytes_ =
        std::clamp(layout_.weights_bytes / (kChunkParts * static_cast<unsigned>(running_)),
                   kLeastChunkBytes, kChunkBytes);
    for (std::size_t s = 0; s < sources_.size(); ++s) {
      for (int i = 0; i < n_each; ++i) {
        threads.emplace_back([this, s] {
          name_this_thread("moesaic-pull");
          work(s);
        });
      }
    }
    wait();
    threads.clear();  // joins them
    if (error_) std::rethrow_exception(error_);
  }

 private:
  struct Source {
    const SourceManifest* found = nullptr;
    int failures = 0;  // in a row
    bool lost = false;
    std::string name() const { return found->source->name(); }
  };
  enum class Outcome { kDone, kRetry };

  void cut(const std::vector<std::size_t>& units) {
    for (const std::size_t unit : units) {
      Run* last = runs_.empty() ? nullptr : &runs_.back();
      const std::uint64_t n_bytes = layout_.range(unit).n_bytes;
      // One that has begun can only be gone on with at the start of a run.
      if (last != nullptr && last->first + last->count == unit &&
          target_.beginning(unit).n_bytes == 0 &&
          layout_.units[last->first].tensor == layout_.units[unit].tensor &&
          (last->count + 1) * n_bytes <= kRunBytes) {
        ++last->count;
      } else {
        runs_.push_back({.first = unit, .count = 1});
      }
    }
    left_ = runs_.size();
  }

  void work(std::size_t s) {
    try {
      while (std::optional<Run> run = take(s)) fetch_run(s, *run);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!error_) error_ = std::current_exception();
      stop_.set();
      changed_.notify_all();
    }
    const std::lock_guard lock(mutex_);
    --running_;
    changed_.notify_all();
  }

  // The next run that this source may have; waits while others may still give some back. Nothing:
  // all is done, or the source is lost.
  std::optional<Run> take(std::size_t s) {
    std::unique_lock lock(mutex_);
    for (;;) {
      if (left_ == 0 || stop_.is_set() || sources_[s].lost) return std::nullopt;
      for (auto run = runs_.begin(); run != runs_.end(); ++run) {
        if (!run->may_come_from(s)) continue;
        const Run taken = *run;
        runs_.erase(run);
        return taken;
      }
      changed_.wait(lock);
    }
  }

  // A run that could not be fetched, as far as it is not done.
  void give_back(const Run& run, const std::string& why) {
    const std::lock_guard lock(mutex_);
    last_failure_ = why;
    runs_.push_front(run);
    changed_.notify_all();
    // Also for runs that wait for a source that has been lost since.
    for (Run& waiting : runs_) {
      if (anybody_has(waiting)) continue;
      waiting.avoids = 0;
      if (!anybody_has(waiting)) fail_with(waiting);
    }
  }

  bool anybody_has(const Run& run) const {
    for (std::size_t s = 0; s < sources_.size(); ++s) {
      if (!sources_[s].lost && run.may_come_from(s)) return true;
    }
    return false;
  }

  [[noreturn]] void fail_with(const Run& run) {
    for (const Source& source : sources_) {
      if (source.lost && last_error_) std::rethrow_exception(last_error_);
    }
    fail<IoError>("[weights] ", layout_.directory->paths()[0], ": nobody who can be asked has ",
                  unit_name(*layout_.directory, layout_.units[run.first]),
                  "; the last said: ", last_failure_);
  }

  void fetch_run(std::size_t s, Run run) {
    try {
      while (run.count > 0 && fetch_units(s, run) == Outcome::kRetry) {
      }
      const std::lock_guard lock(mutex_);
      sources_[s].failures = 0;
      if (--left_ == 0) changed_.notify_all();
      return;
    } catch (const OutOfMemoryError&) {
      throw;
    } catch (const CancelledError&) {
      throw;
    } catch (const BadUnit& bad) {
      reject(s, run, bad);
    } catch (const IoError& error) {  // it does not have this tensor
      run.refused_by |= std::uint64_t{1} << s;
      give_back(run, strcat(sources_[s].name(), ": ", error.what()));
    } catch (const Error& error) {  // the link, or what it said
      note_failure(s);
      give_back(run, strcat(sources_[s].name(), ": ", error.what()));
    }
  }

  struct BadUnit {
    std::size_t unit = 0;
    std::string text;
  };

  // From each other source that has it, then once more; then it is an error. One of several sources
  // that sends wrong bytes again and again holds another model, and is left alone.
  void reject(std::size_t s, Run run, const BadUnit& bad) {
    bool too_often = false;
    {
      const std::lock_guard lock(mutex_);
      too_often = ++attempts_[bad.unit] > sources_.size();
    }
    if (too_often) fail<FormatError>(bad.text);
    target_.drop_beginning(bad.unit);
    run.avoids |= std::uint64_t{1} << s;
    if (sources_.size() > 1) {
      try {
        fail<FormatError>(bad.text);
      } catch (const FormatError&) {
        note_failure(s);
      }
    }
    give_back(run, bad.text);
  }

  void note_failure(std::size_t s) {
    const std::lock_guard lock(mutex_);
    last_error_ = std::current_exception();
    if (++sources_[s].failures >= kMaxFailures) sources_[s].lost = true;
  }

  // Fetches the run's units in order, the first one from where it is, and takes finished ones off
  // the run. kRetry: the target has moved under the current unit.
  Outcome fetch_units(std::size_t s, Run& run) {
    const UnitKey first = layout_.units[run.first];
    const std::uint64_t n_unit = layout_.range(run.first).n_bytes;
    const std::uint64_t begin = first.expert * n_unit;  // in the tensor
    const std::uint64_t end = begin + run.count * n_unit;
    const std::uint64_t file_offset = layout_.range(run.first).offset;
    std::uint64_t moves = target_.moves();
    const Sha256State there = target_.beginning(run.first);
    std::uint64_t unit_left = n_unit - there.n_bytes;
    Sha256 sha(there);
    for (std::uint64_t at = begin + there.n_bytes; at < end;) {
      const std::vector<std::uint8_t> chunk =
          fetch(s, first.tensor, at, std::min(chunk_bytes_, end - at));
      target_.write(file_offset + (at - begin), chunk);
      at += chunk.size();
      for (std::span<const std::uint8_t> rest(chunk); !rest.empty();) {
        const std::size_t n = std::min<std::uint64_t>(rest.size(), unit_left);
        sha.update(rest.data(), n);
        rest = rest.subspan(n);
        unit_left -= n;
        if (unit_left > 0) continue;
        if (!end_unit(s, run, sha, moves)) return Outcome::kRetry;
        unit_left = n_unit;
        // The chunk's rest, written before this unit was finished, counts as the next unit's: a
        // move in between is seen by its finish_unit, for `moves` is as old as the write.
      }
      if (unit_left == n_unit) {
        moves = target_.moves();
      } else if (!target_.note_beginning(run.first, sha.state(), moves)) {
        return Outcome::kRetry;
      }
    }
    return Outcome::kDone;
  }

  // False: it is lost.
  bool end_unit(std::size_t s, Run& run, Sha256& sha, std::uint64_t moves) {
    const wire::Digest digest = sha.finish();
    check(s, run.first, digest);
    if (!target_.finish_unit(run.first, digest, moves)) return false;
    ++run.first;
    --run.count;
    return true;
  }

  std::vector<std::uint8_t> fetch(std::size_t s, std::uint32_t tensor, std::uint64_t offset,
                                  std::uint64_t n_bytes) {
    stop_.check();
    wire::BlobRequest request;
    request.identity = job_.content->identity;
    request.tensor = tensor;
    request.offset = offset;
    request.n_bytes = n_bytes;
    std::vector<std::uint8_t> chunk = sources_[s].found->source->fetch(request, &stop_);
    *job_.n_bytes += chunk.size();
    if (chunk.size() != n_bytes) {
      fail<ProtocolError>("[weights] ", sources_[s].name(), ": sent ", chunk.size(),
                          " bytes of weights, asked for ", n_bytes);
    }
    return chunk;
  }

  void check(std::size_t s, std::size_t unit, const wire::Digest& digest) const {
    const wire::Digest& known = digests_.at(layout_.units[unit]);
    if (known == digest) return;
    throw BadUnit{unit, strcat("[weights] ", layout_.directory->paths()[0], ": ",
                               unit_name(*layout_.directory, layout_.units[unit]), " from ",
                               sources_[s].name(), " has digest ", short_hex(digest),
                               ", the model that is asked for (fingerprint ",
                               short_hex(job_.content->identity), ") has ", short_hex(known),
                               ": its file is damaged, or another one with equal headers")};
  }

  void wait() {
    std::unique_lock lock(mutex_);
    auto report_at = std::chrono::steady_clock::now() + kReportEvery;
    while (running_ > 0) {
      changed_.wait_until(lock, report_at);
      const bool cancelled = job_.cancel != nullptr && job_.cancel->is_set();
      if (cancelled && !error_)
        error_ = std::make_exception_ptr(CancelledError("cancelled by the caller"));
      if (cancelled || error_) {
        stop_.set();
        changed_.notify_all();
      }
      if (std::chrono::steady_clock::now() < report_at) continue;
      report_at += kReportEvery;
      if (!job_.progress || error_) continue;
      lock.unlock();
      std::exception_ptr thrown;
      try {
        job_.progress();
      } catch (...) {
        thrown = std::current_exception();
      }
      lock.lock();
      if (thrown && !error_) error_ = thrown;
    }
    if (!error_ && left_ > 0) {  // every source was lost
      error_ = last_error_ ? last_error_ : std::make_exception_ptr(IoError(last_failure_));
    }
  }

  const PullJob& job_;
  const SliceLayout& layout_;
  SliceTarget& target_;
  std::vector<Source> sources_;
  UnitDigests digests_;  // proven by the content
  std::mutex mutex_;
  std::condition_variable changed_;
  std::uint64_t chunk_bytes_ = kChunkBytes;
  std::deque<Run> runs_;               // not taken
  std::size_t left_ = 0;               // runs not done
  std::vector<std::size_t> attempts_;  // by unit: how often it did not give its digest
  int running_ = 0;                    // threads
  CancelFlag stop_;
  std::exception_ptr error_;
  std::exception_ptr last_error_;  // of a link
  std::string last_failure_;
};

std::vector<std::uint8_t> fetch_headers(const SourceManifest& from, const CancelFlag* cancel,
                                        std::atomic<std::uint64_t>* n_bytes) {
  const std::uint64_t total = from.manifest.header_bytes;
  if (total == 0 || total > kMaxHeadersBytes) {
    fail<ProtocolError>("[weights] ", from.source->name(), ": claims ", total,
                        " bytes of headers, need 1 to ", kMaxHeadersBytes);
  }
  std::vector<std::uint8_t> headers;  // grows with what comes, not with what is claimed
  while (headers.size() < total) {
    wire::BlobRequest request;
    request.identity = from.manifest.identity;
    request.tensor = wire::kHeaderTensor;
    request.offset = headers.size();
    request.n_bytes = std::min<std::uint64_t>(kChunkBytes, total - headers.size());
    const std::vector<std::uint8_t> chunk = from.source->fetch(request, cancel);
    *n_bytes += chunk.size();
    if (chunk.size() != request.n_bytes) {
      fail<ProtocolError>("[weights] ", from.source->name(), ": sent ", chunk.size(),
                          " bytes of headers, asked for ", request.n_bytes);
    }
    headers.insert(headers.end(), chunk.begin(), chunk.end());
  }
  return headers;
}

// Asks again until the source has made its identity.
std::optional<wire::Manifest> ask_manifest(BlobSource& source, const Content& content,
                                           const std::string& name, const CancelFlag* cancel,
                                           const ManifestProgress& progress) {
  wire::ManifestRequest request;
  request.identity = content.identity;
  request.headers = content.headers;
  request.name = name;
  request.want_header = true;
  for (;;) {
    std::optional<wire::Manifest> manifest = source.manifest(request, cancel);
    if (!manifest) return std::nullopt;
    if (content.is_known()) {
      if (manifest->identity == content.identity) return manifest;
      fail<ProtocolError>("[weights] ", source.name(), ": told of another model than it was asked");
    }
    if (manifest->identity != wire::Digest{}) {
      if (is_consistent({manifest->identity, manifest->headers, manifest->tensors})) {
        return manifest;
      }
      fail<ProtocolError>("[weights] ", source.name(), ": its digests contradict each other");
    }
    if (manifest->total_bytes == 0) {
      fail<ProtocolError>("[weights] ", source.name(), ": told of a model without identity");
    }
    if (progress) progress(source, *manifest);
    for (auto left = kAskAgain; left.count() > 0; left -= kAskAgain / 5) {
      if (cancel != nullptr) cancel->check();
      std::this_thread::sleep_for(kAskAgain / 5);
    }
  }
}

}  // namespace

Manifests ask_manifests(const std::vector<std::shared_ptr<BlobSource>>& sources,
                        const Content& content, const std::string& name, const CancelFlag* cancel,
                        const ManifestProgress& progress) {
  struct Answer {
    std::optional<wire::Manifest> manifest;
    std::string failure;
  };
  std::vector<Answer> answers(sources.size());
  std::vector<std::jthread> threads;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        answers[i].manifest = ask_manifest(*sources[i], content, name, cancel, progress);
        if (!answers[i].manifest) answers[i].failure = "does not have it";
      } catch (const std::exception& error) {
        answers[i].failure = error.what();
      }
    });
  }
  threads.clear();  // joins them
  if (cancel != nullptr) cancel->check();
  Manifests manifests;
  for (std::size_t i = 0; i < sources.size(); ++i) {
    if (answers[i].manifest) {
      manifests.found.push_back({sources[i], std::move(*answers[i].manifest)});
    } else {
      manifests.failures.push_back(strcat(sources[i]->name(), ": ", answers[i].failure));
    }
  }
  return manifests;
}

std::shared_ptr<const gguf::File> pull_headers(const Manifests& manifests,
                                               const wire::Digest& headers, const std::string& name,
                                               const CancelFlag* cancel,
                                               std::atomic<std::uint64_t>* n_bytes) {
  std::vector<std::string> failures = manifests.failures;
  for (const SourceManifest& from : manifests.found) {
    try {
      const auto fetched = fetch_headers(from, cancel, n_bytes);
      auto file = gguf::File::from_headers(fetched, name);
      const bool any = headers == wire::Digest{};
      if (header_identity(*file) == (any ? from.manifest.headers : headers)) return file;
      failures.push_back(strcat(from.source->name(), ": sent headers of another identity"));
    } catch (const CancelledError&) {
      throw;
    } catch (const Error& error) {
      failures.push_back(strcat(from.source->name(), ": ", error.what()));
    }
  }
  no_source_has(name, failures);
}

void pull_units(const PullJob& job) { Puller(job).run(); }

}  // namespace moesaic::cluster
