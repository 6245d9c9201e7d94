// See ring.h.
#include "cluster/coordinator/ring.h"

#include <algorithm>
#include <random>

#include "base/failpoint.h"
#include "cluster/step/step_messages.h"

namespace moesaic::cluster {
namespace {

using Clock = std::chrono::steady_clock;
using failpoint::Site;
constexpr std::chrono::milliseconds kPoll{10};
// Loads take as long as disks and networks do, but never without a word of progress.
constexpr std::chrono::seconds kLoadSilence{60};
constexpr std::chrono::seconds kJoinDeadline{10};

std::uint64_t random_epoch() {
  std::random_device random;
  const std::uint64_t epoch = (std::uint64_t{random()} << 32U) | random();
  return epoch == 0 ? 1 : epoch;
}

std::string text_of(const std::exception_ptr& why) {
  if (!why) return "the link was closed";
  try {
    std::rethrow_exception(why);
  } catch (const std::exception& e) {
    return net::printable(e.what());
  }
}

}  // namespace

std::unique_ptr<Ring> Ring::make(net::NetThread& net, BlobServer* blobs,
                                 const RingOptions& options) {
  std::unique_ptr<Ring> ring(new Ring);
  ring->epoch_ = random_epoch();
  ring->payload_limit_ = options.payload_limit;
  ring->dial_all(net, blobs, options);
  ring->load_all(options);
  ring->join_all(options);
  return ring;
}

Ring::~Ring() {
  {
    const std::scoped_lock lock(inbox_->mutex);
    inbox_->over = true;
  }
  for (const auto& member : stages_) {
    if (member->link) member->link->close();
  }
}

void Ring::dial_all(net::NetThread& net, BlobServer* blobs, const RingOptions& options) {
  failpoint::pass(Site::kRingDial);
  for (const RingStage& stage : options.stages) {
    auto member = std::make_unique<Member>();
    member->what = stage;
    member->link =
        net::dial(net, options.link, stage.address, options.dial_deadline, options.cancel);
    stages_.push_back(std::move(member));
  }
  if (options.same_numerics) {
    const net::PeerInfo& first = stages_.front()->link->peer();
    for (const auto& member : stages_) {
      const net::PeerInfo& other = member->link->peer();
      if (other.numerics == first.numerics) continue;
      fail<ArgumentError>("[Cluster.load] deterministic=True: the kernels of ",
                          member->what.address, " (release ", other.release,
                          ") give other bytes than those of ", stages_.front()->what.address,
                          " (release ", first.release,
                          "); run the same release on both, or load with deterministic=False");
    }
  }
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    const std::shared_ptr<net::Connection> link = stages_[i]->link;
    link->set_epoch(epoch_);
    link->set_activation_limit(options.payload_limit);
    const std::weak_ptr<net::Connection> weak = link;
    link->start({.on_message =
                     [inbox = inbox_, blobs, weak, i](net::Incoming&& in) {
                       failpoint::pass(Site::kRingEvent);
                       if (const auto self = weak.lock(); blobs != nullptr && self) {
                         if (blobs->take(self, in)) return;
                       }
                       const auto* error = std::get_if<wire::ErrorReply>(&in.message);
                       {
                         const std::scoped_lock lock(inbox->mutex);
                         if (inbox->over) return;
                         if (error != nullptr && error->kind == wire::ErrorKind::kWorkerLost &&
                             error->stage != wire::kNoStage) {
                           if (!inbox->lost_stage) {
                             inbox->lost_stage = error->stage;
                             inbox->lost_why =
                                 strcat("stage ", i + 1, " says: ", net::printable(error->text));
                           }
                         } else {
                           inbox->events.push_back({i, std::move(in)});
                         }
                       }
                       inbox->changed.notify_all();  // whoever wakes finds the mutex free
                     },
                 .on_closed =
                     [inbox = inbox_, i](std::exception_ptr why) {
                       const std::scoped_lock lock(inbox->mutex);
                       // The node itself knows best: what its neighbours say of it comes second.
                       if (!inbox->lost_stage || *inbox->lost_stage == i) {
                         inbox->lost_stage = i;
                         inbox->lost_why = text_of(why);
                       }
                       inbox->changed.notify_all();
                     },
                 .progress = {}});
  }
}

