// The running of a deployment's frames; see deployment.h. Loading: deployment_load.cpp.
#include "cluster/worker/deployment.h"

#include <algorithm>
#include <limits>
#include <new>
#include <utility>

#include "base/failpoint.h"
#include "base/thread_name.h"
#include "cluster/step/step_messages.h"

namespace moesaic::cluster {
namespace {

using Clock = std::chrono::steady_clock;
using failpoint::Site;
// Steps of so few rows are decode's: hidden rows that a socket takes at once.
constexpr std::int64_t kFewRows = 8;
// Work that took longer last time is for a net thread that serves meanwhile.
constexpr std::chrono::milliseconds kLittle{15};
// Frames that wait for the stage. Coordinators keep a few micro-batches under way, and some frame
// for each sequence that is closed; a peer that sends more than this has lost its mind.
constexpr std::size_t kMostTasks = std::size_t{1} << 18U;

bool has_few_rows(const wire::Message& message) {
  if (std::holds_alternative<wire::Tokens>(message)) return true;
  const auto* run = std::get_if<wire::Run>(&message);
  if (run == nullptr) return false;
  std::int64_t n_rows = 0;
  for (const wire::RunSequence& sequence : run->sequences) n_rows += sequence.n_rows;
  return n_rows <= kFewRows;
}

}  // namespace

Deployment::Deployment(DeploymentHost& host, std::uint64_t epoch, wire::Load load,
                       std::shared_ptr<net::Connection> coordinator,
                       std::shared_ptr<BlobSource> coordinator_source)
    : host_(host),
      epoch_(epoch),
      load_(std::move(load)),
      coordinator_(std::move(coordinator)),
      coordinator_source_(std::move(coordinator_source)),
      seat_(host.net()),
      thread_([this] {
        name_this_thread("moesaic-stage");
        main();
        has_ended_ = true;
      }) {}

Deployment::~Deployment() { stop(); }

void Deployment::ask_to_stop() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
    stop_flag_.set();
    if (running_flag_ != nullptr) running_flag_->set();
  }
  wake_.notify_all();
  seat_.kick();
}

void Deployment::stop() {
  ask_to_stop();
  if (thread_.joinable()) thread_.join();
  std::shared_ptr<net::Connection> links[2];
  {
    const std::scoped_lock lock(mutex_);
    links[0] = std::move(predecessor_);
    links[1] = std::move(successor_);
  }
  for (const auto& link : links) {
    if (link) link->close();
  }
}

void Deployment::free() {
  stage_.reset();
  const std::scoped_lock lock(mutex_);
  tasks_.clear();
  held_.reset();
}

std::shared_ptr<const HeldSlice> Deployment::held() const {
  const std::scoped_lock lock(mutex_);
  return held_;
}

net::Counters Deployment::successor_counters() const {
  const std::scoped_lock lock(mutex_);
  return successor_ ? successor_->counters() : net::Counters{};
}

std::string Deployment::failure() const {
  const std::scoped_lock lock(mutex_);
  return failure_;
}

wire::Pong Deployment::progress() const {
  wire::Pong pong;
  pong.steps_done = steps_done_;
  pong.rows_done = rows_done_;
  pong.bytes_loaded = bytes_loaded_;
  pong.units_done = units_done_;
  const Phase phase = phase_;
  Clock::duration still{};
  switch (phase) {
    case Phase::kLoading:
    case Phase::kSending:
      break;
    case Phase::kIdle:
    case Phase::kTask: {
      const std::scoped_lock lock(mutex_);
      if (phase == Phase::kTask || !tasks_.empty()) {
        still = Clock::now().time_since_epoch() - Clock::duration(moved_at_.load());
      }
      break;
    }
    case Phase::kWaiting:
    case Phase::kComputing:
      still = host_.turns().still_for();
      break;
  }
  using std::chrono::milliseconds;
  const auto ms = std::chrono::duration_cast<milliseconds>(still).count();
  pong.stalled_ms = static_cast<std::uint32_t>(
      std::clamp<std::int64_t>(ms, 0, std::numeric_limits<std::int32_t>::max()));
  const std::uint64_t step = step_now_;
  pong.activity = !ready_                    ? "loading"
                  : phase == Phase::kWaiting ? strcat("step ", step, " waits for its turn")
                  : step != 0                ? strcat("step ", step)
                                             : "idle";
  if (pong.stalled_ms >= 1000) {
    pong.activity += strcat(", without progress for ", pong.stalled_ms / 1000, " s");
  }
  return pong;
}

// --- on the net thread

