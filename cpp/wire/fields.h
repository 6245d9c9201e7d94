// The fields of each message in wire order, serving both ways (Writer and Reader of bytes.h), and
// which enumerators exist. The order is the protocol: a change of it is another version_minor or
// version_major (frame.h). Included by messages.h; not for use by itself.
#pragma once

#include "wire/bytes.h"
#include "wire/messages.h"

namespace moesaic::wire {

// Enumerators count up from 0 (Reason from 1); others are refused on arrival.
constexpr bool exists(Role value) { return value <= Role::kObserver; }
constexpr bool exists(Reason value) {
  return value >= Reason::kShutdown && value <= Reason::kTimeout;
}
constexpr bool exists(ErrorKind value) { return value <= ErrorKind::kWorkerLost; }
constexpr bool exists(HiddenType value) { return value <= HiddenType::kF16; }
constexpr bool exists(DigestPolicy value) { return value <= DigestPolicy::kNever; }
constexpr bool exists(OverrideKind value) { return value <= OverrideKind::kText; }
constexpr bool exists(KvOpKind value) { return value <= KvOpKind::kCloseAll; }

template <typename F>
void fields(F& f, Hello& m) {
  f.field(m.version_major);
  f.field(m.version_minor);
  f.field(m.role);
  f.field(m.node);
  f.field(m.release);
  f.field(m.numerics);
}
template <typename F>
void fields(F& f, Welcome& m) {
  f.field(m.version_major);
  f.field(m.version_minor);
  f.field(m.node);
  f.field(m.proof);
  f.field(m.release);
  f.field(m.numerics);
  f.field(m.address);
}
template <typename F>
void fields(F& f, Ping& m) {
  f.field(m.nonce);
}
template <typename F>
void fields(F& f, Pong& m) {
  f.field(m.nonce);
  f.field(m.steps_done);
  f.field(m.rows_done);
  f.field(m.bytes_loaded);
  f.field(m.activity);
  f.field(m.units_done);
  f.field(m.stalled_ms);
}
template <typename F>
void fields(F& f, GoAway& m) {
  f.field(m.reason);
  f.field(m.text);
}
template <typename F>
void fields(F& f, ErrorReply& m) {
  f.field(m.request);
  f.field(m.kind);
  f.field(m.text);
  f.field(m.needed_bytes);
  f.field(m.free_bytes);
  f.field(m.stage);
}
template <typename F>
void fields(F& f, HeldModel& m) {
  f.field(m.identity);
  f.field(m.name);
  f.field(m.layer_begin);
  f.field(m.layer_end);
  f.field(m.weights_bytes);
  f.field(m.sessions);
}
template <typename F>
void fields(F& f, StatusRequest& m) {
  f.field(m.request);
  f.field(m.measure);
  f.field(m.probe);
}
template <typename F>
void fields(F& f, Status& m) {
  f.field(m.request);
  f.field(m.host);
  f.field(m.pid);
  f.field(m.release);
  f.field(m.isa);
  f.field(m.threads);
  f.field(m.memory_bytes);
  f.field(m.memory_free_bytes);
  f.field(m.read_bytes_per_s);
  f.field(m.matmul_ops_per_s);
  f.field(m.probe_rtt_s);
  f.field(m.probe_bytes_per_s);
  f.field(m.bytes_sent_activations);
  f.field(m.bytes_received_activations);
  f.field(m.bytes_read_weights);
  f.field(m.state);
  f.field(m.models);
}
template <typename F>
void fields(F& f, Unload& m) {
  f.field(m.request);
  f.field(m.model);
}
template <typename F>
void fields(F& f, ManifestRequest& m) {
  f.field(m.request);
  f.field(m.identity);
  f.field(m.headers);
  f.field(m.name);
  f.field(m.want_header);
}
template <typename F>
void fields(F& f, UnitDigest& m) {
  f.field(m.tensor);
  f.field(m.expert);
  f.field(m.sha256);
}
template <typename F>
void fields(F& f, Manifest& m) {
  f.field(m.request);
  f.field(m.identity);
  f.field(m.headers);
  f.field(m.name);
  f.field(m.is_file);
  f.field(m.header_bytes);
  f.field(m.tensors);
  f.field(m.units);
  f.field(m.hashed_bytes);
  f.field(m.total_bytes);
}
template <typename F>
void fields(F& f, BlobRequest& m) {
  f.field(m.request);
  f.field(m.identity);
  f.field(m.tensor);
  f.field(m.offset);
  f.field(m.n_bytes);
}
template <typename F>
void fields(F& f, Blob& m) {
  f.field(m.request);
}
template <typename F>
void fields(F& f, Stage& m) {
  f.field(m.address);
  f.field(m.node);
  f.field(m.layer_begin);
  f.field(m.layer_end);
}
template <typename F>
void fields(F& f, Override& m) {
  f.field(m.name);
  f.field(m.kind);
  f.field(m.flag);
  f.field(m.integer);
  f.field(m.number);
  f.field(m.text);
}
template <typename F>
void fields(F& f, Load& m) {
  f.field(m.request);
  f.field(m.identity);
  f.field(m.headers);
  f.field(m.tensors);
  f.field(m.name);
  f.field(m.stage);
  f.field(m.stages);
  f.field(m.n_ctx);
  f.field(m.kv_tokens);
  f.field(m.max_step_rows);
  f.field(m.deterministic);
  f.field(m.kv_type);
  f.field(m.hidden);
  f.field(m.digests);
  f.field(m.sources);
  f.field(m.overrides);
}
template <typename F>
void fields(F& f, LoadProgress& m) {
  f.field(m.request);
  f.field(m.done_bytes);
  f.field(m.total_bytes);
  f.field(m.what);
}
template <typename F>
void fields(F& f, Loaded& m) {
  f.field(m.request);
  f.field(m.weights_bytes);
  f.field(m.derived_bytes);
  f.field(m.kv_bytes);
  f.field(m.scratch_bytes);
  f.field(m.bytes_read);
  f.field(m.source);
}
template <typename F>
void fields(F& f, Join& m) {
  f.field(m.from_stage);
  f.field(m.to_stage);
}
template <typename F>
void fields(F& f, Sampler& m) {
  f.field(m.temperature);
  f.field(m.top_k);
  f.field(m.top_p);
  f.field(m.min_p);
  f.field(m.typical_p);
  f.field(m.repeat_penalty);
  f.field(m.presence_penalty);
  f.field(m.frequency_penalty);
  f.field(m.penalty_last_n);
  f.field(m.seed);
  f.field(m.n_logprobs);
  f.field(m.bias_tokens);
  f.field(m.bias_values);
}
template <typename F>
void fields(F& f, RunTarget& m) {
  f.field(m.row);
  f.field(m.token);
}
template <typename F>
void fields(F& f, RunSequence& m) {
  f.field(m.sequence);
  f.field(m.start);
  f.field(m.n_rows);
  f.field(m.logits);
  f.field(m.targets);
  f.field(m.sampler);
  f.field(m.history);
  f.field(m.capture);
  f.field(m.decode_ahead);
  f.field(m.stop_tokens);
}
template <typename F>
void fields(F& f, Run& m) {
  f.field(m.step);
  f.field(m.index);
  f.field(m.sequences);
  f.field(m.capture);
}
template <typename F>
void fields(F& f, SampledToken& m) {
  f.field(m.token);
  f.field(m.logprob);
  f.field(m.top_ids);
  f.field(m.top_logprobs);
}
template <typename F>
void fields(F& f, TargetValue& m) {
  f.field(m.logprob);
  f.field(m.is_greedy);
}
template <typename F>
void fields(F& f, ResultSequence& m) {
  f.field(m.logits_row);
  f.field(m.n_logits_rows);
  f.field(m.targets);
  f.field(m.sampled);
  f.field(m.alive);
}
template <typename F>
void fields(F& f, Result& m) {
  f.field(m.step);
  f.field(m.index);
  f.field(m.sequences);
  f.field(m.last);
}
template <typename F>
void fields(F& f, Tokens& m) {
  f.field(m.step);
  f.field(m.index);
  f.field(m.tokens);
}
template <typename F>
void fields(F& f, Capture& m) {
  f.field(m.step);
  f.field(m.index);
  f.field(m.sequence);
  f.field(m.name);
  f.field(m.row);
  f.field(m.n_rows);
  f.field(m.n_cols);
  f.field(m.ids);
}
template <typename F>
void fields(F& f, KvOp& m) {
  f.field(m.request);
  f.field(m.kind);
  f.field(m.sequence);
  f.field(m.other);
  f.field(m.n_tokens);
}
template <typename F>
void fields(F& f, KvRows& m) {
  f.field(m.request);
  f.field(m.sequence);
  f.field(m.layer);
  f.field(m.token_begin);
  f.field(m.token_end);
  f.field(m.last);
}
template <typename F>
void fields(F& f, Cancel& m) {
  f.field(m.step);
}

}  // namespace moesaic::wire
