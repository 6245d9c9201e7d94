// The public face: checks what callers give (in their own thread, before anything is queued) and
// hands it to the core.
#include "engine/engine.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "base/aligned_buffer.h"
#include "engine/core.h"
#include "model/run/sampler.h"

namespace moesaic::engine {
namespace {

EngineFacts read_facts(const model::Runner& runner) {
  EngineFacts facts;
  facts.config = runner.config();
  facts.memory = runner.memory();
  facts.n_ctx = runner.n_ctx();
  facts.kv_tokens = runner.kv_tokens();
  facts.page_tokens = runner.page_tokens();
  facts.max_step_rows = runner.max_step_rows();
  facts.kv_token_bytes = runner.kv_token_bytes();
  facts.identity = runner.identity();
  facts.capture_names = runner.capture_names();
  return facts;
}

void check_tokens(const RequestSpec& spec, const EngineFacts& facts) {
  if (spec.tokens.empty()) {
    fail<ArgumentError>("[", spec.where, "] tokens: got none, need at least one");
  }
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) {
    if (spec.tokens[i] < 0 || spec.tokens[i] >= facts.config.vocab) {
      fail<ArgumentError>("[", spec.where, "] tokens[", i, "]: got ", spec.tokens[i],
                          ", need 0 to ", facts.config.vocab - 1, " (the vocabulary)");
    }
  }
}

void check_length(const RequestSpec& spec, std::int64_t start, const EngineFacts& facts) {
  const auto n = static_cast<std::int64_t>(spec.tokens.size());
  if (start + n > facts.n_ctx) {
    const std::string held = start > 0 ? strcat(" after the session's ", start) : std::string();
    fail<ArgumentError>("[", spec.where, "] tokens: got ", n, held,
                        ", need at most n_ctx = ", facts.n_ctx,
                        " in one sequence; load the model with n_ctx=", start + n,
                        " or more, or shorten the prompt");
  }
  if (start + n > facts.kv_tokens) {
    const std::uint64_t per_token =
        facts.memory.kv_bytes /
        static_cast<std::uint64_t>(std::max<std::int64_t>(1, facts.kv_tokens));
    throw OutOfMemoryError(
        strcat("[", spec.where, "] KV cache: ", start + n, " tokens need more than the pool's ",
               facts.kv_tokens, "; load the model with kv_tokens=", start + n, " or more"),
        per_token * static_cast<std::uint64_t>(start + n), facts.memory.kv_bytes);
  }
}

void check_wishes(const RequestSpec& spec, const EngineFacts& facts) {
  for (const std::string& name : spec.capture) {
    const auto& known = facts.capture_names;
    if (std::find(known.begin(), known.end(), name) == known.end()) {
      fail<ArgumentError>("[", spec.where, "] capture: got \"", name,
                          "\", which this model does not have; see Model.capture_names");
    }
  }
  const auto n = static_cast<std::int64_t>(spec.tokens.size());
  for (const model::Target& target : spec.targets) {
    if (target.row < 0 || target.row >= n || target.token < 0 ||
        target.token >= facts.config.vocab) {
      fail<ArgumentError>("[", spec.where, "] target: got row ", target.row, ", token ",
                          target.token, ", need a row below ", n, " and a token below ",
                          facts.config.vocab);
    }
  }
  if (spec.generate) {
    model::validate(spec.generate->sampler, facts.config.vocab);
    if (spec.generate->max_tokens < 0) {
      fail<ArgumentError>("[", spec.where, "] max_tokens: got ", spec.generate->max_tokens,
                          ", need 0 or more");
    }
  }
}

// What comes back must fit; small results are not worth asking the system.
void check_results(const RequestSpec& spec, const EngineFacts& facts) {
  const model::Config& config = facts.config;
  std::int64_t width = spec.logits == model::Logits::kAll ? config.vocab : 0;
  for (const std::string& name : spec.capture) {
    if (name.ends_with("router.logits")) {
      width += config.moe.n_experts;
    } else if (name.ends_with("router.experts") || name.ends_with("router.weights")) {
      width += config.moe.n_active;
    } else {
      width += name == "logits" ? config.vocab : config.d_model;
    }
  }
  constexpr std::uint64_t kAlwaysFits = std::uint64_t{64} << 20U;
  const std::uint64_t bytes = static_cast<std::uint64_t>(width) * spec.tokens.size() * 4;
  if (bytes <= kAlwaysFits) return;
  const std::uint64_t free = available_memory_bytes();
  if (bytes > free) {
    throw OutOfMemoryError(
        strcat("[", spec.where, "] logits and captures of ", spec.tokens.size(), " positions need ",
               bytes, " bytes, free are ", free,
               "; capture fewer names, run fewer tokens at a time in a session, ask for "
               "logits=\"last\", or use score()"),
        bytes, free);
  }
}

// Sessions get their writers one by one; on an error the marks so far are taken back.
class WriterMarks {
 public:
  ~WriterMarks() {
    for (const auto& session : marked_) {
      const std::scoped_lock lock(session->mutex);
      session->writer.reset();
    }
  }
  // Returns the session's length.
  std::int64_t mark(const std::shared_ptr<Request>& request) {
    const RequestSpec& spec = request->spec();
    marked_.reserve(marked_.size() + 1);
    const std::scoped_lock lock(spec.session->mutex);
    if (spec.session->closed) {
      fail<ClosedError>("[", spec.where, "] session: it is closed; make a new one");
    }
    // A cancelled writer is gone before this request can start.
    const auto writer = spec.session->writer.lock();
    if (writer && !writer->cancelled()) {
      fail<ArgumentError>("[", spec.where,
                          "] session: another call is writing to it, need one writer at a time; "
                          "use fork() for a second one");
    }
    spec.session->writer = request;
    marked_.push_back(spec.session);
    return static_cast<std::int64_t>(spec.session->tokens.size());
  }
  void keep() { marked_.clear(); }

