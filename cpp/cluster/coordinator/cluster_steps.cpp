// Steps on the ring: micro-batches out, results together; decode ahead; rows of saved sessions.
#include <algorithm>
#include <chrono>

#include "cluster/coordinator/cluster_runner.h"
#include "cluster/step/step_messages.h"
#include "model/run/step_check.h"

namespace moesaic::cluster {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kPoll{25};  // how late a Ctrl-C is heard
// Beyond a step's own deadline nothing comes, no stage computes, and none says that it is stuck:
// something was lost on the way. Slow links take long for a large frame.
constexpr std::chrono::seconds kSilence{300};

std::int64_t rows_of(const MicroBatch& batch) {
  std::int64_t n = 0;
  for (const Piece& piece : batch) n += piece.n_rows;
  return n;
}

std::vector<std::int32_t> each_once(std::span<const std::int32_t> tokens) {
  std::vector<std::int32_t> sorted(tokens.begin(), tokens.end());
  std::sort(sorted.begin(), sorted.end());
  sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
  return sorted;
}

// Of each sequence of a step that does not run ahead. Throws ArgumentError for one too large.
std::vector<std::size_t> field_bytes_of(const model::Step& step) {
  const std::size_t most = most_field_bytes(step);
  std::vector<std::size_t> bytes;
  for (const model::SequenceStep& each : step.sequences) {
    bytes.push_back(field_bytes(each, 0, 0, most));
  }
  return bytes;
}

}  // namespace

// What comes next. Polls the caller's flag, and what the workers' pings say of their computing: a
// stage that stands still is lost, as one that is gone.
Ring::Event ClusterRunner::wait(const CancelFlag* cancel) {
  auto moved = Clock::now();
  std::uint64_t units_done = ring_->units_done();
  while (true) {
    if (cancel != nullptr) cancel->check();
    if (auto event = ring_->next(kPoll)) {
      if (const auto* error = std::get_if<wire::ErrorReply>(&event->in.message);
          error != nullptr && error->request == 0) {
        ring_->lose(event->stage, strcat("it failed: ", net::printable(error->text)));
      }
      return std::move(*event);
    }
    const auto now = Clock::now();
    if (const std::uint64_t done = ring_->units_done(); done != units_done) {
      units_done = done;
      moved = now;
    }
    if (const auto stage = ring_->stuck(setup_.step_deadline)) {
      ring_->lose(*stage, strcat("it answers, but has computed nothing for ",
                                 setup_.step_deadline.count(), " ms (", ring_->activities(), ")"));
    }
    if (now - moved > setup_.step_deadline + kSilence) {
      ring_->lose(ring_->furthest_behind(),
                  strcat("nothing has come for ", kSilence.count(), " s though all answer (",
                         ring_->activities(), ")"));
    }
  }
}

// Drops what the mirror has past each start, and promises the rows their pages.
void ClusterRunner::claim(std::span<const model::SequenceStep> sequences) {
  std::vector<model::KvPages::Write> writes;
  std::vector<std::int32_t> released;
  for (const model::SequenceStep& sequence : sequences) {
    pages_.truncate(sequence.sequence, sequence.start, released);
    at(sequence.sequence).tokens.resize(static_cast<std::size_t>(sequence.start));
    writes.push_back(
        {sequence.sequence, sequence.start, static_cast<std::int64_t>(sequence.tokens.size())});
  }
  std::vector<model::KvPages::Copy> copies;
  pages_.prepare(
      writes, kv_row_bytes_ * static_cast<std::size_t>(page_tokens() * config().n_layers), copies);
}

void ClusterRunner::commit(const model::SequenceStep& step) {
  pages_.commit({step.sequence, step.start, static_cast<std::int64_t>(step.tokens.size())});
  Sequence& sequence = at(step.sequence);
  sequence.tokens.insert(sequence.tokens.end(), step.tokens.begin(), step.tokens.end());
}

model::StepResult ClusterRunner::run(const model::Step& step) {
  check_step(step, limits_of(*this));
  field_bytes_of(step);  // a request too large is refused before anything is sent
  model::StepResult result;
  with_ring(step.cancel, [&] {
    bring_back_all(step, step.cancel);
    claim(step.sequences);
    result = dispatch(step, step.cancel);
    for (const model::SequenceStep& sequence : step.sequences) commit(sequence);
  });
  return result;
}