void Deployment::take(const net::Connection* from, net::Incoming&& in) {
  const bool from_coordinator = from == coordinator_.get();
  bool from_predecessor = false;
  {
    const std::scoped_lock lock(mutex_);
    from_predecessor = from == predecessor_.get();
  }
  if (const auto* cancel = std::get_if<wire::Cancel>(&in.message)) {
    if (!from_coordinator) fail<ProtocolError>("[cluster] Cancel: from a worker");
    const std::scoped_lock lock(mutex_);
    cancelled_through_ = std::max(cancelled_through_, cancel->step);
    if (running_flag_ != nullptr && running_step_ <= cancelled_through_) running_flag_->set();
    return;
  }
  if (!ready_)
    fail<ProtocolError>("[cluster] ", wire::type_name(in.header.type), ": before Loaded");
  const bool in_ring = std::holds_alternative<wire::Run>(in.message) ||
                       std::holds_alternative<wire::KvOp>(in.message);
  const bool fits = in_ring ? (is_first() ? from_coordinator : from_predecessor)
                    : std::holds_alternative<wire::Tokens>(in.message)
                        ? is_first() && from_predecessor
                    : std::holds_alternative<wire::KvRows>(in.message) ||
                            std::holds_alternative<wire::Join>(in.message)
                        ? from_coordinator
                        : false;
  if (!fits) {
    fail<ProtocolError>("[cluster] ", wire::type_name(in.header.type), ": not from this peer");
  }
  put(std::move(in));
}

void Deployment::put(net::Incoming&& task) {
  failpoint::pass(Site::kTaskQueued);
  {
    const std::scoped_lock lock(mutex_);
    if (tasks_.size() >= kMostTasks) {
      fail<ProtocolError>("[cluster] ", wire::type_name(task.header.type), ": ", tasks_.size(),
                          " frames wait for this stage already, which is the most it takes");
    }
    if (tasks_.empty() && phase_ == Phase::kIdle) moved();
    tasks_.push_back(std::move(task));
  }
  wake_.notify_one();
}

void Deployment::set_predecessor(std::shared_ptr<net::Connection> link, const wire::Join& join) {
  const auto n = static_cast<std::uint32_t>(load_.stages.size());
  if (!ready_ || n < 2 || join.to_stage != load_.stage ||
      (join.from_stage + 1) % n != load_.stage ||
      load_.stages[join.from_stage].node != link->peer().node) {
    fail<ProtocolError>("[cluster] Join: stage ", join.from_stage, " to ", join.to_stage,
                        " is not what this deployment says");
  }
  link->set_epoch(epoch_);
  link->set_activation_limit(payload_limit_);
  {
    const std::scoped_lock lock(mutex_);
    if (predecessor_) fail<ProtocolError>("[cluster] Join: there is a predecessor already");
    predecessor_ = std::move(link);
  }
  tell_coordinator(join);
}

void Deployment::link_lost(const net::Connection* link, const std::exception_ptr& why) {
  if (link == coordinator_.get()) {
    ask_to_stop();
    return;
  }
  const std::size_t n = load_.stages.size();
  std::size_t stage = n;
  {
    const std::scoped_lock lock(mutex_);
    if (link == successor_.get()) stage = (load_.stage + 1) % n;
    if (link == predecessor_.get()) stage = (load_.stage + n - 1) % n;
  }
  if (stage < n && !stopping_) fail_link(why, stage);
}

void Deployment::fail_link(const std::exception_ptr& why, std::size_t stage) {
  std::string text = "it went away";
  try {
    if (why) std::rethrow_exception(why);
  } catch (const std::exception& e) {
    text = net::printable(e.what());
  }
  wire::ErrorReply reply;
  reply.kind = wire::ErrorKind::kWorkerLost;
  reply.stage = static_cast<std::uint32_t>(stage);
  reply.text = strcat("its link to ", load_.stages[stage].address, " is lost: ", text);
  host_.log({"lost",
             strcat("the link to ", load_.stages[stage].address, " is lost: ", text),
             {{"peer", load_.stages[stage].address}}});
  try {
    tell_coordinator(reply);
  } catch (const Error&) {  // it is gone as well, and link_lost() says so
  }
}

// --- the deployment's thread

void Deployment::main() noexcept {
  std::exception_ptr why;
  try {
    load();
    serve();
  } catch (...) {
    why = std::current_exception();
  }
  if (why && !stopping_) end_with(why);
}

