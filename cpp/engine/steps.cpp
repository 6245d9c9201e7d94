// From active requests to steps and back: choose rows, run them, hand out what they gave. A step
// that fails with several members is run again one by one, so that only the guilty one gets the
// error (start is authoritative: rows that were cached before are written again). When the Runner
// itself fails, no request is the cause, and all members fail at once.
#include <algorithm>
#include <iterator>
#include <utility>

#include "engine/core.h"
#include "model/run/sampler.h"

namespace moesaic::engine {
namespace {

// Appends the rows of a step to what was captured before. The first step makes room for all rows
// of the prompt.
void append(std::vector<model::Captured>& all, std::vector<model::Captured> more,
            std::size_t n_rows) {
  if (all.empty()) {
    all = std::move(more);
    for (model::Captured& captured : all) {
      const auto n = static_cast<std::size_t>(captured.n_cols) * n_rows;
      if (!captured.values.empty()) captured.values.reserve(n);
      if (!captured.ids.empty()) captured.ids.reserve(n);
    }
    return;
  }
  if (all.size() != more.size()) fail<InternalError>("[engine] captures changed between steps");
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i].n_rows += more[i].n_rows;
    all[i].values.insert(all[i].values.end(), more[i].values.begin(), more[i].values.end());
    all[i].ids.insert(all[i].ids.end(), more[i].ids.begin(), more[i].ids.end());
  }
}

bool is_loss(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const WorkerLost&) {
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace

bool is_runner_fault(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const WorkerLost&) {
  } catch (const DeadlineError&) {
  } catch (const IoError&) {
  } catch (const NetError&) {
  } catch (const ProtocolError&) {
  } catch (const FormatError&) {  // of a weight file that has changed
  } catch (...) {
    return false;
  }
  return true;
}

bool Core::run_step() {
  std::vector<std::int64_t> rows;
  bool alone = false;
  const std::vector<std::size_t> members = choose_rows(rows, alone);
  if (members.empty()) return false;
  ++step_count_;
  std::int64_t prompt_rows = 0;
  std::int64_t decode_rows = 0;
  for (std::size_t k = 0; k < members.size(); ++k) {
    Active& active = active_[members[k]];
    active.last_step = step_count_;
    (active.cached < active.prompt_end ? prompt_rows : decode_rows) += rows[k];
  }
  {
    const std::scoped_lock lock(mutex_);
    ++stats_.steps;
  }
  const auto begin = Clock::now();
  if (runner_->runs_ahead() && can_run_ahead(members)) {
    const std::int64_t rounds = run_ahead(members);
    if (rounds > 0) pacer_.record(0, 1, (Clock::now() - begin) / rounds);
  } else {
    run_guarded(members, rows);
    pacer_.record(prompt_rows, decode_rows, Clock::now() - begin);
  }
  erase_finished();
  return true;
}

std::vector<std::size_t> Core::choose_rows(std::vector<std::int64_t>& rows, bool& alone) {
  alone = std::all_of(active_.begin(), active_.end(), [this](const Active& active) {
    return active.request->channel() == active_.front().request->channel();
  });
  // A step has one list of captures. Of several lists, the one that waited longest goes.
  const std::vector<std::string>* captures = nullptr;
  std::uint64_t oldest = 0;
  for (const Active& active : active_) {
    if (!active.captures() || active.awaiting_choice || active.lacks_pages()) continue;
    if (captures == nullptr || active.last_step < oldest) {
      captures = &active.spec().capture;
      oldest = active.last_step;
    }
  }
  std::vector<Candidate> candidates;
  candidates.reserve(active_.size());
  for (const Active& active : active_) {
    const bool waits = active.awaiting_choice || active.lacks_pages() ||
                       (active.captures() && active.spec().capture != *captures);
    candidates.push_back(
        {waits ? 0 : active.rows_left(), active.cached >= active.prompt_end && !active.replays()});
  }
  const std::vector<std::int64_t> planned =
      plan_rows(candidates, facts_.max_step_rows, pacer_.prompt_budget(alone));
  std::vector<std::size_t> members;
  for (std::size_t i = 0; i < planned.size(); ++i) {
    if (planned[i] == 0) continue;
    members.push_back(i);
    rows.push_back(planned[i]);
  }
  return members;
}

