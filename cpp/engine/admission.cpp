// From waiting to active: KV pages are promised before a request starts (for its prompt and all it
// may generate), so that nothing that runs by itself ever lacks one. A generation that asks its
// caller for every token is promised its prompt only and grows as it goes (preempt.cpp): its caller
// may be away for ever. Finished sequences give way first, then requests whose callers are away.
#include <algorithm>
#include <utility>

#include "engine/core.h"

namespace moesaic::engine {
namespace {

// Rows before this one (of the prompt) leave nothing behind but their KV, so an equal prefix can
// stand for them.
std::int64_t first_needed_row(const RequestSpec& spec) {
  if (spec.logits == model::Logits::kAll || !spec.capture.empty()) return 0;
  auto row = static_cast<std::int64_t>(spec.tokens.size()) - 1;
  for (const model::Target& target : spec.targets) row = std::min<std::int64_t>(row, target.row);
  return row;
}

}  // namespace

std::size_t Core::max_active() const {
  return std::min(options_.max_active, static_cast<std::size_t>(facts_.max_step_rows));
}

void Core::reject(Request& request, Finish finish, std::exception_ptr error) noexcept {
  Outcome outcome;
  outcome.finish = finish;
  outcome.error = std::move(error);
  outcome.timings.submitted = request.submitted();
  outcome.timings.finished = Clock::now();
  if (request.spec().session) {
    SessionState& session = *request.spec().session;
    bool closed = false;
    {
      const std::scoped_lock lock(session.mutex);
      if (session.writer.lock().get() == &request) session.writer.reset();
      closed = session.closed && session.writer.expired();
    }
    try {
      if (closed) give_back(session);
    } catch (...) {
      if (!outcome.error) outcome.error = std::current_exception();
    }
  }
  {
    const std::scoped_lock lock(mutex_);
    --n_open_;
  }
  request.publish_end(std::move(outcome));
}

void Core::drop_cancelled() {
  std::erase_if(waiting_, [this](const std::shared_ptr<Request>& request) {
    if (!request->cancelled()) return false;
    reject(*request, Finish::kCancelled,
           std::make_exception_ptr(CancelledError("cancelled before it began")));
    return true;
  });
  for (std::vector<Active>* list : {&active_, &preempted_}) {
    for (Active& active : *list) {
      if (!active.request->cancelled()) continue;
      finish(active, Finish::kCancelled,
             std::make_exception_ptr(CancelledError("cancelled by the caller")));
    }
  }
  erase_finished();
}

// By priority; among equals those that ran before go first.
void Core::admit() {
  std::size_t i = 0;  // of waiting_
  std::size_t p = 0;  // of preempted_
  while (true) {
    while (p < preempted_.size() && preempted_[p].awaiting_choice) ++p;
    const bool resumes =
        p < preempted_.size() &&
        (i >= waiting_.size() || preempted_[p].spec().priority >= waiting_[i]->spec().priority);
    if (!resumes && i >= waiting_.size()) return;
    if (active_.size() >= max_active()) {
      if (!preempt_for_slot()) return;
      p = 0;  // the list has changed
      continue;
    }
    Admission admission = Admission::kDone;
    if (resumes) {
      admission = try_resume(preempted_[p].age);
      erase_finished();
    } else {
      const std::shared_ptr<Request> request = waiting_[i];
      try {
        admission = try_admit(request);
      } catch (...) {
        reject(*request, Finish::kFailed, std::current_exception());
      }
      if (admission == Admission::kDefer) {
        ++i;
      } else if (admission == Admission::kDone) {
        waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(i));
      }
    }
    if (admission == Admission::kNoRoom) {  // no overtaking: large requests would starve
      lacks_room_ = true;
      return;
    }
    p = 0;
  }
}