Ring::Event Ring::wait(const RingOptions& options, Clock::time_point deadline, const char* what) {
  while (true) {
    if (options.cancel != nullptr) options.cancel->check();
    if (auto event = next(kPoll)) {
      if (const auto* error = std::get_if<wire::ErrorReply>(&event->in.message)) {
        throw_error(*error, stages_[event->stage]->what.address);
      }
      return std::move(*event);
    }
    if (Clock::now() > deadline) {
      fail<DeadlineError>("[Cluster.load] ", what, ": no word from the workers for too long (",
                          activities(), ")");
    }
  }
}

void Ring::load_all(const RingOptions& options) {
  failpoint::pass(Site::kRingLoad);
  wire::Load load = options.load;
  load.stages.clear();
  for (const auto& member : stages_) {
    wire::Stage stage;
    stage.address = member->what.address;
    stage.node = member->link->peer().node;
    stage.layer_begin = static_cast<std::uint32_t>(member->what.layer_begin);
    stage.layer_end = static_cast<std::uint32_t>(member->what.layer_end);
    load.stages.push_back(std::move(stage));
  }
  load.request = 1;
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    load.stage = static_cast<std::uint32_t>(i);
    send(i, load);
  }
  std::vector<bool> done(stages_.size(), false);
  auto deadline = Clock::now() + kLoadSilence;
  auto moved = Clock::now();
  while (std::find(done.begin(), done.end(), false) != done.end()) {
    Event event = wait(options, deadline, "loading");
    deadline = Clock::now() + kLoadSilence;
    const auto* const said = std::get_if<wire::LoadProgress>(&event.in.message);
    if (said == nullptr || !said->what.starts_with("waiting")) {
      moved = Clock::now();
    } else if (options.patience.count() > 0 && Clock::now() - moved > options.patience) {
      fail<DeadlineError>("[Cluster.load] ", stages_[event.stage]->what.address, ": ",
                          net::printable(said->what), " for more than ", options.patience.count(),
                          " ms");
    }
    if (const auto* progress = std::get_if<wire::LoadProgress>(&event.in.message)) {
      if (options.progress) {
        options.progress({event.stage, progress->done_bytes, progress->total_bytes,
                          net::printable(progress->what)});
      }
    } else if (const auto* loaded = std::get_if<wire::Loaded>(&event.in.message)) {
      stages_[event.stage]->loaded = *loaded;
      done[event.stage] = true;
      if (options.progress) {
        options.progress({event.stage, loaded->weights_bytes, loaded->weights_bytes, "ready"});
      }
    }
  }
}

void Ring::join_all(const RingOptions& options) {
  failpoint::pass(Site::kRingJoin);
  const std::size_t n = stages_.size();
  if (n == 1) return;
  for (std::size_t i = 0; i < n; ++i) {
    send(i, wire::Join{static_cast<std::uint32_t>(i), static_cast<std::uint32_t>((i + 1) % n)});
  }
  // Each says so when its predecessor has come.
  std::vector<bool> joined(n, false);
  const auto deadline = Clock::now() + kJoinDeadline;
  while (std::find(joined.begin(), joined.end(), false) != joined.end()) {
    const Event event = wait(options, deadline, "joining the ring");
    if (std::holds_alternative<wire::Join>(event.in.message)) joined[event.stage] = true;
  }
}

void Ring::throw_lost(std::size_t stage, const std::string& why) const {
  const RingStage& lost = stages_[std::min(stage, stages_.size() - 1)]->what;
  std::vector<int> layers;
  for (std::int64_t i = lost.layer_begin; i < lost.layer_end; ++i) {
    layers.push_back(static_cast<int>(i));
  }
  throw WorkerLost(strcat("[Cluster] worker ", lost.address, " (layers ", lost.layer_begin, " to ",
                          lost.layer_end - 1, ") is lost: ", why),
                   lost.address, std::move(layers), {});
}