model::SequenceStep Core::sequence_step(const Active& active, std::int64_t n_rows) const {
  const RequestSpec& spec = active.spec();
  const bool to_the_end = active.cached + n_rows == active.size();
  model::SequenceStep step;
  step.sequence = active.sequence;
  step.start = active.cached;
  const auto from = active.tokens.begin() + active.cached;
  step.tokens.assign(from, from + n_rows);
  if (active.replays()) return step;
  step.capture = active.captures();
  if (spec.logits == model::Logits::kAll || (spec.logits == model::Logits::kLast && to_the_end)) {
    step.logits = spec.logits;
  }
  for (const model::Target& target : spec.targets) {
    const std::int64_t row = active.start + target.row - active.cached;
    if (row >= 0 && row < n_rows)
      step.targets.push_back({static_cast<std::int32_t>(row), target.token});
  }
  if (spec.generate && to_the_end && active.n_generated < spec.generate->max_tokens &&
      active.ending == Finish::kNone) {
    if (spec.generate->external) {
      step.logits = model::Logits::kLast;
    } else {
      step.sampler = &spec.generate->sampler;
      const auto upto = static_cast<std::size_t>(active.cached + n_rows);
      const auto seen =
          model::looked_back(spec.generate->sampler, std::span(active.tokens).first(upto));
      step.history.assign(seen.begin(), seen.end());
    }
  }
  return step;
}

model::Step Core::make_step(std::span<const std::size_t> members,
                            std::span<const std::int64_t> rows) const {
  model::Step step;
  for (std::size_t k = 0; k < members.size(); ++k) {
    const Active& active = active_[members[k]];
    step.sequences.push_back(sequence_step(active, rows[k]));
    if (active.captures()) step.capture = active.spec().capture;
  }
  return step;
}

Core::RunningScope::RunningScope(Core& core, std::span<const std::size_t> members) : core_(core) {
  const std::scoped_lock lock(core_.mutex_);
  bool wanted = false;
  for (const std::size_t i : members) {
    core_.running_.push_back(core_.active_[i].request.get());
    wanted = wanted || !core_.running_.back()->cancelled();
  }
  core_.running_flag_ = &flag;
  if (!wanted || core_.closed()) flag.set();
}

Core::RunningScope::~RunningScope() {
  const std::scoped_lock lock(core_.mutex_);
  core_.running_flag_ = nullptr;
  core_.running_.clear();
}

model::StepResult Core::run(std::span<const std::size_t> members,
                            std::span<const std::int64_t> rows) {
  model::Step step = make_step(members, rows);
  RunningScope running(*this, members);
  step.cancel = &running.flag;
  if (members.size() == 1 && !active_[members[0]].replays() &&
      active_[members[0]].cached < active_[members[0]].prompt_end) {
    step.progress = [&active = active_[members[0]],
                     done = std::int64_t{0}](std::int64_t n) mutable {
      done += n;
      const std::int64_t n_prompt = active.prompt_end - active.start;
      active.request->publish_progress(std::min(active.cached - active.start + done, n_prompt),
                                       n_prompt);
    };
  }
  model::StepResult result = runner_->run(step);
  if (result.sequences.size() != members.size()) {
    fail<InternalError>("[engine] a step of ", members.size(), " sequences gave ",
                        result.sequences.size(), " results");
  }
  return result;
}

