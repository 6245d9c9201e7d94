// How a deployment gets its slice: held already, or opened, proven, mapped and read; with the
// memory counted before any of it is taken.
#include <algorithm>

#include "base/aligned_buffer.h"
#include "base/failpoint.h"
#include "cluster/step/step_messages.h"
#include "cluster/weights/amounts.h"
#include "cluster/weights/blob_source.h"
#include "cluster/worker/deployment.h"
#include "model/run/memory.h"

namespace moesaic::cluster {
namespace {

using failpoint::Site;

constexpr std::chrono::seconds kSayAgain{1};
// Deployments whose coordinator is gone end within a layer, unless their thread stands still.
constexpr std::chrono::seconds kFreeingPatience{10};
// No layer takes so long, from the slowest disk: the turn will not be given back.
constexpr std::chrono::minutes kStuck{10};

backend::KvType kv_type_from_wire(std::uint8_t value) {
  if (value > static_cast<std::uint8_t>(backend::KvType::kQ8_0)) {
    fail<ProtocolError>("[load] kv_type: got ", int{value}, ", which this release does not know");
  }
  return static_cast<backend::KvType>(value);
}

model::LoadOptions load_options(const wire::Load& load, const WorkerOptions& worker) {
  model::LoadOptions options;
  options.n_ctx = load.n_ctx;
  options.kv_tokens = load.kv_tokens;
  options.deterministic = load.deterministic;
  options.backend = worker.backend;
  options.threads = worker.threads;
  options.kv_type = kv_type_from_wire(load.kv_type);
  options.max_step_rows = load.max_step_rows;
  options.overrides = from_wire(load.overrides);
  options.where = "Cluster.load";
  model::validate(options);
  if (options.kv_tokens < options.n_ctx) {
    fail<ProtocolError>("[load] kv_tokens: got ", options.kv_tokens, ", need at least n_ctx, ",
                        options.n_ctx);
  }
  return options;
}

model::Slice slice_of(const wire::Load& load) {
  const std::size_t n = load.stages.size();
  if (n == 0 || load.stage >= n) {
    fail<ProtocolError>("[load] stage: got ", load.stage, " of ", n);
  }
  std::int64_t next = 0;
  for (const wire::Stage& stage : load.stages) {
    if (stage.layer_begin != next || stage.layer_end <= stage.layer_begin) {
      fail<ProtocolError>("[load] stages: got layers ", stage.layer_begin, " to ", stage.layer_end,
                          ", need them from ", next, " on, at least one");
    }
    next = stage.layer_end;
  }
  const wire::Stage& own = load.stages[load.stage];
  return {own.layer_begin, own.layer_end, load.stage == 0, load.stage + 1 == n};
}

}  // namespace

void Deployment::report(std::uint64_t done, std::uint64_t total, const char* what) {
  const auto now = std::chrono::steady_clock::now();
  bytes_loaded_ = done;
  ++units_done_;
  if (now - reported_ < std::chrono::milliseconds(50) && done != total) return;
  reported_ = now;
  tell_coordinator(wire::LoadProgress{load_.request, done, total, what});
}

std::vector<std::shared_ptr<BlobSource>> Deployment::sources() const {
  std::vector<std::shared_ptr<BlobSource>> sources;
  for (const std::string& address : load_.sources) {
    if (address.empty()) {
      sources.push_back(coordinator_source_);
    } else if (address != load_.stages[load_.stage].address) {
      net::LinkOptions options = host_.link_options();
      options.role = wire::Role::kObserver;  // asks for bytes and nothing else
      sources.push_back(std::make_shared<PeerSource>(host_.net(), options, address));
    }
  }
  return sources;
}

void Deployment::report_waiting(const char* what) {
  const auto now = std::chrono::steady_clock::now();
  if (now - reported_ < kSayAgain) return;
  reported_ = now;
  tell_coordinator(wire::LoadProgress{load_.request, 0, 1, what});
}

std::uint64_t Deployment::weights_to_load(const model::MemoryNeed& need,
                                          const SliceKey& key) const {
  return host_.held().find(key) != nullptr ? 0 : need.weights_bytes + need.derived_bytes;
}

bool Deployment::take_memory(const model::MemoryNeed& need, const SliceKey& key, bool evict) {
  const std::scoped_lock lock(host_.memory());
  const std::uint64_t all = host_.memory_bytes();
  const std::uint64_t working = need.kv_bytes + need.scratch_bytes;
  const std::uint64_t weights = weights_to_load(need, key);
  const std::uint64_t taken = working + host_.taken_bytes(epoch_) + weights;
  const std::uint64_t left =
      evict ? host_.held().shrink(all > taken ? all - taken : 0, key) : host_.held().n_bytes();
  if (taken + left > all) return false;
  working_bytes_ = working;
  arriving_bytes_ = weights;
  return true;
}

model::LoadOptions Deployment::reserve(const HeldSlice& slice, model::LoadOptions options) {
  const SliceKey& key = slice.key;
  const auto need_now = [&] {
    return model::memory_need(slice.model, key.slice, options, *slice.backend);
  };
  // Kept keys only save time: no model that is held goes for them.
  if (take_memory(need_now(), key, false)) return options;
  options.kept_tokens = 0;
  const model::MemoryNeed need = need_now();
  // What a coordinator that has just gone had here is on its way out.
  const auto give_up = std::chrono::steady_clock::now() + kFreeingPatience;
  while (true) {
    const bool frees = host_.frees_memory();  // asked first: what ends in between is seen
    if (take_memory(need, key, true)) return options;
    if (!frees || std::chrono::steady_clock::now() > give_up) break;
    report_waiting("waiting for memory that is being freed");
    stop_flag_.check();
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  const std::uint64_t all = host_.memory_bytes();
  const std::uint64_t working = need.kv_bytes + need.scratch_bytes;
  const std::uint64_t weights = weights_to_load(need, key);
  const std::uint64_t used = host_.taken_bytes(epoch_) + host_.held().n_bytes();
  const std::uint64_t free = all > used ? all - used : 0;
  throw OutOfMemoryError(
      strcat("[load] ", load_.name, ", layers ", key.slice.layer_begin, " to ",
             key.slice.layer_end - 1, ": need ", working + weights, " bytes (weights ", weights,
             ", KV cache ", need.kv_bytes, ", scratch ", need.scratch_bytes, "), free are ", free,
             " of ", all,
             "; use a smaller n_ctx or kv_tokens, give this worker fewer layers, or close other "
             "models on it"),
      working + weights, free);
}

Content Deployment::content() const {
  Content content{load_.identity, load_.headers, load_.tensors};
  if (!content.is_known() || !is_consistent(content)) {
    fail<ProtocolError>("[load] ", load_.name, ": its digests do not give its identity");
  }
  return content;
}

// What is held already, if its files still are what was proven, and (verify="always") once more.
// With the lock of loading.
std::shared_ptr<HeldSlice> Deployment::find_held(const SliceKey& key, std::uint64_t& bytes_read) {
  std::shared_ptr<HeldSlice> slice = host_.held().find(key);
  if (!slice) return nullptr;
  try {
    slice->check_files();
    slice->model.file->check_intact();  // a file that was harmed and then replaced by name
  } catch (const Error& error) {
    host_.log({"local", strcat("weights that are held are not used again: ", error.what()), {}});
    host_.held().remove(slice);
    return nullptr;
  }
  if (load_.digests != wire::DigestPolicy::kAlways) return slice;
  constexpr long kUnused = 2;  // this handle and that of the list
  if (slice.use_count() > kUnused) {
    OpenSlice request = slice_request();
    for (const gguf::TensorInfo* tensor : model::slice_tensors(slice->model, key.slice)) {
      request.tensors.push_back(tensor->name);
    }
    const OpenedSlice opened = host_.store().open(request);
    bytes_read += opened.bytes_read;
    if (opened.paths == slice->paths && opened.states == slice->states) return slice;
  }
  host_.held().remove(slice);  // read again, and what is derived from it made again
  return nullptr;
}

OpenSlice Deployment::slice_request() {
  OpenSlice request;
  request.content = content();
  request.name = load_.name;
  request.digests = load_.digests;
  request.sources = sources();
  request.cancel = &stop_flag_;
  request.progress = [this](std::uint64_t done, std::uint64_t total, const char* what) {
    report(done, total, what);
  };
  return request;
}

std::shared_ptr<HeldSlice> Deployment::load_slice(const SliceKey& key,
                                                  const model::LoadOptions& options,
                                                  std::uint64_t& bytes_read) {
  auto slice = std::make_shared<HeldSlice>();
  slice->key = key;
  slice->name = load_.name;
  OpenSlice request = slice_request();
  OpenedSlice headers = host_.store().open(request);
  request.tensors = model::tensors_to_understand(*headers.file);
  if (!request.tensors.empty()) {
    bytes_read += headers.bytes_read;
    headers = host_.store().open(request);
  }
  slice->model = model::understand(headers.file, options.overrides);
  if (load_.stages.back().layer_end != slice->model.config.n_layers) {
    fail<ProtocolError>("[load] stages: got ", load_.stages.back().layer_end, " layers, ",
                        load_.name, " has ", slice->model.config.n_layers);
  }
  slice->backend = backend::make_backend(options.backend, {.n_threads = options.threads});
  reserve(*slice, options);

  for (const gguf::TensorInfo* tensor : model::slice_tensors(slice->model, key.slice)) {
    request.tensors.push_back(tensor->name);
  }
  failpoint::pass(Site::kLoadOpened);
  const OpenedSlice opened = host_.store().open(request);
  bytes_read += headers.bytes_read + opened.bytes_read;
  slice->source = opened.source;
  slice->paths = opened.paths;
  slice->states = opened.states;
  slice->model = model::understand(opened.file, options.overrides);
  slice->bytes = model::weight_bytes(slice->model, key.slice, !key.deterministic);
  slice->weights = model::load_weights(
      *slice->backend, slice->model, key.slice,
      {.decompressed_mla = !key.deterministic,
       .prefault = true,
       .progress = [this](std::uint64_t done, std::uint64_t total) { report(done, total, "map"); },
       .cancel = &stop_flag_});
  failpoint::pass(Site::kLoadMapped);
  const std::scoped_lock lock(host_.memory());
  host_.held().add(slice);  // counted there from now on
  arriving_bytes_ = 0;
  return slice;
}

std::shared_ptr<HeldSlice> Deployment::obtain(const SliceKey& key,
                                              const model::LoadOptions& options,
                                              std::uint64_t& bytes_read) {
  failpoint::pass(Site::kLoadObtain);
  // One load at a time: a second one of the same slice finds it held.
  std::unique_lock lock(host_.loading(), std::defer_lock);
  while (!lock.try_lock()) {  // a timed mutex would do; ThreadSanitizer does not know those
    stop_flag_.check();
    report_waiting("waiting for another load");
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  if (auto slice = find_held(key, bytes_read)) return slice;
  return load_slice(key, options, bytes_read);
}

void Deployment::wait_for_turn() {
  const auto still = host_.turns().still_for();
  if (still > kStuck) {
    fail<DeadlineError>("[load] this worker's compute has not moved for ",
                        std::chrono::duration_cast<std::chrono::seconds>(still).count(),
                        " s: restart the worker");
  }
  report_waiting("waiting for its turn");
}

void Deployment::load() {
  failpoint::pass(Site::kLoadBegin);
  SliceKey key;
  key.identity = content().identity;
  key.slice = slice_of(load_);
  key.deterministic = load_.deterministic;
  key.overrides = model::text_of(from_wire(load_.overrides));
  model::LoadOptions options = load_options(load_, host_.options());
  std::uint64_t bytes_read = 0;
  const auto begin = std::chrono::steady_clock::now();
  std::shared_ptr<HeldSlice> slice = obtain(key, options, bytes_read);
  const model::Config& config = slice->model.config;
  options = reserve(*slice, options);
  {
    // It may enlarge the slice's shared scratch.
    const Turn turn(host_.turns(), &stop_flag_, [this] { wait_for_turn(); });
    failpoint::pass(Site::kLoadStage);
    stage_ = std::make_unique<Stage>(slice, StageOptions{options, load_.hidden});
  }
  payload_limit_ = payload_limit(config, options.max_step_rows);
  coordinator_->set_activation_limit(payload_limit_);
  {
    const std::scoped_lock lock(mutex_);
    held_ = slice;
  }
  failpoint::pass(Site::kLoadDone);
  phase_ = Phase::kIdle;
  ready_ = true;
  const model::MemoryNeed& need = stage_->memory();
  tell_coordinator(wire::Loaded{load_.request, need.weights_bytes, need.derived_bytes,
                                need.kv_bytes, need.scratch_bytes, bytes_read, slice->source});
  const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::steady_clock::now() - begin);
  host_.log({"loaded",
             strcat(load_.name, ", layers ", key.slice.layer_begin, " to ", key.slice.layer_end - 1,
                    " in ", took.count(), " ms (", slice->source, ", ",
                    human_bytes(static_cast<double>(bytes_read)), " read)"),
             {{"model", load_.name},
              {"layers", strcat(key.slice.layer_begin, "-", key.slice.layer_end - 1)},
              {"ms", static_cast<std::int64_t>(took.count())},
              {"bytes_read", static_cast<std::int64_t>(bytes_read)},
              {"source", slice->source}}});
}

}  // namespace moesaic::cluster