Core::Admission Core::try_admit(const std::shared_ptr<Request>& request) {
  const RequestSpec& spec = request->spec();
  const auto n = static_cast<std::int64_t>(spec.tokens.size());
  std::int64_t n_pages = 0;
  if (spec.session) {
    std::vector<std::int32_t> tokens;
    {
      const std::scoped_lock lock(spec.session->mutex);
      if (spec.session->closed) fail<ClosedError>("[", spec.where, "] session: it was closed");
      tokens = spec.session->tokens;
    }
    const auto start = static_cast<std::int64_t>(tokens.size());
    const std::int64_t row_limit = rows_promised(spec, start + n);
    n_pages = runner_->pages_needed(spec.session->sequence, start, row_limit - start);
    if (make_room(n_pages)) {
      tokens.insert(tokens.end(), spec.tokens.begin(), spec.tokens.end());
      activate(request, spec.session->sequence, std::move(tokens), start, row_limit);
      return Admission::kDone;
    }
  } else {
    const std::int64_t row_limit = rows_promised(spec, n);
    Reuse reuse = find_reuse(spec);
    if (reuse.wait) return Admission::kDefer;
    n_pages = pages_for(row_limit) - reuse.n_tokens / facts_.page_tokens;
    // A page shared midway is copied by whoever writes on first: here perhaps by the other one.
    if (reuse.running && reuse.n_tokens % facts_.page_tokens != 0) ++n_pages;
    bool room = false;
    if (reuse.n_tokens > 0) {
      room = make_room(n_pages, reuse.sequence);
      if (!room) {  // the prefix itself must go
        reuse.n_tokens = 0;
        n_pages = pages_for(row_limit);
      }
    }
    if (room || make_room(n_pages)) {
      std::vector<std::int32_t> tokens = spec.tokens;  // before a sequence could be lost
      const model::SequenceId sequence =
          reuse.n_tokens > 0 ? runner_->fork(reuse.sequence, reuse.n_tokens) : runner_->open();
      activate(request, sequence, std::move(tokens), reuse.n_tokens, row_limit);
      return Admission::kDone;
    }
  }
  if (others_will_end(nullptr)) return Admission::kNoRoom;
  reject(*request, Finish::kFailed, no_room_error(spec, n_pages));  // nobody will ever make room
  return Admission::kDone;
}

// Positions that pages are promised for when the prompt ends before `prompt_end`.
std::int64_t Core::rows_promised(const RequestSpec& spec, std::int64_t prompt_end) const {
  if (!spec.generate || spec.generate->external) return prompt_end;
  // The last token that is generated is run only where a session keeps it.
  const std::int64_t generated =
      std::max<std::int64_t>(0, spec.generate->max_tokens - (spec.session ? 0 : 1));
  return generated < limit_ - prompt_end ? prompt_end + generated : limit_;
}

void Core::activate(const std::shared_ptr<Request>& request, model::SequenceId sequence,
                    std::vector<std::int32_t> tokens, std::int64_t cached, std::int64_t row_limit) {
  Active active;
  active.request = request;
  active.sequence = sequence;
  active.prompt_end = static_cast<std::int64_t>(tokens.size());
  active.start = active.prompt_end - static_cast<std::int64_t>(request->spec().tokens.size());
  active.tokens = std::move(tokens);
  active.cached = cached;
  active.delivered = cached;
  active.row_limit = row_limit;
  active.age = ++last_age_;
  active.outcome.timings.submitted = request->submitted();
  active.outcome.timings.admitted = Clock::now();
  active.outcome.n_reused = cached - active.start;
  {
    const std::scoped_lock lock(mutex_);
    stats_.reused_rows += static_cast<std::uint64_t>(active.outcome.n_reused);
    ++stats_.active;
  }
  request->publish_progress(active.outcome.n_reused, active.prompt_end - active.start);
  insert_by_age(active_, std::move(active));
}

// By priority, then age. The list has room for one more.
void Core::insert_by_age(std::vector<Active>& list, Active active) {
  const auto place =
      std::upper_bound(list.begin(), list.end(), active, [](const auto& a, const auto& b) {
        const int first = a.spec().priority;
        const int second = b.spec().priority;
        return first != second ? first > second : a.age < b.age;
      });
  list.insert(place, std::move(active));
}

