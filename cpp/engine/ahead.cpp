// Decode with a runner that feeds tokens back by itself: all running generations in one call, each
// token applied as it comes, until something else wants the engine's thread.
#include <algorithm>

#include "engine/core.h"

namespace moesaic::engine {

bool Core::has_commands() const {
  const std::scoped_lock lock(mutex_);
  return closed() || !inbox_.empty();
}

bool Core::can_run_ahead(std::span<const std::size_t> members) const {
  const bool somebody_waits = std::any_of(active_.begin(), active_.end(), [](const Active& active) {
    return active.rows_left() > 1 && !active.lacks_pages();  // rows of a prompt, not in this step
  });
  return !somebody_waits && !has_commands() &&
         std::all_of(members.begin(), members.end(), [this](std::size_t i) {
           const Active& active = active_[i];
           const RequestSpec& spec = active.spec();
           return active.cached >= active.prompt_end && active.cached + 1 == active.size() &&
                  !active.replays() && active.ending == Finish::kNone && spec.generate &&
                  !spec.generate->external && spec.capture.empty() &&
                  spec.logits == model::Logits::kNone &&
                  active.n_generated < spec.generate->max_tokens && active.size() < limit_;
         });
}

// Returns how many tokens the longest-lived member got.
std::int64_t Core::run_ahead(std::span<const std::size_t> members) {
  const std::vector<std::int64_t> rows(members.size(), 1);
  model::Step step = make_step(members, rows);
  std::vector<model::Ahead> ahead;
  for (const std::size_t i : members) {
    const Active& active = active_[i];
    const GenerateSpec& generate = *active.spec().generate;
    ahead.push_back({std::min(generate.max_tokens - active.n_generated, limit_ - active.size()),
                     generate.stop_tokens});
  }

  class Sink final : public model::AheadSink {
   public:
    Sink(Core& core, std::span<const std::size_t> members)
        : core_(core), members_(members), counts_(members.size(), 0) {}
    bool take(std::size_t sequence, model::SequenceResult result) override {
      Active& active = core_.active_[members_[sequence]];
      ++counts_[sequence];
      try {
        core_.apply(active, 1, std::move(result));
      } catch (...) {
        core_.finish(active, Finish::kFailed, std::current_exception());
        return false;
      }
      const bool ended = active.outcome.finish != Finish::kNone;
      const bool room = ended && (!core_.waiting_.empty() || core_.lacks_room_);
      const bool may_take = core_.next_look_ && Clock::now() >= *core_.next_look_;
      return !room && !may_take && !core_.has_commands();
    }
    const std::vector<std::int64_t>& counts() const { return counts_; }

   private:
    Core& core_;
    std::span<const std::size_t> members_;
    std::vector<std::int64_t> counts_;
  } sink(*this, members);

  std::exception_ptr error;
  {
    RunningScope running(*this, members);
    step.cancel = &running.flag;
    try {
      runner_->run_ahead(step, ahead, sink);
    } catch (const CancelledError&) {
      cancel_members(members, std::current_exception());
    } catch (...) {
      error = std::current_exception();
    }
  }
  if (error && is_runner_fault(error)) {
    fail_members(members, error);
  } else if (error) {
    run_one_by_one(members, rows);
  }
  return *std::max_element(sink.counts().begin(), sink.counts().end());
}

}  // namespace moesaic::engine