 private:
  std::vector<std::shared_ptr<SessionState>> marked_;
};

}  // namespace

Engine::Engine(std::unique_ptr<model::Runner> runner, const EngineOptions& options)
    : facts_(read_facts(*runner)), pid_(::getpid()) {
  core_ = std::make_unique<Core>(std::move(runner), options, facts_);
}

Engine::~Engine() {
  if (::getpid() != pid_) {
    // The thread, and whoever held its locks, stayed in the parent: destroying would wait for it.
    static_cast<void>(core_.release());
    return;
  }
  core_.reset();
}

void Engine::close() {
  if (::getpid() == pid_) core_->close();
}

bool Engine::closed() const { return ::getpid() != pid_ || core_->closed(); }

void Engine::check_usable(const std::string& where) const {
  if (::getpid() != pid_) {
    fail<ClosedError>("[", where, "] model: it was loaded in process ", pid_,
                      " and this is a child made by fork(), which has none of its threads; load "
                      "the model in the child, or use the \"spawn\" start method");
  }
  if (core_->closed()) fail<ClosedError>("[", where, "] model: it is closed; load it again");
}

EngineStats Engine::stats() const {
  check_usable("Model.stats");
  return core_->stats();
}

std::vector<std::shared_ptr<Request>> Engine::submit(std::vector<RequestSpec> specs,
                                                     const std::shared_ptr<Channel>& channel) {
  WriterMarks marks;
  std::vector<std::shared_ptr<Request>> requests;
  requests.reserve(specs.size());
  channel->reserve(specs.size());
  for (RequestSpec& spec : specs) {
    check_usable(spec.where);
    check_tokens(spec, facts_);
    check_wishes(spec, facts_);
    check_results(spec, facts_);
    requests.push_back(std::make_shared<Request>(std::move(spec), channel, requests.size()));
    const auto& request = requests.back();
    check_length(request->spec(), request->spec().session ? marks.mark(request) : 0, facts_);
  }
  core_->enqueue(requests);
  marks.keep();
  return requests;
}

void Engine::cancel(const std::shared_ptr<Request>& request) {
  if (::getpid() == pid_) core_->cancel(*request);
}

void Engine::choose(const std::shared_ptr<Request>& request, std::vector<float> row) {
  check_usable(request->spec().where);
  if (static_cast<std::int64_t>(row.size()) != facts_.config.vocab) {
    fail<ArgumentError>("[", request->spec().where, "] logits: got ", row.size(), " values, need ",
                        facts_.config.vocab);
  }
  core_->post([core = core_.get(), request, row = std::move(row)]() mutable {
    core->choose(*request, std::move(row));
  });
}

void Engine::end_at(const std::shared_ptr<Request>& request, std::int64_t n_generated) {
  if (::getpid() != pid_) return;
  core_->post([core = core_.get(), request, n_generated] { core->end_at(*request, n_generated); });
}

std::future<std::shared_ptr<SessionState>> Engine::open_session() {
  check_usable("Model.session");
  return core_->call([core = core_.get()] { return core->open_session(); });
}

std::future<std::shared_ptr<SessionState>> Engine::fork_session(
    const std::shared_ptr<SessionState>& session, std::int64_t n_tokens) {
  check_usable("Session.fork");
  return core_->call(
      [core = core_.get(), session, n_tokens] { return core->fork_session(*session, n_tokens); });
}

void Engine::abandon(std::future<std::shared_ptr<SessionState>> session) {
  if (::getpid() != pid_) return;
  // Commands run in order: by then the session is there, or what it failed with.
  core_->post([core = core_.get(), future = session.share()] {
    try {
      core->close_session(*future.get());
    } catch (...) {  // there is none
    }
  });
}

std::future<void> Engine::truncate_session(const std::shared_ptr<SessionState>& session,
                                           std::int64_t n_tokens) {
  check_usable("Session.truncate");
  return core_->call(
      [core = core_.get(), session, n_tokens] { core->truncate_session(*session, n_tokens); });
}

void Engine::close_session(const std::shared_ptr<SessionState>& session) noexcept {
  if (::getpid() != pid_) return;  // its mutex may be held by a thread that is not here
  try {
    {
      const std::scoped_lock lock(session->mutex);
      if (std::exchange(session->closed, true)) return;
    }
    core_->post([core = core_.get(), session] { core->close_session(*session); });
  } catch (...) {  // out of memory for the command: the sequence stays until the engine closes
  }
}

std::future<Engine::SavedSession> Engine::save_session(const std::shared_ptr<SessionState>& session,
                                                       std::shared_ptr<CancelFlag> cancel) {
  check_usable("Session.save");
  return core_->call([core = core_.get(), session, cancel = std::move(cancel)] {
    return core->save_session(*session, *cancel);
  });
}

std::future<std::shared_ptr<SessionState>> Engine::load_session(
    SavedSession saved, std::shared_ptr<CancelFlag> cancel) {
  check_usable("Model.load_session");
  return core_->call([core = core_.get(), kept = std::make_shared<SavedSession>(std::move(saved)),
                      cancel = std::move(cancel)] { return core->load_session(*kept, *cancel); });
}

std::future<void> Engine::clear_cache() {
  check_usable("Model.clear_cache");
  return core_->call([core = core_.get()] { core->clear_cache(); });
}

}  // namespace moesaic::engine