CutOptions ClusterRunner::cut_options(std::span<const std::size_t> field_bytes,
                                      const model::Step& step) const {
  return {.max_rows = setup_.micro_batch_rows,
          .n_stages = static_cast<std::int64_t>(ring_->n_stages()),
          .cost = setup_.batch_cost,
          .field_bytes = field_bytes,
          .most_field_bytes = most_field_bytes(step)};
}

model::StepResult ClusterRunner::dispatch(const model::Step& step, const CancelFlag* cancel) {
  const std::vector<std::size_t> bytes = field_bytes_of(step);
  const std::vector<MicroBatch> batches = cut_step(step, cut_options(bytes, step));
  const std::uint64_t first = next_id_;
  next_id_ += batches.size();
  ring_->drop_events();  // of steps that were given up
  StepAssembly assembly(step, batches, config(), first);
  // One at each stage, one on its way to each: more would only wait, and be in the way of a cancel.
  const std::size_t window = 2 * ring_->n_stages();
  std::size_t n_sent = 0;
  try {
    while (!assembly.complete()) {
      while (n_sent < batches.size() && n_sent - assembly.n_batches_done() < window) {
        const MicroBatch& batch = batches[n_sent];
        std::vector<std::int32_t> tokens;
        for (const Piece& piece : batch) {
          const auto from = step.sequences[piece.sequence].tokens.begin() + piece.offset;
          tokens.insert(tokens.end(), from, from + piece.n_rows);
        }
        ring_->send(0, to_run(step, batch, first + n_sent),
                    pack(std::span<const std::int32_t>(tokens)));
        ++n_sent;
      }
      const Ring::Event event = wait(cancel);
      if (const auto* result = std::get_if<wire::Result>(&event.in.message)) {
        if (!assembly.owns(result->step)) continue;
        assembly.take(*result, event.in.payload);
        if (result->last) tries_.rows += rows_of(batches[result->step - first]);
        if (result->last && step.progress) step.progress(rows_of(batches[result->step - first]));
      } else if (const auto* capture = std::get_if<wire::Capture>(&event.in.message)) {
        if (assembly.owns(capture->step)) assembly.take(*capture, event.in.payload);
      } else if (const auto* error = std::get_if<wire::ErrorReply>(&event.in.message)) {
        if (assembly.owns(error->request)) {
          throw_error(*error, ring_->stage(event.stage).address);
        }
      }
    }
  } catch (const WorkerLost&) {
    throw;
  } catch (...) {
    ring_->cancel(next_id_ - 1);
    throw;
  }
  return assembly.finish();
}

// --- decode ahead

void ClusterRunner::run_ahead(const model::Step& step, std::span<const model::Ahead> ahead,
                              model::AheadSink& sink) {
  check_step(step, limits_of(*this));
  std::vector<Decoding> sequences;
  for (std::size_t i = 0; i < step.sequences.size(); ++i) {
    const model::SequenceStep& sequence = step.sequences[i];
    if (sequence.tokens.size() != 1 || sequence.sampler == nullptr || sequence.capture ||
        ahead[i].max_tokens < 1) {
      fail<InternalError>("[run_ahead] sequence ", i, ": needs one row and a sampler");
    }
    Decoding decoding{i, sequence, ahead[i].max_tokens, each_once(ahead[i].stop_tokens), true};
    field_bytes(sequence, decoding.left, decoding.stop_tokens.size(), most_field_bytes(step));
    sequences.push_back(std::move(decoding));
  }
  with_ring(step.cancel, [&] {
    while (decode(sequences, sink, step.cancel)) {
    }
  });
}