void Ring::check() const {
  std::optional<std::size_t> stage;
  std::string why;
  {
    const std::scoped_lock lock(inbox_->mutex);
    stage = inbox_->lost_stage;
    why = inbox_->lost_why;
  }
  if (stage) throw_lost(*stage, why);
}

std::optional<Ring::Event> Ring::next(std::chrono::milliseconds timeout) {
  failpoint::pass(Site::kRingNext);
  std::optional<Event> event;
  {
    std::unique_lock lock(inbox_->mutex);
    inbox_->changed.wait_for(lock, timeout, [this] {
      return !inbox_->events.empty() || inbox_->lost_stage.has_value();
    });
    if (!inbox_->lost_stage && !inbox_->events.empty()) {
      event = std::move(inbox_->events.front());
      inbox_->events.pop_front();
    }
  }
  if (!event) check();
  return event;
}

void Ring::drop_events() {
  const std::scoped_lock lock(inbox_->mutex);
  inbox_->events.clear();
}

void Ring::send_frame(std::size_t stage, wire::MessageType type, std::vector<std::uint8_t> fields,
                      std::vector<std::uint8_t> payload) {
  // Above it the worker would take the link for broken, and everybody would lose the model.
  const std::size_t n_bytes = fields.size() + payload.size();
  const std::uint32_t limit = wire::body_limit(type, payload_limit_);
  if (n_bytes > limit) {
    fail<ArgumentError>("[Cluster] ", wire::type_name(type), ": got a request of ", n_bytes,
                        " bytes, a worker takes at most ", limit, "; ask for less at once");
  }
  failpoint::pass(Site::kRingSend);
  try {
    stages_[stage]->link->send_frame(type, std::move(fields), std::move(payload), epoch_);
  } catch (const ArgumentError&) {  // too long for a frame: the caller's, not the link's
    throw;
  } catch (const Error& e) {
    check();
    throw_lost(stage, e.what());
  }
}

void Ring::cancel(std::uint64_t through_step) noexcept {
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    try {
      send(i, wire::Cancel{through_step});
    } catch (const std::exception&) {  // the next step says so
    }
  }
}

void Ring::lose(std::size_t stage, const std::string& why) {
  {
    const std::scoped_lock lock(inbox_->mutex);
    if (!inbox_->lost_stage) {
      inbox_->lost_stage = stage;
      inbox_->lost_why = why;
    }
  }
  stages_[std::min(stage, stages_.size() - 1)]->link->close();
  check();
  throw_lost(stage, why);
}

std::uint64_t Ring::units_done() const {
  std::uint64_t sum = 0;
  for (const auto& member : stages_) {
    const wire::Pong pong = member->link->last_pong();
    sum += pong.units_done + pong.rows_done;
  }
  return sum;
}

std::optional<std::size_t> Ring::stuck(std::chrono::milliseconds deadline) const {
  std::optional<std::size_t> longest;
  std::int64_t most = deadline.count();
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    const std::int64_t stalled = stages_[i]->link->last_pong().stalled_ms;
    if (stalled <= most) continue;
    most = stalled;
    longest = i;
  }
  return longest;
}

std::size_t Ring::furthest_behind() const {
  std::uint64_t before = UINT64_MAX;
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    const std::uint64_t steps = stages_[i]->link->last_pong().steps_done;
    if (i > 0 && steps < before) return i;
    before = steps;
  }
  return 0;
}

std::string Ring::activities() const {
  std::string text;
  for (const auto& member : stages_) {
    const std::string activity = net::printable(member->link->last_pong().activity);
    text += strcat(text.empty() ? "" : ", ", member->what.address, ": ",
                   activity.empty() ? "nothing heard yet" : activity);
  }
  return text;
}

std::vector<net::Counters> Ring::counters() const {
  std::vector<net::Counters> all;
  for (const auto& member : stages_) all.push_back(member->link->counters());
  return all;
}

}  // namespace moesaic::cluster
