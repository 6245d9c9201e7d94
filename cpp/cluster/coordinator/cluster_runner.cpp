// Sequences, their mirror, and recovery; see cluster_runner.h. Steps: cluster_steps.cpp.
#include "cluster/coordinator/cluster_runner.h"

#include <algorithm>
#include <thread>

#include "backend/backend.h"
#include "cluster/step/step_messages.h"
#include "model/arch/identity.h"
#include "model/layers/taps.h"
#include "model/run/step_check.h"

namespace moesaic::cluster {
namespace {

using Clock = std::chrono::steady_clock;

// Losses one after the other in the same work, none of which came further than those before: it is
// the work that ends the workers.
constexpr int kMostLossesInARow = 8;
constexpr std::chrono::milliseconds kPause{200};  // between two tries
constexpr std::chrono::seconds kSayEvery{1};

double seconds_of(std::chrono::duration<double> span) { return span.count(); }

// Of the engine's steps: large, because a pipeline drains between two of them.
constexpr std::int64_t kMaxStepRows = 16384;

std::size_t kv_row_bytes(const model::Config& config, const model::LoadOptions& load) {
  const auto backend = backend::make_backend("cpu", {.n_threads = 1});
  return backend->kv_row_bytes(
      model::kv_spec(config, model::Slice::whole(config), load, load.kv_tokens));
}

}  // namespace

ClusterRunner::ClusterRunner(RunnerSetup setup, std::unique_ptr<Ring> ring)
    : setup_(std::move(setup)),
      ring_(std::move(ring)),
      max_step_rows_(std::min(kMaxStepRows, (setup_.load.n_ctx + setup_.load.page_tokens - 1) /
                                                setup_.load.page_tokens * setup_.load.page_tokens)),
      kv_row_bytes_(cluster::kv_row_bytes(setup_.model.config, setup_.load)),
      pages_((setup_.load.kv_tokens + setup_.load.page_tokens - 1) / setup_.load.page_tokens,
             setup_.load.page_tokens) {
  for (std::size_t i = 0; i < ring_->n_stages(); ++i) {
    const wire::Loaded& loaded = ring_->loaded(i);
    memory_.weights_bytes += loaded.weights_bytes;
    memory_.derived_bytes += loaded.derived_bytes;
    memory_.kv_bytes += loaded.kv_bytes;
    memory_.scratch_bytes += loaded.scratch_bytes;
  }
}

std::string ClusterRunner::identity() const {
  if (identity_.empty()) {
    identity_ = model::identity_of(*setup_.model.file, setup_.load.kv_type);
  }
  return identity_;
}

std::vector<std::string> ClusterRunner::capture_names() const {
  return model::capture_names(setup_.model.config);
}

// --- sequences: the mirror answers at once, the workers hear of it in order with the steps

ClusterRunner::Sequence& ClusterRunner::at(model::SequenceId id) {
  pages_.length(id);  // throws for one that is not open
  return sequences_[id];
}

// A change that nobody waits for. When the ring is gone there is nobody to tell: the workers have
// forgotten everything, and the next step finds out.
void ClusterRunner::tell(const wire::KvOp& op) {
  if (!ring_) return;
  try {
    ring_->send(0, op);
  } catch (const WorkerLost&) {  // the next step says so
  }
}

model::SequenceId ClusterRunner::open() {
  const model::SequenceId id = pages_.open();
  sequences_[id] = {};
  return id;
}

void ClusterRunner::close(model::SequenceId sequence) {
  std::vector<std::int32_t> released;
  pages_.close(sequence, released);
  const bool is_there = sequences_[sequence].is_there;
  sequences_.erase(sequence);
  if (is_there) tell({.kind = wire::KvOpKind::kClose, .sequence = sequence});
}

std::int64_t ClusterRunner::length(model::SequenceId sequence) const {
  return pages_.length(sequence);
}

void ClusterRunner::truncate(model::SequenceId sequence, std::int64_t n_tokens) {
  Sequence& mine = at(sequence);
  std::vector<std::int32_t> released;
  pages_.truncate(sequence, n_tokens, released);
  mine.tokens.resize(static_cast<std::size_t>(n_tokens));
  if (mine.is_there) {
    tell({.kind = wire::KvOpKind::kTruncate, .sequence = sequence, .n_tokens = n_tokens});
  }
}

model::SequenceId ClusterRunner::fork(model::SequenceId sequence, std::int64_t n_tokens) {
  const model::SequenceId child = pages_.fork(sequence, n_tokens);
  const Sequence& parent = at(sequence);
  Sequence made;
  made.tokens.assign(parent.tokens.begin(), parent.tokens.begin() + n_tokens);
  made.is_there = parent.is_there;
  if (made.is_there) {
    tell({.kind = wire::KvOpKind::kFork,
          .sequence = sequence,
          .other = child,
          .n_tokens = n_tokens});
  }
  sequences_[child] = std::move(made);
  return child;
}

std::int64_t ClusterRunner::pages_needed(model::SequenceId sequence, std::int64_t start,
                                         std::int64_t n_rows) const {
  return pages_.pages_added({sequence, start, n_rows});
}

// --- loss and recovery

void ClusterRunner::with_ring(const CancelFlag* cancel, const std::function<void()>& work) {
  tries_ = {};
  while (true) {
    if (!ring_) recover(cancel);
    tries_.rows = 0;
    try {
      ring_->check();
      work();
      return;
    } catch (const WorkerLost& lost) {
      note_loss(lost);
      tries_.losses_in_a_row = tries_.rows > tries_.best ? 1 : tries_.losses_in_a_row + 1;
      tries_.best = std::max(tries_.best, tries_.rows);
      if (setup_.on_loss == OnLoss::kRaise) give_up("");
      if (tries_.losses_in_a_row >= kMostLossesInARow) {
        give_up(strcat(" (", tries_.losses_in_a_row,
                       " times in a row at the same place of this request)"));
      }
    }
  }
}

void ClusterRunner::note_loss(const WorkerLost& lost) {
  lost_ = std::make_unique<WorkerLost>(lost);
  ring_.reset();
  for (auto& [id, sequence] : sequences_) sequence.is_there = sequence.tokens.empty();
  say("lost", strcat(lost.what(), setup_.on_loss == OnLoss::kReplan ? "; the others take its layers"
                                  : setup_.on_loss == OnLoss::kWait
                                      ? strcat("; waiting for it (up to ",
                                               seconds_of(setup_.wait_for_worker), " s)")
                                      : std::string()));
}

void ClusterRunner::say(const char* what, const std::string& text, double done,
                        double total) const {
  if (setup_.news) setup_.news({what, lost_ ? lost_->node : "", text, done, total});
}

std::string ClusterRunner::advice() const {
  switch (setup_.on_loss) {
    case OnLoss::kRaise:
      return "; start it again: the next call links to it anew, and sessions go on (their tokens "
             "are run again; weights that are still held are not read again); or load with "
             "on_loss=\"wait\" or \"replan\" to go on without an error";
    case OnLoss::kWait:
      return "; start it again: the next call waits for it anew, and sessions go on";
    case OnLoss::kReplan:
      break;
  }
  return "; start it again or add a worker: the next call tries anew, and sessions go on";
}

void ClusterRunner::give_up(const std::string& why) {
  if (!why.empty()) say("gave up", strcat(lost_->what(), why));
  throw WorkerLost(strcat(lost_->what(), why, advice()), lost_->node, lost_->layers, lost_->tokens);
}

// Until a new ring stands or the patience ends, which counts from here: from the loss, or from the
// call that finds the worker lost. Workers may still be freeing what the old deployment took, or
// starting: any failure but the caller's own is tried again. With on_loss="raise" one try.
void ClusterRunner::recover(const CancelFlag* cancel) {
  const bool patient = setup_.on_loss != OnLoss::kRaise;
  const std::chrono::milliseconds patience =
      patient ? setup_.wait_for_worker : std::chrono::milliseconds(0);
  const auto begin = Clock::now();
  auto until = begin + patience;
  auto say_next = begin + kSayEvery;
  RemakeQuery query{
      .cancel = cancel, .lost = {lost_->node}, .again = !patient, .patience = patience};
  const char* const what = setup_.on_loss == OnLoss::kReplan ? "re-planning" : "waiting";
  if (patient) say(what, "", 0, seconds_of(patience));
  while (true) {
    std::string why;
    try {
      ring_ = setup_.remake(query);
      say("back", strcat("[Cluster] the model is whole again after ",
                         seconds_of(Clock::now() - begin), " s"));
      return;
    } catch (const CancelledError&) {
      throw;
    } catch (const WorkerLost& lost) {
      why = lost.what();
      if (std::find(query.lost.begin(), query.lost.end(), lost.node) == query.lost.end()) {
        query.lost.push_back(lost.node);  // another one, while the first was being replaced
        until = Clock::now() + patience;
        note_loss(lost);
      }
    } catch (const Error& e) {
      why = e.what();
    }
    query.again = true;
    if (Clock::now() >= until) give_up(strcat("; it did not come back: ", why));
    for (const auto next = Clock::now() + kPause; Clock::now() < next;) {
      if (cancel != nullptr) cancel->check();
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    if (Clock::now() >= say_next) {
      say(what, "", seconds_of(Clock::now() - begin), seconds_of(patience));
      say_next = Clock::now() + kSayEvery;
    }
  }
}

// Rows [0, n_tokens) of a sequence on the workers again: shared with another sequence as far as the
// mirror shares pages with it, the rest replayed.
void ClusterRunner::bring_back(model::SequenceId id, std::int64_t n_tokens,
                               const CancelFlag* cancel) {
  Sequence& sequence = at(id);
  if (sequence.is_there) return;
  const auto pages = pages_.pages(id);
  model::SequenceId parent = 0;
  std::int64_t shared = 0;
  for (const auto& [other_id, other] : sequences_) {
    if (other_id == id || !other.is_there) continue;
    const auto theirs = pages_.pages(other_id);
    std::int64_t n = 0;
    while (n < std::ssize(pages) && n < std::ssize(theirs) && pages[n] == theirs[n]) ++n;
    n = std::min({n * pages_.page_tokens(), n_tokens, pages_.length(other_id)});
    if (n > shared) {
      shared = n;
      parent = other_id;
    }
  }
  ring_->send(0, wire::KvOp{.kind = wire::KvOpKind::kClose, .sequence = id});  // a half-done one
  if (shared > 0) {
    ring_->send(
        0, wire::KvOp{
               .kind = wire::KvOpKind::kFork, .sequence = parent, .other = id, .n_tokens = shared});
  }
  for (std::int64_t start = shared; start < n_tokens; start += max_step_rows_) {
    const std::int64_t n = std::min(max_step_rows_, n_tokens - start);
    model::Step step;
    model::SequenceStep rows;
    rows.sequence = id;
    rows.start = start;
    const auto from = sequence.tokens.begin() + start;
    rows.tokens.assign(from, from + n);
    step.sequences.push_back(std::move(rows));
    dispatch(step, cancel);
  }
  sequence.is_there = true;
}

void ClusterRunner::bring_back_all(const model::Step& step, const CancelFlag* cancel) {
  for (const model::SequenceStep& sequence : step.sequences) {
    bring_back(sequence.sequence, sequence.start, cancel);
  }
}

// --- saved sessions

std::vector<std::uint8_t> ClusterRunner::save(model::SequenceId sequence,
                                              const CancelFlag* cancel) {
  const std::int64_t n = length(sequence);
  if (n == 0) return {};
  std::vector<std::uint8_t> bytes;
  with_ring(cancel, [&] {
    bring_back(sequence, n, cancel);
    bytes = read_rows(sequence, n, cancel);
  });
  return bytes;
}

model::SequenceId ClusterRunner::load(std::span<const std::uint8_t> bytes,
                                      std::span<const std::int32_t> tokens,
                                      const CancelFlag* cancel) {
  const auto n = static_cast<std::int64_t>(tokens.size());
  if (n > n_ctx()) {
    fail<ArgumentError>("[load_session] got ", n, " tokens, need 0 to n_ctx, ", n_ctx());
  }
  const std::size_t need =
      static_cast<std::size_t>(n) * kv_row_bytes_ * static_cast<std::size_t>(config().n_layers);
  if (bytes.size() != need) {
    fail<FormatError>("[load_session] cache: got ", bytes.size(), " bytes for ", n,
                      " tokens, need ", need);
  }
  const model::SequenceId id = open();
  if (n == 0) return id;
  try {
    const model::KvPages::Write write{id, 0, n};
    std::vector<model::KvPages::Copy> copies;
    pages_.prepare(std::span(&write, 1),
                   kv_row_bytes_ * static_cast<std::size_t>(page_tokens() * config().n_layers),
                   copies);
    with_ring(cancel, [&] { write_rows(id, bytes, n, cancel); });
    pages_.commit(write);
    at(id).tokens.assign(tokens.begin(), tokens.end());
  } catch (...) {
    close(id);
    throw;
  }
  return id;
}

}  // namespace moesaic::cluster