// Sends all living sequences round the ring until all have ended or the sink has enough. False when
// there is nothing left to do.
bool ClusterRunner::decode(std::vector<Decoding>& sequences, model::AheadSink& sink,
                           const CancelFlag* cancel) {
  model::Step step;
  std::vector<std::size_t> places;  // of the step's sequences in `sequences`
  std::vector<std::size_t> bytes;   // of their fields
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    if (!sequences[i].alive) continue;
    step.sequences.push_back(sequences[i].step);
    places.push_back(i);
    bytes.push_back(field_bytes(sequences[i].step, sequences[i].left,
                                sequences[i].stop_tokens.size(), most_field_bytes(step)));
  }
  if (places.empty()) return false;
  bring_back_all(step, cancel);
  claim(step.sequences);

  const std::vector<MicroBatch> groups = cut_step(step, cut_options(bytes, step));
  const std::uint64_t first = next_id_;
  next_id_ += groups.size();
  ring_->drop_events();
  struct Group {
    std::uint32_t index = 0;
    std::vector<std::size_t> alive;  // places in `sequences`
  };
  std::vector<Group> states;
  for (std::size_t g = 0; g < groups.size(); ++g) {
    wire::Run run = to_run(step, groups[g], first + g);
    Group state;
    std::vector<std::int32_t> tokens;
    for (std::size_t k = 0; k < groups[g].size(); ++k) {
      Decoding& decoding = sequences[places[groups[g][k].sequence]];
      run.sequences[k].decode_ahead = static_cast<std::uint32_t>(decoding.left - 1);
      run.sequences[k].stop_tokens = decoding.stop_tokens;
      tokens.push_back(decoding.step.tokens[0]);
      state.alive.push_back(places[groups[g][k].sequence]);
    }
    ring_->send(0, run, pack(std::span<const std::int32_t>(tokens)));
    states.push_back(std::move(state));
  }

  try {
    std::size_t n_alive = places.size();
    while (n_alive > 0) {
      const Ring::Event event = wait(cancel);
      if (const auto* error = std::get_if<wire::ErrorReply>(&event.in.message)) {
        if (error->request >= first && error->request < next_id_) {
          throw_error(*error, ring_->stage(event.stage).address);
        }
        continue;
      }
      const auto* result = std::get_if<wire::Result>(&event.in.message);
      if (result == nullptr || result->step < first || result->step >= next_id_) continue;
      Group& group = states[result->step - first];
      if (result->index != group.index || result->sequences.size() != group.alive.size() ||
          !result->last) {
        fail<ProtocolError>("[cluster] Result: step ", result->step, ", index ", result->index,
                            " of ", result->sequences.size(), " sequences, need ",
                            group.alive.size(), " at index ", group.index);
      }
      ++group.index;
      std::vector<std::size_t> still;
      const std::vector<std::size_t> was = group.alive;
      for (std::size_t k = 0; k < was.size(); ++k) {
        Decoding& decoding = sequences[was[k]];
        const wire::ResultSequence& from = result->sequences[k];
        if (!from.sampled || from.sampled->token < 0 || from.sampled->token >= config().vocab) {
          fail<ProtocolError>("[cluster] Result: a sampled token is missing");
        }
        commit(decoding.step);
        const std::int32_t token = from.sampled->token;
        decoding.step.start += 1;
        decoding.step.tokens[0] = token;
        decoding.step.history.push_back(token);
        keep_looked_back(*decoding.step.sampler, decoding.step.history);
        --decoding.left;
        tries_ = {};  // as far as here it never has to go again
        const auto& stops = decoding.stop_tokens;
        decoding.alive =
            decoding.left > 0 && !std::binary_search(stops.begin(), stops.end(), token);
        if (decoding.alive != from.alive) {
          fail<ProtocolError>("[cluster] Result: sequence ", k, " of step ", result->step,
                              " goes on where it ends, or ends where it goes on");
        }
        if (decoding.alive) {
          still.push_back(was[k]);
          claim(std::span(&decoding.step, 1));
        } else {
          --n_alive;
        }
        model::SequenceResult out;
        out.sampled = from_wire(*from.sampled);
        if (!sink.take(decoding.index, std::move(out))) {
          ring_->cancel(next_id_ - 1);
          return false;
        }
      }
      group.alive = std::move(still);
    }
  } catch (const WorkerLost&) {
    throw;
  } catch (...) {
    ring_->cancel(next_id_ - 1);
    throw;
  }
  return false;
}

// --- rows of saved sessions

