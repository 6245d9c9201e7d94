// From active to preempted, and back. A generation with a logits_processor waits for its caller
// between two tokens, and that caller may be waiting for another request of this engine, or may
// never come back. So its pages are not its own while it waits: when another request lacks pages
// and the caller has been away for about as long as running the rows again would take, they are
// taken. It keeps its tokens, and when its caller has answered and there is room, its rows are run
// again without giving results a second time. With deterministic numerics they are the same bytes.
#include <algorithm>
#include <utility>

#include "engine/core.h"

namespace moesaic::engine {
namespace {

constexpr double kLeastPatience = 0.005;  // seconds
constexpr double kMostPatience = 5.0;

// Rows that taking the pages would lose: a session's own stay with the session.
std::int64_t rows_held(const Active& active) {
  return active.cached - (active.spec().session ? active.start : 0);
}

Active* by_age(std::vector<Active>& list, std::uint64_t age) {
  const auto found =
      std::find_if(list.begin(), list.end(), [&](const Active& a) { return a.age == age; });
  return found == list.end() ? nullptr : &*found;
}

}  // namespace

std::chrono::duration<double> Core::patience(const Active& active) const {
  return std::chrono::duration<double>(
      std::clamp(pacer_.seconds_for(rows_held(active)), kLeastPatience, kMostPatience));
}

// keep_rows: only its place in the steps is wanted, so its rows go to the prefix cache, from where
// they come back unless somebody needs the pages meanwhile.
void Core::preempt(std::size_t index, bool keep_rows) {
  preempted_.reserve(preempted_.size() + 1);
  std::vector<std::int32_t> rows;
  Active& going = active_[index];
  if (keep_rows && !going.spec().session && going.spec().reuse) {
    rows.assign(going.tokens.begin(), going.tokens.begin() + going.cached);
  }
  Active active = std::move(going);
  active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(index));
  active.preempted = true;
  active.row_limit = 0;
  const model::SequenceId sequence = active.sequence;
  const bool session = active.spec().session != nullptr;
  active.cached = session ? active.start : 0;
  if (!session) active.sequence = 0;
  {
    const std::scoped_lock lock(mutex_);
    --stats_.active;
    ++stats_.preemptions;
  }
  const std::int64_t start = active.start;
  insert_by_age(preempted_, std::move(active));
  if (session) {
    cut(sequence, start);
  } else if (!rows.empty()) {
    cut(sequence, static_cast<std::int64_t>(rows.size()));
    remember_prefix(sequence, std::move(rows));
  } else {
    runner_->close(sequence);
  }
}

// Takes the pages of one request whose caller is away: of the last in line. Only when all of those
// together would give enough; sets next_look_ to when more may be taken.
bool Core::preempt_away(std::int64_t n_pages, std::optional<model::SequenceId> keep, bool at_once) {
  const auto now = Clock::now();
  std::int64_t within_reach = free_pages();
  std::optional<std::size_t> last;
  for (std::size_t i = 0; i < active_.size(); ++i) {
    const Active& active = active_[i];
    if (!active.awaiting_choice || active.sequence == keep) continue;
    const auto until = active.asked + std::chrono::ceil<Clock::duration>(patience(active));
    if (!at_once && now < until) {
      next_look_ = std::min(next_look_.value_or(until), until);
      continue;
    }
    within_reach += pages_for(rows_held(active)) + 1;  // at most: some may be shared
    last = i;
  }
  if (!last || within_reach < n_pages) return false;
  preempt(*last, false);
  return true;
}

// Makes place in the steps; of several, the caller that has been away longest gives it.
bool Core::preempt_for_slot() {
  std::optional<std::size_t> longest;
  for (std::size_t i = 0; i < active_.size(); ++i) {
    if (!active_[i].awaiting_choice) continue;
    if (!longest || active_[i].asked < active_[*longest].asked) longest = i;
  }
  if (longest) preempt(*longest, true);
  return longest.has_value();
}

// Whether waiting can bring room: some request other than `self` runs, or its pages may be taken
// before long.
bool Core::others_will_end(const Active* self) const {
  const auto now = Clock::now();
  return std::any_of(active_.begin(), active_.end(), [&](const Active& active) {
    return &active != self && (!active.awaiting_choice || now < active.asked + patience(active));
  });
}

