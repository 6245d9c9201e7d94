// What callers say to running requests, and how requests end: their tokens, their sequences, their
// last word to the caller.
#include <algorithm>
#include <utility>

#include "engine/core.h"
#include "model/run/sampler.h"

namespace moesaic::engine {
namespace {

// A lost worker's error tells its reader how far the generation had come.
std::exception_ptr with_tokens(std::exception_ptr error, const Active& active) {
  if (!error) return error;
  try {
    std::rethrow_exception(error);
  } catch (const WorkerLost& lost) {
    return std::make_exception_ptr(
        WorkerLost(lost.what(), lost.node, lost.layers,
                   {active.tokens.end() - static_cast<std::ptrdiff_t>(active.n_generated),
                    active.tokens.end()}));
  } catch (...) {
    return error;
  }
}

}  // namespace

Active* Core::find(const Request& request) {
  for (std::vector<Active>* list : {&active_, &preempted_}) {
    for (Active& active : *list) {
      if (active.request.get() == &request) return &active;
    }
  }
  return nullptr;
}

void Core::choose(Request& request, std::vector<float> row) {
  Active* const found = find(request);
  if (found == nullptr || !found->awaiting_choice) return;  // it has ended meanwhile
  found->awaiting_choice = false;
  const model::SamplerSpec& sampler = found->spec().generate->sampler;
  try {
    accept(*found,
           model::sample(row, sampler, found->size(), model::looked_back(sampler, found->tokens)));
  } catch (...) {
    finish(*found, Finish::kFailed, std::current_exception());
  }
  erase_finished();
}

void Core::end_at(Request& request, std::int64_t n_generated) {
  Active* const found = find(request);
  if (found == nullptr || !found->spec().generate) {  // it waits still, or has ended
    request.mark_cancelled();
    return;
  }
  const std::int64_t keep =
      found->prompt_end + std::clamp<std::int64_t>(n_generated, 0, found->n_generated);
  found->tokens.resize(static_cast<std::size_t>(keep));
  found->n_generated = keep - found->prompt_end;
  if (found->cached > keep) {
    cut(found->sequence, keep);
    found->cached = keep;
  }
  found->delivered = std::min(found->delivered, keep);
  found->awaiting_choice = false;
  conclude(*found, Finish::kDone);
  erase_finished();
}

void Core::accept(Active& active, model::Sampled sampled) {
  const GenerateSpec& generate = *active.spec().generate;
  if (std::find(generate.stop_tokens.begin(), generate.stop_tokens.end(), sampled.token) !=
      generate.stop_tokens.end()) {
    active.outcome.stop_token = sampled.token;
    conclude(active, Finish::kStopToken);
    return;
  }
  active.tokens.push_back(sampled.token);
  ++active.n_generated;
  active.request->publish_token(std::move(sampled));
  if (active.n_generated >= generate.max_tokens || active.size() >= limit_) {
    conclude(active, Finish::kLength);
  }
}

// A session keeps all tokens of a generation, so the last one is run as well before it ends.
void Core::conclude(Active& active, Finish how) {
  if (active.spec().session && active.cached < active.size()) {
    active.ending = how;
  } else {
    finish(active, how);
  }
}

void Core::finish(Active& active, Finish how, std::exception_ptr error) noexcept {
  if (active.outcome.finish != Finish::kNone) return;
  active.outcome.finish = how;
  try {
    active.outcome.error = with_tokens(error, active);
  } catch (...) {  // no memory for the tokens
    active.outcome.error = error;
  }
  active.outcome.timings.finished = Clock::now();
  try {
    release_sequence(active, how);
  } catch (...) {
    if (!active.outcome.error) active.outcome.error = std::current_exception();
  }
  {
    const std::scoped_lock lock(mutex_);
    --n_open_;
    if (!active.preempted) --stats_.active;
  }
  active.request->publish_end(std::move(active.outcome));
  active.outcome = {};
  active.outcome.finish = how;
}

// Start is authoritative, so rows past n may be there or not; a Runner is asked only to drop.
void Core::cut(model::SequenceId sequence, std::int64_t n_tokens) {
  if (runner_->length(sequence) > n_tokens) runner_->truncate(sequence, n_tokens);
}

void Core::release_sequence(Active& active, Finish how) {
  const bool failed = how == Finish::kFailed || how == Finish::kCancelled;
  if (const auto& session = active.spec().session) {
    bool closed = false;
    {
      const std::scoped_lock lock(session->mutex);
      if (session->writer.lock() == active.request) session->writer.reset();
      closed = session->closed;
      if (!closed && !failed) session->tokens = std::move(active.tokens);
    }
    if (closed) {
      give_back(*session);
    } else if (failed) {
      cut(active.sequence, active.start);  // all or nothing
    }
    return;
  }
  if (active.sequence == 0) return;
  if (!active.spec().reuse || how == Finish::kFailed) {
    runner_->close(active.sequence);
    return;
  }
  cut(active.sequence, active.cached);
  active.tokens.resize(static_cast<std::size_t>(active.cached));
  remember_prefix(active.sequence, std::move(active.tokens));
}

// Into the cache of finished sequences, or closed where that has no memory for it.
void Core::remember_prefix(model::SequenceId sequence, std::vector<std::int32_t> tokens) {
  std::vector<model::SequenceId> closed;
  try {
    closed = cache_.insert(sequence, std::move(tokens));
  } catch (const std::bad_alloc&) {  // nothing has changed
    runner_->close(sequence);
  }
  for (const model::SequenceId id : closed) runner_->close(id);
}

void Core::erase_finished() {
  const auto ended = [](const Active& active) { return active.outcome.finish != Finish::kNone; };
  std::erase_if(active_, ended);
  std::erase_if(preempted_, ended);
}

}  // namespace moesaic::engine