std::vector<std::uint8_t> ClusterRunner::read_rows(model::SequenceId sequence,
                                                   std::int64_t n_tokens,
                                                   const CancelFlag* cancel) {
  const std::size_t layer_bytes = static_cast<std::size_t>(n_tokens) * kv_row_bytes_;
  std::vector<std::uint8_t> bytes(layer_bytes * static_cast<std::size_t>(config().n_layers));
  const std::uint64_t request = next_id_++;
  ring_->drop_events();
  ring_->send(0, wire::KvOp{.request = request,
                            .kind = wire::KvOpKind::kRead,
                            .sequence = sequence,
                            .n_tokens = n_tokens});
  std::size_t missing = bytes.size();
  bool passed = false;
  while (missing > 0 || !passed) {
    const Ring::Event event = wait(cancel);
    if (const auto* error = std::get_if<wire::ErrorReply>(&event.in.message)) {
      if (error->request == request) {
        throw_error(*error, ring_->stage(event.stage).address);
      }
      continue;
    }
    const auto* rows = std::get_if<wire::KvRows>(&event.in.message);
    if (rows == nullptr || rows->request != request) continue;
    if (rows->last) {
      passed = true;
      continue;
    }
    const RingStage& stage = ring_->stage(event.stage);
    const std::size_t n = event.in.payload.size();
    if (rows->layer < stage.layer_begin || rows->layer >= stage.layer_end ||
        rows->token_begin < 0 || rows->token_end > n_tokens ||
        rows->token_begin >= rows->token_end || n > missing ||
        n != static_cast<std::size_t>(rows->token_end - rows->token_begin) * kv_row_bytes_) {
      fail<ProtocolError>("[cluster] KvRows: layer ", rows->layer, ", rows ", rows->token_begin,
                          " to ", rows->token_end, ", ", n, " bytes: not what was asked");
    }
    std::copy(event.in.payload.begin(), event.in.payload.end(),
              bytes.begin() + static_cast<std::ptrdiff_t>(
                                  rows->layer * layer_bytes +
                                  static_cast<std::size_t>(rows->token_begin) * kv_row_bytes_));
    missing -= n;
  }
  return bytes;
}

void ClusterRunner::write_rows(model::SequenceId sequence, std::span<const std::uint8_t> bytes,
                               std::int64_t n_tokens, const CancelFlag* cancel) {
  const std::size_t layer_bytes = static_cast<std::size_t>(n_tokens) * kv_row_bytes_;
  const auto at_once =
      std::max<std::int64_t>(1, setup_.payload_limit / static_cast<std::int64_t>(kv_row_bytes_));
  const std::uint64_t request = next_id_++;
  ring_->drop_events();
  for (std::size_t s = 0; s < ring_->n_stages(); ++s) {
    const RingStage& stage = ring_->stage(s);
    for (std::int64_t layer = stage.layer_begin; layer < stage.layer_end; ++layer) {
      for (std::int64_t begin = 0; begin < n_tokens; begin += at_once) {
        wire::KvRows rows;
        rows.request = request;
        rows.sequence = sequence;
        rows.layer = static_cast<std::uint32_t>(layer);
        rows.token_begin = begin;
        rows.token_end = std::min(n_tokens, begin + at_once);
        rows.last = layer + 1 == stage.layer_end && rows.token_end == n_tokens;
        const auto part =
            bytes.subspan(static_cast<std::size_t>(layer) * layer_bytes +
                              static_cast<std::size_t>(begin) * kv_row_bytes_,
                          static_cast<std::size_t>(rows.token_end - begin) * kv_row_bytes_);
        ring_->send(s, rows, {part.begin(), part.end()});
      }
    }
  }
  for (std::size_t missing = ring_->n_stages(); missing > 0;) {
    const Ring::Event event = wait(cancel);
    if (const auto* error = std::get_if<wire::ErrorReply>(&event.in.message)) {
      if (error->request == request) {
        throw_error(*error, ring_->stage(event.stage).address);
      }
    } else if (const auto* rows = std::get_if<wire::KvRows>(&event.in.message)) {
      if (rows->request == request && rows->last) --missing;
    }
  }
}

}  // namespace moesaic::cluster