// Making room may preempt others, which moves both lists: requests are found again by their age.
Core::Admission Core::try_resume(std::uint64_t age) {
  std::int64_t n_pages = 0;
  try {
    // A page more than its next row needs, where others are there to take it again soon.
    for (const std::int64_t more : {facts_.page_tokens, std::int64_t{0}}) {
      if (resume_with(age, more, n_pages)) return Admission::kDone;
      if (others_will_end(nullptr)) return Admission::kNoRoom;
    }
    Active& active = *by_age(preempted_, age);
    finish(active, Finish::kFailed, no_room_error(active.spec(), n_pages));
  } catch (...) {
    Active* const active = by_age(preempted_, age);
    if (active == nullptr) throw;
    finish(*active, Finish::kFailed, std::current_exception());
  }
  return Admission::kDone;
}

// With pages for its rows and `more`; n_pages: what it takes.
bool Core::resume_with(std::uint64_t age, std::int64_t more, std::int64_t& n_pages) {
  const Active& active = *by_age(preempted_, age);
  const std::int64_t size = active.size();
  const std::int64_t row_limit = std::max(size, std::min(size + more, limit_));
  if (active.spec().session) {
    const model::SequenceId sequence = active.sequence;
    const std::int64_t cached = active.cached;
    n_pages = runner_->pages_needed(sequence, cached, row_limit - cached);
    if (!make_room(n_pages)) return false;
    resume(age, sequence, cached, row_limit);
    return true;
  }
  std::optional<PrefixCache::Match> match;
  if (active.spec().reuse) {
    const std::int64_t most = std::min(active.delivered, size - 1);
    match = cache_.find(std::span(active.tokens).first(static_cast<std::size_t>(most)));
  }
  n_pages = pages_for(row_limit);
  if (match && make_room(n_pages - match->n_tokens / facts_.page_tokens, match->sequence)) {
    resume(age, runner_->fork(match->sequence, match->n_tokens), match->n_tokens, row_limit);
    return true;
  }
  if (!make_room(n_pages)) return false;
  resume(age, runner_->open(), 0, row_limit);
  return true;
}

// Room for it in active_ is there.
void Core::resume(std::uint64_t age, model::SequenceId sequence, std::int64_t cached,
                  std::int64_t row_limit) {
  const auto place = preempted_.begin() + (by_age(preempted_, age) - preempted_.data());
  Active active = std::move(*place);
  preempted_.erase(place);
  active.preempted = false;
  active.sequence = sequence;
  active.cached = cached;
  active.row_limit = row_limit;
  insert_by_age(active_, std::move(active));
  const std::scoped_lock lock(mutex_);
  ++stats_.active;
}

// Pages for the rows that generations with a caller between their tokens have come to.
void Core::grow() {
  std::vector<std::uint64_t> lacking;
  for (const Active& active : active_) {
    if (active.lacks_pages()) lacking.push_back(active.age);
  }
  for (const std::uint64_t age : lacking) grow_one(age);
  erase_finished();
}

// Generations of the same kind that stand behind it give way, the last first. So the first in line
// always comes on, and no two wait for each other.
void Core::grow_one(std::uint64_t age) {
  while (true) {
    const Active* const self = by_age(active_, age);
    if (self == nullptr) return;  // it gave way itself
    const auto pages = [&](std::int64_t row_limit) {
      return runner_->pages_needed(self->sequence, self->cached, row_limit - self->cached);
    };
    const std::int64_t n_pages =
        pages(self->size()) - pages(std::max(self->row_limit, self->cached));
    if (n_pages <= 0 || make_room(n_pages)) {
      Active* const grown = by_age(active_, age);
      grown->row_limit = grown->size();
      return;
    }
    const auto behind = static_cast<std::size_t>(by_age(active_, age) - active_.data()) + 1;
    std::size_t last = active_.size();
    while (last > behind && !active_[last - 1].external()) --last;
    if (last > behind) {
      preempt(last - 1, false);
      continue;
    }
    lacks_room_ = true;
    Active* const alone = by_age(active_, age);
    if (!others_will_end(alone)) {
      finish(*alone, Finish::kFailed, no_room_error(alone->spec(), n_pages));
    }
    return;
  }
}

}  // namespace moesaic::engine
