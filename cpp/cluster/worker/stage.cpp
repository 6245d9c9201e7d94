// See stage.h.
#include "cluster/worker/stage.h"

#include <algorithm>
#include <optional>

#include "base/checked.h"
#include "base/failpoint.h"
#include "cluster/step/step_messages.h"
#include "model/layers/taps.h"
#include "model/run/step_check.h"
#include "model/run/step_results.h"

namespace moesaic::cluster {
namespace {

using failpoint::Site;

// Of one deployment. A sequence without rows costs some hundred bytes and no page.
constexpr std::size_t kMostSequences = 65536;

model::Logits logits_from_wire(std::uint8_t value) {
  if (value > static_cast<std::uint8_t>(model::Logits::kAll)) {
    fail<ProtocolError>("[run] logits: got ", int{value}, ", need 0 (none), 1 (last) or 2 (all)");
  }
  return static_cast<model::Logits>(value);
}

}  // namespace

Stage::Stage(std::shared_ptr<HeldSlice> held, const StageOptions& options)
    : held_(std::move(held)), options_(options) {
  const model::Config& config = held_->model.config;
  const model::Slice& slice = held_->key.slice;
  memory_ = model::memory_need(held_->model, slice, options_.load, *held_->backend);
  kv_ = std::make_unique<model::KvCache>(
      *held_->backend,
      model::kv_spec(held_->model, slice, options_.load, options_.load.kv_tokens, *held_->backend));
  forward_ =
      std::make_unique<model::Forward>(*held_->backend, config, slice, held_->weights, kv_->store(),
                                       exchange_, model::forward_options(options_.load));
}

model::SequenceId Stage::known(std::uint64_t sequence) const {
  const auto found = sequences_.find(sequence);
  if (found == sequences_.end()) {
    fail<ArgumentError>("[cluster] sequence ", sequence, " is not open here");
  }
  return found->second;
}

void Stage::add(std::uint64_t sequence, const std::function<model::SequenceId()>& make) {
  if (sequences_.size() >= kMostSequences) {
    fail<ArgumentError>("[cluster] sequence ", sequence, ": ", sequences_.size(),
                        " are open at this stage already, which is the most; close some");
  }
  const auto place = sequences_.emplace(sequence, 0).first;
  try {
    place->second = make();
  } catch (...) {
    sequences_.erase(place);
    throw;
  }
}

model::Step Stage::to_step(const wire::Run& run, std::span<const std::uint8_t> payload,
                           std::vector<model::SamplerSpec>& samplers) {
  const model::Config& config = held_->model.config;
  const auto max_rows = model::forward_options(options_.load).max_rows;
  std::int64_t n_rows = 0;
  for (const wire::RunSequence& sequence : run.sequences) {
    n_rows += sequence.n_rows;
    if (sequence.n_rows < 1 || n_rows > max_rows) {
      fail<ProtocolError>("[run] rows: got ", n_rows, " or more, need 1 to ", max_rows);
    }
  }
  const bool embeds = held_->key.slice.embed;
  const std::size_t need = embeds ? static_cast<std::size_t>(n_rows) * sizeof(std::int32_t)
                                  : hidden_bytes(n_rows * config.d_model, options_.hidden);
  if (payload.size() != need) {
    fail<ProtocolError>("[run] payload: got ", payload.size(), " bytes for ", n_rows,
                        " rows, need ", need);
  }
  if (embeds) {
    tokens_ = unpack<std::int32_t>(payload);
  } else {
    // The layers see rows and no tokens; these only count them.
    tokens_.assign(static_cast<std::size_t>(n_rows), 0);
    hidden_in_.resize(static_cast<std::size_t>(n_rows * config.d_model));
    unpack_hidden(payload, options_.hidden, hidden_in_);
  }

  model::Step step;
  samplers.reserve(run.sequences.size());
  auto next = tokens_.begin();
  for (const wire::RunSequence& from : run.sequences) {
    model::SequenceStep sequence;
    if (!sequences_.contains(from.sequence)) {
      if (from.start != 0) known(from.sequence);
      add(from.sequence, [this] { return kv_->open(); });
    }
    sequence.sequence = known(from.sequence);
    sequence.start = from.start;
    sequence.tokens.assign(next, next + from.n_rows);
    next += from.n_rows;
    sequence.logits = logits_from_wire(from.logits);
    for (const wire::RunTarget& target : from.targets) {
      sequence.targets.push_back({target.row, target.token});
    }
    if (from.sampler) {
      samplers.push_back(from_wire(*from.sampler));
      sequence.sampler = &samplers.back();
      sequence.history = from.history;
    }
    sequence.capture = from.capture;
    step.sequences.push_back(std::move(sequence));
  }
  for (const std::string& name : run.capture) {
    if (model::makes_capture(config, held_->key.slice, name)) step.capture.push_back(name);
  }
  check_step(step, {.vocab = config.vocab,
                    .n_ctx = options_.load.n_ctx,
                    .max_rows = max_rows,
                    .length = [this](model::SequenceId id) { return kv_->pages().length(id); }});
  return step;
}

StageOutput Stage::run(const wire::Run& run, std::span<const std::uint8_t> payload,
                       const CancelFlag* cancel, const StageSharing& sharing) {
  failpoint::pass(Site::kStageInput);
  std::vector<model::SamplerSpec> samplers;
  const model::Step step = to_step(run, payload, samplers);
  held_->model.file->check_intact();
  const model::Config& config = held_->model.config;
  const bool head = held_->key.slice.head;

  std::vector<model::KvPages::Write> writes;
  for (const model::SequenceStep& sequence : step.sequences) {
    writes.push_back(
        {sequence.sequence, sequence.start, static_cast<std::int64_t>(sequence.tokens.size())});
  }
  failpoint::pass(Site::kStageClaim);
  kv_->claim(writes);

  std::vector<backend::SequenceRows> rows;
  std::vector<model::Captures::Rows> captured;
  std::int64_t begin = 0;
  for (const model::SequenceStep& sequence : step.sequences) {
    const auto n = static_cast<std::int64_t>(sequence.tokens.size());
    rows.push_back({begin, n, sequence.start, kv_->pages().pages(sequence.sequence)});
    if (sequence.capture) captured.push_back({begin, n});
    begin += n;
  }
  std::optional<model::Captures> captures;
  if (!step.capture.empty() && !captured.empty()) {
    captures.emplace(config, step.capture, std::move(captured));
  }
  model::Captures* const taps = captures ? &*captures : nullptr;

  StageOutput output;
  if (!head) output.hidden.resize(static_cast<std::size_t>(begin * config.d_model));
  std::vector<std::int32_t> logits_rows;
  if (head) model::list_logits_rows(step, logits_rows);
  model::StepResults results(step, config.vocab, taps);
  failpoint::pass(Site::kStageForward);
  forward_->run(
      {.tokens = held_->key.slice.embed ? std::span<const std::int32_t>(tokens_)
                                        : std::span<const std::int32_t>(),
       .hidden =
           held_->key.slice.embed ? std::span<const float>() : std::span<const float>(hidden_in_),
       .sequences = rows,
       .cancel = cancel,
       .between_pieces =
           [&] {
             failpoint::pass(Site::kStageLayer);
             if (sharing.between_pieces) sharing.between_pieces();
           },
       .piece_rows = sharing.piece_rows},
      {.logits_rows = logits_rows, .logits = &results, .hidden = output.hidden, .captures = taps});
  held_->model.file->check_intact();
  failpoint::pass(Site::kStageCommit);
  kv_->commit(writes);
  failpoint::pass(Site::kStageResults);
  output.results = results.finish().sequences;
  return output;
}

void Stage::apply(const wire::KvOp& op) {
  switch (op.kind) {
    case wire::KvOpKind::kClose: {
      const auto found = sequences_.find(op.sequence);
      if (found == sequences_.end()) return;  // nothing of it ever ran
      kv_->close(found->second);
      sequences_.erase(found);
      return;
    }
    case wire::KvOpKind::kTruncate: {
      const auto found = sequences_.find(op.sequence);
      if (found == sequences_.end()) return;
      const std::int64_t length = kv_->pages().length(found->second);
      if (op.n_tokens < 0) fail<ProtocolError>("[kv] truncate: got ", op.n_tokens, " tokens");
      kv_->truncate(found->second, std::min(op.n_tokens, length));
      return;
    }
    case wire::KvOpKind::kFork: {
      if (sequences_.contains(op.other)) {
        fail<ProtocolError>("[kv] fork: sequence ", op.other, " is open already");
      }
      const auto found = sequences_.find(op.sequence);
      if (found == sequences_.end() && op.n_tokens == 0) {
        add(op.other, [this] { return kv_->open(); });
        return;
      }
      const model::SequenceId parent = known(op.sequence);
      if (op.n_tokens < 0 || op.n_tokens > kv_->pages().length(parent)) {
        fail<ProtocolError>("[kv] fork: got ", op.n_tokens, " tokens of a sequence of ",
                            kv_->pages().length(parent));
      }
      add(op.other, [&] { return kv_->fork(parent, op.n_tokens); });
      return;
    }
    case wire::KvOpKind::kCloseAll:
      for (const auto& [theirs, ours] : sequences_) kv_->close(ours);
      sequences_.clear();
      return;
    case wire::KvOpKind::kRead:
      break;
  }
  fail<InternalError>("[kv] a read is no change");
}

std::vector<std::uint8_t> Stage::read(std::uint64_t sequence, std::int64_t layer,
                                      std::int64_t begin, std::int64_t end) {
  const model::SequenceId id = known(sequence);
  if (begin < 0 || begin > end || end > kv_->pages().length(id)) {
    fail<ProtocolError>("[kv] read: got rows ", begin, " to ", end, " of a sequence of ",
                        kv_->pages().length(id));
  }
  std::vector<std::uint8_t> bytes(static_cast<std::size_t>(end - begin) * kv_->row_bytes());
  if (begin < end) {
    kv_->read(id, layer - held_->key.slice.layer_begin, begin, end, bytes.data());
  }
  return bytes;
}

void Stage::restore(const wire::KvRows& rows, std::span<const std::uint8_t> payload) {
  const model::Slice& slice = held_->key.slice;
  const std::int64_t n = rows.token_end;
  if (rows.layer < slice.layer_begin || rows.layer >= slice.layer_end || rows.token_begin < 0 ||
      rows.token_begin >= n || n > options_.load.n_ctx ||
      payload.size() != static_cast<std::size_t>(n - rows.token_begin) * kv_->row_bytes()) {
    fail<ProtocolError>("[kv] restore: got layer ", rows.layer, ", rows ", rows.token_begin, " to ",
                        n, " and ", payload.size(), " bytes, need a layer of ", slice.layer_begin,
                        " to ", slice.layer_end - 1, " and ", kv_->row_bytes(), " bytes a row");
  }
  // Layer by layer, each from row 0 on: the first layer claims and commits, the others overwrite.
  if (!sequences_.contains(rows.sequence)) {
    add(rows.sequence, [this] { return kv_->open(); });
  }
  const model::SequenceId id = known(rows.sequence);
  if (rows.layer == slice.layer_begin) {
    const model::KvPages::Write write{id, rows.token_begin, n - rows.token_begin};
    if (rows.token_begin != kv_->pages().length(id)) {
      fail<ProtocolError>("[kv] restore: got row ", rows.token_begin, ", need ",
                          kv_->pages().length(id));
    }
    kv_->claim(std::span(&write, 1));
    kv_->commit(std::span(&write, 1));
  } else if (n > kv_->pages().length(id)) {
    fail<ProtocolError>("[kv] restore: got rows up to ", n, " of a layer, the first had ",
                        kv_->pages().length(id));
  }
  kv_->restore(id, rows.layer - slice.layer_begin, rows.token_begin, n, payload.data());
}

}  // namespace moesaic::cluster
