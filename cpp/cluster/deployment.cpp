// The running of a deployment's frames; see deployment.h. Loading: deployment_load.cpp.
#include "cluster/deployment.h"

#include <algorithm>
#include <utility>

#include "base/thread_name.h"
#include "cluster/step_messages.h"

namespace moesaic::cluster {
namespace {

using Clock = std::chrono::steady_clock;
// Steps of so few rows are decode's: hidden rows that a socket takes at once.
constexpr std::int64_t kFewRows = 8;
// Work that took longer last time is for a net thread that serves meanwhile.
constexpr std::chrono::milliseconds kLittle{15};

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

std::shared_ptr<const HeldSlice> Deployment::held() const {
  const std::scoped_lock lock(mutex_);
  return held_;
}

net::Counters Deployment::successor_counters() const {
  const std::scoped_lock lock(mutex_);
  return successor_ ? successor_->counters() : net::Counters{};
}

wire::Pong Deployment::progress() const {
  wire::Pong pong;
  pong.steps_done = steps_done_;
  pong.rows_done = rows_done_;
  pong.bytes_loaded = bytes_loaded_;
  const std::uint64_t step = step_now_;
  pong.activity = !ready_ ? "loading" : step != 0 ? strcat("step ", step) : "idle";
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
  {
    const std::scoped_lock lock(mutex_);
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

template <typename M>
void Deployment::pass_on(const M& message, std::vector<std::uint8_t> payload) {
  std::shared_ptr<net::Connection> link;
  {
    const std::scoped_lock lock(mutex_);
    link = successor_;
  }
  const std::size_t next = (load_.stage + 1) % load_.stages.size();
  if (!link) fail<ProtocolError>("[cluster] work came before the ring was joined");
  try {
    link->send(message, std::move(payload), epoch_);
    seat_.flush();  // not behind what is still to be done here
  } catch (const Error&) {
    fail_link(std::current_exception(), next);
  }
}

void Deployment::main() {
  try {
    load();
    serve();
  } catch (...) {
    if (stopping_) return;
    const std::exception_ptr error = std::current_exception();
    const wire::ErrorReply reply = error_reply(load_.request, error);
    host_.log({"failed", strcat("deployment of ", load_.name, ": ", reply.text), {}});
    try {
      tell_coordinator(reply);
    } catch (const Error&) {  // it is gone
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
    }
    const bool few = has_few_rows(task.message);
    if (!few || few_took_ > kLittle) seat_.leave();
    const auto begin = Clock::now();
    process(task);
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
    try {
      if (op->kind == wire::KvOpKind::kRead) {
        read_rows(*op);
      } else {
        stage_->apply(*op);
      }
    } catch (const Error&) {
      tell_coordinator(error_reply(op->request, std::current_exception()));
    }
    if (!is_last()) {
      pass_on(*op);
    } else if (op->request != 0) {
      tell_coordinator(
          wire::KvRows{.request = op->request, .sequence = op->sequence, .last = true});
    }
  } else if (const auto* rows = std::get_if<wire::KvRows>(&task.message)) {
    try {
      stage_->restore(*rows, task.payload);
      if (rows->last) {
        tell_coordinator(
            wire::KvRows{.request = rows->request, .sequence = rows->sequence, .last = true});
      }
    } catch (const Error&) {
      tell_coordinator(error_reply(rows->request, std::current_exception()));
    }
  }
}

void Deployment::join_ring(const wire::Join& join) {
  const auto n = static_cast<std::uint32_t>(load_.stages.size());
  if (n < 2 || join.from_stage != load_.stage || join.to_stage != (load_.stage + 1) % n) {
    fail<ProtocolError>("[cluster] Join: stage ", join.from_stage, " to ", join.to_stage,
                        " is not what this deployment says");
  }
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

void Deployment::run(wire::Run run, std::span<const std::uint8_t> payload) {
  CancelFlag flag;
  {
    const std::scoped_lock lock(mutex_);
    if (run.step <= cancelled_through_) {
      ahead_.erase(run.step);
      return;
    }
    running_step_ = run.step;
    running_flag_ = &flag;
    if (stopping_) flag.set();
  }
  struct Forget {  // before the flag goes
    Deployment& deployment;
    ~Forget() {
      const std::scoped_lock lock(deployment.mutex_);
      deployment.running_flag_ = nullptr;
      deployment.step_now_ = 0;
    }
  };
  StageOutput output;
  try {
    const Forget forget{*this};
    const std::scoped_lock turn(host_.compute());
    step_now_ = run.step;
    stage_->held().check_files();  // before, and after: what was changed meanwhile gave the rows
    output = stage_->run(run, payload, &flag);
    stage_->held().check_files();
  } catch (const CancelledError&) {
    ahead_.erase(run.step);
    return;
  } catch (const std::exception&) {
    ahead_.erase(run.step);
    tell_coordinator(error_reply(run.step, std::current_exception()));
    return;
  }
  ++steps_done_;
  std::uint64_t cancelled = 0;
  {
    const std::scoped_lock lock(mutex_);
    cancelled = cancelled_through_;
  }
  std::erase_if(ahead_, [cancelled](const auto& each) { return each.first <= cancelled; });
  if (is_first() && run.index == 0 &&
      std::any_of(run.sequences.begin(), run.sequences.end(),
                  [](const auto& sequence) { return sequence.decode_ahead > 0; })) {
    ahead_[run.step] = run;
  }
  for (const wire::RunSequence& sequence : run.sequences) rows_done_ += sequence.n_rows;
  if (is_last()) {
    finish_run(run, output.results);
  } else {
    pass_on(run, pack_hidden(output.hidden, load_.hidden));
  }
  send_captures(run, output.results);
}

// Tokens go to the first stage before anything else: the next step waits for them.
void Deployment::finish_run(const wire::Run& run,
                            const std::vector<model::SequenceResult>& results) {
  std::vector<bool> alive(results.size(), false);
  wire::Tokens next{run.step, run.index + 1, {}};
  for (std::size_t i = 0; i < results.size(); ++i) {
    const wire::RunSequence& sequence = run.sequences[i];
    const auto& stops = sequence.stop_tokens;
    const auto& sampled = results[i].sampled;
    alive[i] = sampled && sequence.decode_ahead > 0 &&
               std::find(stops.begin(), stops.end(), sampled->token) == stops.end();
    next.tokens.push_back(alive[i] ? sampled->token : -1);
  }
  const bool goes_on = std::find(alive.begin(), alive.end(), true) != alive.end();
  if (goes_on && !is_first()) pass_on(next);
  send_result(run, results, alive);
  if (goes_on && is_first()) {
    net::Incoming task;
    task.message = std::move(next);
    put(std::move(task));
  }
}

void Deployment::send_result(const wire::Run& run,
                             const std::vector<model::SequenceResult>& results,
                             const std::vector<bool>& alive) {
  wire::Result message;
  message.step = run.step;
  message.index = run.index;
  message.last = false;
  message.sequences.resize(results.size());
  std::vector<std::uint8_t> payload;
  const auto flush = [&] {
    tell_coordinator(message, std::move(payload));
    payload.clear();
    for (wire::ResultSequence& sequence : message.sequences) {
      sequence.logits_row += sequence.n_logits_rows;
      sequence.n_logits_rows = 0;
    }
  };
  const auto vocab = static_cast<std::size_t>(stage_->held().model.config.vocab);
  const std::size_t row_bytes = vocab * sizeof(float);
  for (std::size_t i = 0; i < results.size(); ++i) {
    const std::span<const float> logits(results[i].logits);
    for (std::size_t row = 0; row * vocab < logits.size(); ++row) {
      if (!payload.empty() && payload.size() + row_bytes > payload_limit_) flush();
      const std::vector<std::uint8_t> bytes = pack(logits.subspan(row * vocab, vocab));
      payload.insert(payload.end(), bytes.begin(), bytes.end());
      ++message.sequences[i].n_logits_rows;
    }
  }
  for (std::size_t i = 0; i < results.size(); ++i) {
    wire::ResultSequence& sequence = message.sequences[i];
    for (const model::TargetResult& target : results[i].targets) {
      sequence.targets.push_back({target.logprob, target.is_greedy});
    }
    if (results[i].sampled) sequence.sampled = to_wire(*results[i].sampled);
    sequence.alive = alive[i];
  }
  message.last = true;
  tell_coordinator(message, std::move(payload));
}

void Deployment::send_captures(const wire::Run& run,
                               const std::vector<model::SequenceResult>& results) {
  for (std::size_t i = 0; i < results.size(); ++i) {
    for (const model::Captured& captured : results[i].captures) {
      const std::int64_t n_cols = captured.n_cols;
      const std::int64_t rows_at_once =
          std::max<std::int64_t>(1, payload_limit_ / (4 * std::max<std::int64_t>(n_cols, 1)));
      for (std::int64_t row = 0; row < captured.n_rows; row += rows_at_once) {
        const std::int64_t n = std::min(rows_at_once, captured.n_rows - row);
        wire::Capture message;
        message.step = run.step;
        message.index = run.index;
        message.sequence = static_cast<std::uint32_t>(i);
        message.name = captured.name;
        message.row = static_cast<std::uint32_t>(row);
        message.n_rows = static_cast<std::uint32_t>(n);
        message.n_cols = static_cast<std::uint32_t>(n_cols);
        message.ids = !captured.ids.empty();
        const auto from = static_cast<std::size_t>(row * n_cols);
        const auto count = static_cast<std::size_t>(n * n_cols);
        tell_coordinator(message, message.ids
                                      ? pack(std::span(captured.ids).subspan(from, count))
                                      : pack(std::span(captured.values).subspan(from, count)));
      }
    }
  }
}

// At the first stage: the sampled tokens come round, and each is the next row of its sequence.
void Deployment::run_ahead(const wire::Tokens& tokens) {
  const auto found = ahead_.find(tokens.step);
  if (found == ahead_.end()) return;  // cancelled meanwhile
  wire::Run& before = found->second;
  if (tokens.tokens.size() != before.sequences.size() || tokens.index != before.index + 1) {
    fail<ProtocolError>("[cluster] Tokens: got ", tokens.tokens.size(), " at index ", tokens.index,
                        ", need ", before.sequences.size(), " at index ", before.index + 1);
  }
  wire::Run next;
  next.step = before.step;
  next.index = tokens.index;
  std::vector<std::int32_t> rows;
  bool goes_on = false;
  for (std::size_t i = 0; i < tokens.tokens.size(); ++i) {
    if (tokens.tokens[i] < 0) continue;
    wire::RunSequence sequence = std::move(before.sequences[i]);
    sequence.start += sequence.n_rows;
    sequence.n_rows = 1;
    sequence.logits = 0;
    sequence.targets.clear();
    if (sequence.decode_ahead == 0 || !sequence.sampler) {
      fail<ProtocolError>("[cluster] Tokens: sequence ", sequence.sequence, " has ended");
    }
    --sequence.decode_ahead;
    goes_on = goes_on || sequence.decode_ahead > 0;
    sequence.history.push_back(tokens.tokens[i]);
    keep_looked_back(from_wire(*sequence.sampler), sequence.history);
    rows.push_back(tokens.tokens[i]);
    next.sequences.push_back(std::move(sequence));
  }
  if (rows.empty()) fail<ProtocolError>("[cluster] Tokens: all sequences have ended");
  if (goes_on) {
    before = next;
  } else {
    ahead_.erase(found);
  }
  run(std::move(next), pack(std::span<const std::int32_t>(rows)));
}

void Deployment::read_rows(const wire::KvOp& op) {
  const model::Slice& slice = stage_->held().key.slice;
  const auto at_once =
      std::max<std::int64_t>(1, payload_limit_ / static_cast<std::int64_t>(stage_->kv_row_bytes()));
  for (std::int64_t layer = slice.layer_begin; layer < slice.layer_end; ++layer) {
    for (std::int64_t begin = 0; begin < op.n_tokens; begin += at_once) {
      const std::int64_t end = std::min(op.n_tokens, begin + at_once);
      wire::KvRows rows;
      rows.request = op.request;
      rows.sequence = op.sequence;
      rows.layer = static_cast<std::uint32_t>(layer);
      rows.token_begin = begin;
      rows.token_end = end;
      tell_coordinator(rows, stage_->read(op.sequence, layer, begin, end));
    }
  }
}

}  // namespace moesaic::cluster