Core::Reuse Core::find_reuse(const RequestSpec& spec) {
  Reuse best;
  if (!spec.reuse) return best;
  const std::int64_t most = first_needed_row(spec);
  if (most <= 0) return best;
  const std::span<const std::int32_t> wanted(spec.tokens.data(), static_cast<std::size_t>(most));
  if (const auto match = cache_.find(wanted))
    best = {match->sequence, match->n_tokens, false, false};
  // What runs right now can be shared as well; what is about to be there is worth waiting for when
  // the common prefix is at least a page.
  std::int64_t coming = 0;
  for (const Active& active : active_) {
    const std::span<const std::int32_t> prompt(active.tokens.data(),
                                               static_cast<std::size_t>(active.prompt_end));
    const std::int64_t n = common_prefix(prompt, wanted);
    const std::int64_t there = std::min(n, active.cached);
    if (there > best.n_tokens) best = {active.sequence, there, true, false};
    if (active.cached < active.prompt_end) coming = std::max(coming, n);
  }
  if (best.n_tokens < options_.min_reuse) best = {};
  best.wait = coming > best.n_tokens && coming >= facts_.page_tokens;
  return best;
}

std::int64_t Core::pages_for(std::int64_t rows) const {
  return (rows + facts_.page_tokens - 1) / facts_.page_tokens;
}

std::int64_t Core::free_pages() const {
  std::int64_t pages = runner_->kv_tokens_free() / facts_.page_tokens;
  for (const Active& active : active_) {
    pages -=
        runner_->pages_needed(active.sequence, active.cached, active.row_limit - active.cached);
  }
  return pages;
}

// Also takes pages of requests whose callers are away, other than `keep`; at_once: without patience
// for those callers.
bool Core::make_room(std::int64_t n_pages, std::optional<model::SequenceId> keep, bool at_once) {
  while (free_pages() < n_pages) {
    if (const auto sequence = cache_.evict(keep)) {
      runner_->close(*sequence);
    } else if (!preempt_away(n_pages, keep, at_once)) {
      return false;
    }
  }
  return true;
}

// "; 3 sessions hold 4,000 tokens": who has the pages that are in no request.
std::string Core::held_by_sessions() const {
  std::size_t n_sessions = 0;
  std::size_t n_tokens = 0;
  for (const auto& known : sessions_) {
    const auto session = known.lock();
    if (!session) continue;
    const std::scoped_lock lock(session->mutex);
    if (session->closed || session->tokens.empty()) continue;
    ++n_sessions;
    n_tokens += session->tokens.size();
  }
  if (n_sessions == 0) return "";
  return strcat("; ", n_sessions, n_sessions == 1 ? " session holds " : " sessions hold ", n_tokens,
                " tokens");
}

std::exception_ptr Core::no_room_error(const RequestSpec& spec, std::int64_t n_pages) const {
  const std::int64_t free = runner_->kv_tokens_free();
  const std::uint64_t per_token =
      facts_.memory.kv_bytes /
      static_cast<std::uint64_t>(std::max<std::int64_t>(1, facts_.kv_tokens));
  return std::make_exception_ptr(OutOfMemoryError(
      strcat("[", spec.where, "] KV cache: ", n_pages * facts_.page_tokens,
             " more tokens needed (prompt and max_tokens, in whole pages of ", facts_.page_tokens,
             "), free are ", free, " of kv_tokens = ", facts_.kv_tokens, held_by_sessions(),
             "; close() or truncate() sessions, lower max_tokens, or load the model with a larger "
             "kv_tokens"),
      static_cast<std::uint64_t>(n_pages * facts_.page_tokens) * per_token,
      static_cast<std::uint64_t>(free) * per_token));
}

}  // namespace moesaic::engine