// What fails while it loads is the answer to the Load, and the coordinator closes the link. What
// fails later is the loss of this stage: for all that use it, by the message and, should that not
// get through, by the end of the link.
void Deployment::end_with(const std::exception_ptr& why) noexcept {
  const bool was_ready = ready_;
  bool told = false;
  try {
    wire::ErrorReply reply = error_reply(load_.request, why);
    if (was_ready) {
      reply.request = 0;
      reply.kind = wire::ErrorKind::kWorkerLost;
      reply.stage = load_.stage;
    }
    {
      const std::scoped_lock lock(mutex_);
      failure_ = reply.text;
    }
    host_.log({"failed",
               strcat("deployment of ", net::printable(load_.name), ": ", reply.text),
               {{"model", net::printable(load_.name)}}});
    coordinator_->send(reply, {}, epoch_);
    told = true;
  } catch (...) {
    // The end of the link says it.
  }
  for (int i = 0; (was_ready || !told) && i < 10; ++i) {
    try {
      coordinator_->go_away(wire::Reason::kShutdown, failure());
      return;
    } catch (...) {  // no memory for the goodbye: some comes free
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }
}

bool Deployment::has_work() const {
  const std::scoped_lock lock(mutex_);
  return stopping_ || !tasks_.empty();
}

void Deployment::serve() {
  while (true) {
    seat_.serve([this] { return has_work(); });
    net::Incoming task;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
      if (stopping_) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
      moved();
    }
    const InPhase busy(*this, Phase::kTask);
    failpoint::pass(Site::kTaskBegin);
    const bool few = has_few_rows(task.message);
    if (!few || few_took_ > kLittle) seat_.leave();
    const auto begin = Clock::now();
    process(task);
    ++units_done_;
    seat_.flush();
    if (few) few_took_ = Clock::now() - begin;
    n_sequences_ = stage_->n_sequences();
  }
}

void Deployment::process(net::Incoming& task) {
  if (auto* run_frame = std::get_if<wire::Run>(&task.message)) {
    run(std::move(*run_frame), task.payload);
  } else if (const auto* tokens = std::get_if<wire::Tokens>(&task.message)) {
    run_ahead(*tokens);
  } else if (const auto* join = std::get_if<wire::Join>(&task.message)) {
    join_ring(*join);
  } else if (const auto* op = std::get_if<wire::KvOp>(&task.message)) {
    if (op->kind == wire::KvOpKind::kRead) {
      read_rows(*op);
    } else {
      answering(op->request, [&] {
        failpoint::pass(Site::kKvOp);
        stage_->apply(*op);
      });
    }
    if (!is_last()) {
      pass_on(*op);
    } else if (op->request != 0) {
      tell_coordinator(
          wire::KvRows{.request = op->request, .sequence = op->sequence, .last = true});
    }
  } else if (const auto* rows = std::get_if<wire::KvRows>(&task.message)) {
    const bool is_done = answering(rows->request, [&] {
      failpoint::pass(Site::kKvRestore);
      stage_->restore(*rows, task.payload);
    });
    if (is_done && rows->last) {
      tell_coordinator(
          wire::KvRows{.request = rows->request, .sequence = rows->sequence, .last = true});
    }
  }
}

// What is wrong with one request, or what there is too little memory for just now. All else (a disk
// that does not give the weights, a device that fails, a mistake of ours) would fail the next
// request as well.
bool Deployment::is_of_request(const std::exception_ptr& why) {
  try {
    std::rethrow_exception(why);
  } catch (const ArgumentError&) {
    return true;
  } catch (const ProtocolError&) {
    return true;
  } catch (const OutOfMemoryError&) {
    return true;
  } catch (const std::bad_alloc&) {
    return true;
  } catch (...) {
    return false;
  }
}

// Runs what a request asks of the stage. False: it failed, and the coordinator has been told. What
// answers no request, or leaves nothing to go on with, ends the deployment: it is thrown on.
bool Deployment::answering(std::uint64_t request, const std::function<void()>& work) {
  try {
    work();
    return true;
  } catch (...) {
    if (request == 0 || !is_of_request(std::current_exception())) throw;
    tell_coordinator(error_reply(request, std::current_exception()));
    return false;
  }
}

void Deployment::join_ring(const wire::Join& join) {
  const auto n = static_cast<std::uint32_t>(load_.stages.size());
  if (n < 2 || join.from_stage != load_.stage || join.to_stage != (load_.stage + 1) % n) {
    fail<ProtocolError>("[cluster] Join: stage ", join.from_stage, " to ", join.to_stage,
                        " is not what this deployment says");
  }
  failpoint::pass(Site::kJoinRing);
  const std::string& address = load_.stages[join.to_stage].address;
  auto link =
      net::dial(host_.net(), host_.link_options(), address, net::milliseconds(5000), &stop_flag_);
  link->set_epoch(epoch_);
  {
    const std::scoped_lock lock(mutex_);
    successor_ = link;
  }
  net::Connection* const raw = link.get();
  link->start({.on_message =
                   [](net::Incoming&& in) {
                     fail<ProtocolError>("[cluster] ", wire::type_name(in.header.type),
                                         ": against the direction of the ring");
                   },
               .on_closed = [&host = host_, epoch = epoch_,
                             raw](std::exception_ptr why) { host.link_lost(epoch, raw, why); },
               .progress = {}});
  link->send(join, {}, epoch_);
}

}  // namespace moesaic::cluster