std::exception_ptr Core::run_guarded(std::span<const std::size_t> members,
                                     std::span<const std::int64_t> rows) {
  std::exception_ptr error;
  try {
    model::StepResult result = run(members, rows);
    for (std::size_t k = 0; k < members.size(); ++k) {
      Active& active = active_[members[k]];
      try {
        apply(active, rows[k], std::move(result.sequences[k]));
      } catch (...) {
        finish(active, Finish::kFailed, std::current_exception());
      }
    }
    return nullptr;
  } catch (const CancelledError&) {
    cancel_members(members, std::current_exception());
    return nullptr;
  } catch (...) {
    error = std::current_exception();
  }
  if (is_runner_fault(error)) {
    fail_members(members, error);
    return error;
  }
  if (members.size() == 1) {
    finish(active_[members[0]], Finish::kFailed, error);
  } else {
    run_one_by_one(members, rows);
  }
  return nullptr;
}

// Whose fault it was shows when each runs by itself; a Runner that fails meanwhile fails the rest.
void Core::run_one_by_one(std::span<const std::size_t> members,
                          std::span<const std::int64_t> rows) {
  for (std::size_t k = 0; k < members.size(); ++k) {
    if (active_[members[k]].outcome.finish != Finish::kNone) continue;
    if (const auto error = run_guarded(members.subspan(k, 1), rows.subspan(k, 1))) {
      fail_members(members.subspan(k), error);
      return;
    }
  }
}

void Core::cancel_members(std::span<const std::size_t> members, const std::exception_ptr& error) {
  for (const std::size_t i : members) {
    if (active_[i].outcome.finish != Finish::kNone) continue;
    finish(active_[i], Finish::kCancelled, error);
  }
}

void Core::fail_members(std::span<const std::size_t> members, const std::exception_ptr& error) {
  if (is_loss(error)) lost_ = error;
  for (const std::size_t i : members) finish(active_[i], Finish::kFailed, error);
}

void Core::apply(Active& active, std::int64_t n_rows, model::SequenceResult result) {
  const RequestSpec& spec = active.spec();
  Outcome& outcome = active.outcome;
  const bool in_prompt = active.cached < active.prompt_end;
  const bool replay = active.replays();
  {  // before anybody hears of what the rows gave
    const std::scoped_lock lock(mutex_);
    (in_prompt || replay ? stats_.prompt_rows : stats_.decode_rows) +=
        static_cast<std::uint64_t>(n_rows);
  }
  active.cached += n_rows;
  if (replay) return;  // it gave its results before
  active.delivered = active.cached;
  append(outcome.captures, std::move(result.captures), spec.tokens.size());
  outcome.targets.insert(outcome.targets.end(), result.targets.begin(), result.targets.end());
  if (spec.logits == model::Logits::kAll) {
    if (outcome.logits.empty()) {  // one allocation, of the final size
      outcome.logits.reserve(spec.tokens.size() * static_cast<std::size_t>(facts_.config.vocab));
    }
    outcome.logits.insert(outcome.logits.end(), result.logits.begin(), result.logits.end());
  } else if (spec.logits == model::Logits::kLast && !spec.generate) {
    outcome.logits = std::move(result.logits);
  }
  if (in_prompt) {
    if (active.cached >= active.prompt_end) outcome.timings.prompt_done = Clock::now();
    active.request->publish_progress(active.cached - active.start,
                                     active.prompt_end - active.start);
  }
  if (active.cached < active.size()) return;
  if (active.ending != Finish::kNone) {
    finish(active, active.ending);
  } else if (!spec.generate) {
    finish(active, Finish::kDone);
  } else if (active.n_generated >= spec.generate->max_tokens || active.size() >= limit_) {
    finish(active, Finish::kLength);
  } else if (spec.generate->external) {
    active.awaiting_choice = true;
    active.asked = Clock::now();
    active.request->publish_row(std::move(result.logits));
  } else {
    if (!result.sampled) fail<InternalError>("[engine] a sampled token is missing");
    accept(active, std::move(*result.sampled));
  }
}

}  // namespace moesaic::engine
