// The closed vocabulary of the cluster, as plain structs; fields.h names their fields in wire
// order, once for both ways. No graphs, addresses of memory, op codes or paths: "run these rows
// through your layers". Lengths, enumerators and flags are checked on arrival; what a number means
// (a layer, a row, a sequence) is checked by the receiver against its deployment, not here. To add
// a message: a type in frame.h, a struct here with kType (and kHasPayload when bytes follow its
// fields), its fields, a line in the variant; the compiler names the places that must answer it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "wire/frame.h"

namespace moesaic::wire {

using NodeId = std::array<std::uint8_t, 16>;  // random per process
using Digest = std::array<std::uint8_t, 32>;  // SHA-256

enum class Role : std::uint8_t { kCoordinator = 0, kWorker = 1, kObserver = 2 };

// --- handshake

struct Hello {  // dialler -> listener, first frame
  static constexpr MessageType kType = MessageType::kHello;
  std::uint8_t version_major = kVersionMajor;
  std::uint8_t version_minor = kVersionMinor;
  Role role = Role::kCoordinator;
  NodeId node{};
  std::string release;  // "0.1.0"
  Digest numerics{};    // of a small fixed matmul on this build and machine
};

struct Welcome {  // listener -> dialler
  static constexpr MessageType kType = MessageType::kWelcome;
  std::uint8_t version_major = kVersionMajor;
  std::uint8_t version_minor = kVersionMinor;
  NodeId node{};
  Digest proof{};  // that the listener has the cluster key and is `node`: net/psk.h
  std::string release;
  Digest numerics{};
  std::string address;  // as the listener wants to be dialled, "host:port"
};

struct Ping {
  static constexpr MessageType kType = MessageType::kPing;
  std::uint64_t nonce = 0;
};
struct Pong {
  static constexpr MessageType kType = MessageType::kPong;
  std::uint64_t nonce = 0;
  std::uint64_t steps_done = 0;  // stuck differs from dead: a busy worker's rows move
  std::uint64_t rows_done = 0;
  std::uint64_t bytes_loaded = 0;
  std::string activity;          // "idle", "loading 40 %", "step 17"
  std::uint64_t units_done = 0;  // layers, tasks and load pieces: moves while anything does
  std::uint32_t stalled_ms = 0;  // since the compute that this deployment waits for last moved; 0:
                                 // it is idle, or waits for its peers
};

enum class Reason : std::uint16_t {
  kShutdown = 1,
  kVersion = 2,
  kNumerics = 3,
  kOwnId = 4,
  kOldEpoch = 5,
  kBusy = 6,
  kProtocol = 7,
  kTimeout = 8,
};

struct GoAway {  // the sender closes after this
  static constexpr MessageType kType = MessageType::kGoAway;
  Reason reason = Reason::kShutdown;
  std::string text;
};

enum class ErrorKind : std::uint8_t {  // which class of base/errors.h it is on the other side
  kArgument = 0,
  kFormat = 1,
  kIo = 2,
  kNet = 3,
  kDeadline = 4,
  kProtocol = 5,
  kOutOfMemory = 6,
  kBackend = 7,
  kInternal = 8,
  kCancelled = 9,
  kWorkerLost = 10,
};

inline constexpr std::uint32_t kNoStage = 0xFFFFFFFFU;

struct ErrorReply {
  static constexpr MessageType kType = MessageType::kError;
  std::uint64_t request = 0;  // the step or request it answers; 0: the deployment as a whole
  ErrorKind kind = ErrorKind::kInternal;
  std::string text;
  std::uint64_t needed_bytes = 0;  // kOutOfMemory
  std::uint64_t free_bytes = 0;
  std::uint32_t stage = kNoStage;  // kWorkerLost: whose
};

// --- status

struct HeldModel {
  Digest identity{};
  std::string name;
  std::uint32_t layer_begin = 0;
  std::uint32_t layer_end = 0;
  std::uint64_t weights_bytes = 0;
  std::uint32_t sessions = 0;  // sequences with a cache
};

struct StatusRequest {
  static constexpr MessageType kType = MessageType::kStatusRequest;
  std::uint64_t request = 0;
  bool measure = false;  // run the measurements if they have not been made
  std::string probe;     // with measure: "host:port" of a peer, the link to which is measured
};
struct Status {
  static constexpr MessageType kType = MessageType::kStatus;
  std::uint64_t request = 0;
  std::string host;
  std::uint64_t pid = 0;
  std::string release;
  std::string isa;
  std::uint32_t threads = 0;
  std::uint64_t memory_bytes = 0;       // what the worker may use
  std::uint64_t memory_free_bytes = 0;  // of it
  double read_bytes_per_s = 0;          // weights, all threads; 0: not measured
  double matmul_ops_per_s = 0;          // int8, many rows, all threads
  double probe_rtt_s = 0;               // of the link asked for; 0: not measured
  double probe_bytes_per_s = 0;
  std::uint64_t bytes_sent_activations = 0;
  std::uint64_t bytes_received_activations = 0;
  std::uint64_t bytes_read_weights = 0;  // from its own files or peers, ever
  std::string state;                     // "idle", "loading", "ready"
  std::vector<HeldModel> models;
};

// Coordinator -> worker: let go of held weights that no deployment uses. Answered by Status.
struct Unload {
  static constexpr MessageType kType = MessageType::kUnload;
  std::uint64_t request = 0;
  std::string model;  // a file name or an identity in hex; empty: all
};

// --- weights

struct ManifestRequest {
  static constexpr MessageType kType = MessageType::kManifestRequest;
  std::uint64_t request = 0;
  Digest identity{};  // of the content; all zero: by name
  Digest headers{};   // with an identity: what the headers of such a file give
  std::string name;   // a file name, never a path
  bool want_header = false;
};
struct UnitDigest {
  std::uint32_t tensor = 0;  // index in the directory
  std::uint32_t expert = 0;
  Digest sha256{};
};
// Proves itself to a receiver that knows the identity: headers and tensors give it, and the units
// of a tensor give its digest.
struct Manifest {
  static constexpr MessageType kType = MessageType::kManifest;
  std::uint64_t request = 0;
  Digest identity{};  // all zero: it is being made, ask again (by name only)
  Digest headers{};
  std::string name;
  bool is_file = false;            // a whole file, not a slice that outlived it
  std::uint64_t header_bytes = 0;  // of all parts together, to be fetched as blob kHeaderTensor
  std::vector<Digest> tensors;     // of each tensor of the directory; empty: not known
  std::vector<UnitDigest> units;   // those that are known
  std::uint64_t hashed_bytes = 0;  // while the identity is being made: how far it is
  std::uint64_t total_bytes = 0;
};

// Bytes [offset, offset + n_bytes) of a tensor, or of the headers of all parts one after the other
// (kHeaderTensor).
inline constexpr std::uint32_t kHeaderTensor = 0xFFFFFFFFU;
struct BlobRequest {
  static constexpr MessageType kType = MessageType::kBlobRequest;
  std::uint64_t request = 0;
  Digest identity{};
  std::uint32_t tensor = 0;
  std::uint64_t offset = 0;
  std::uint64_t n_bytes = 0;  // at most 4 MiB
};
struct Blob {  // payload: the bytes
  static constexpr MessageType kType = MessageType::kBlob;
  static constexpr bool kHasPayload = true;
  std::uint64_t request = 0;
};

// --- deployment: the epoch of these frames' headers names it

enum class HiddenType : std::uint8_t { kF32 = 0, kF16 = 1 };
enum class DigestPolicy : std::uint8_t { kFirst = 0, kAlways = 1, kNever = 2 };

struct Stage {
  std::string address;  // "host:port"
  NodeId node{};
  std::uint32_t layer_begin = 0;
  std::uint32_t layer_end = 0;
};

enum class OverrideKind : std::uint8_t { kFlag = 0, kInteger = 1, kNumber = 2, kText = 3 };

struct Override {  // a key of the model's file that has another value; the fields of its kind
  std::string name;
  OverrideKind kind = OverrideKind::kFlag;
  bool flag = false;
  std::int64_t integer = 0;
  double number = 0.0;
  std::string text;
};

struct Load {  // coordinator -> each worker
  static constexpr MessageType kType = MessageType::kLoad;
  std::uint64_t request = 0;
  Digest identity{};            // of the content
  Digest headers{};             // what the headers of such a file give
  std::vector<Digest> tensors;  // of each tensor of the directory: headers and these give identity
  std::string name;
  std::uint32_t stage = 0;  // which of `stages` the receiver is
  std::vector<Stage> stages;
  std::int64_t n_ctx = 0;
  std::int64_t kv_tokens = 0;
  std::uint32_t max_step_rows = 0;  // rows of one Run frame
  bool deterministic = false;
  std::uint8_t kv_type = 1;  // backend::KvType
  HiddenType hidden = HiddenType::kF32;
  DigestPolicy digests = DigestPolicy::kFirst;
  std::vector<std::string>
      sources;  // who may be asked for weights: "host:port" of peers, "" for the coordinator
  std::vector<Override> overrides;
};
struct LoadProgress {
  static constexpr MessageType kType = MessageType::kLoadProgress;
  std::uint64_t request = 0;
  std::uint64_t done_bytes = 0;
  std::uint64_t total_bytes = 0;
  std::string what;  // "pull", "verify", "map"
};
struct Loaded {
  static constexpr MessageType kType = MessageType::kLoaded;
  std::uint64_t request = 0;
  std::uint64_t weights_bytes = 0;
  std::uint64_t derived_bytes = 0;
  std::uint64_t kv_bytes = 0;
  std::uint64_t scratch_bytes = 0;
  std::uint64_t bytes_read = 0;  // by this load
  std::string source;            // "local copy", "cache", "pulled"
};

struct Join {  // worker k -> worker k + 1, and last -> worker 0: the first frame of a ring
  static constexpr MessageType kType = MessageType::kJoin;
  // connection
  std::uint32_t from_stage = 0;
  std::uint32_t to_stage = 0;
};

// --- steps

struct Sampler {  // model::SamplerSpec
  float temperature = 0;
  std::int32_t top_k = 0;
  float top_p = 1;
  float min_p = 0;
  float typical_p = 1;
  float repeat_penalty = 1;
  float presence_penalty = 0;
  float frequency_penalty = 0;
  std::int32_t penalty_last_n = 0;
  std::uint64_t seed = 0;
  std::int32_t n_logprobs = -1;
  std::vector<std::int32_t> bias_tokens;
  std::vector<float> bias_values;  // as many
};

struct RunTarget {
  std::int32_t row = 0;
  std::int32_t token = 0;
};

struct RunSequence {
  std::uint64_t sequence = 0;
  std::int64_t start = 0;
  std::uint32_t n_rows = 0;
  std::uint8_t logits = 0;  // model::Logits
  std::vector<RunTarget> targets;
  std::optional<Sampler> sampler;
  std::vector<std::int32_t>
      history;  // for penalties: tokens up to and with these rows', newest last
  bool capture = false;
  std::uint32_t decode_ahead = 0;  // more tokens the ring may generate by itself after the first
  std::vector<std::int32_t> stop_tokens;  // end of generation
};

// Payload: int32 tokens (n_rows in all) to worker 0, hidden rows (n_rows, d_model) to the others. A
// step that generates ahead passes again with index + 1, of one row for each sequence still alive,
// in order; without sampler, history and stop_tokens, which the last stage keeps from index 0.
struct Run {
  static constexpr MessageType kType = MessageType::kRun;
  static constexpr bool kHasPayload = true;
  std::uint64_t step = 0;
  std::uint32_t index = 0;  // how many tokens the ring has generated by itself in this step
  std::vector<RunSequence> sequences;
  std::vector<std::string> capture;
};

struct SampledToken {
  std::int32_t token = 0;
  float logprob = 0;
  std::vector<std::int32_t> top_ids;
  std::vector<float> top_logprobs;
};
struct TargetValue {
  double logprob = 0;
  bool is_greedy = false;
};
struct ResultSequence {
  std::uint32_t logits_row =
      0;  // of this sequence's wanted rows: which comes first in the payload here
  std::uint32_t n_logits_rows = 0;
  std::vector<TargetValue> targets;
  std::optional<SampledToken> sampled;
  bool alive = false;  // the ring goes on with it
};
// Last worker -> coordinator. Payload: logits rows (float32) of the sequences, in order. Rows that
// do not fit one frame come in earlier frames with last = false.
struct Result {
  static constexpr MessageType kType = MessageType::kResult;
  static constexpr bool kHasPayload = true;
  std::uint64_t step = 0;
  std::uint32_t index = 0;
  std::vector<ResultSequence> sequences;
  bool last = true;  // of this (step, index)
};

struct Tokens {  // last worker -> worker 0
  static constexpr MessageType kType = MessageType::kTokens;
  std::uint64_t step = 0;
  std::uint32_t index = 0;           // of the Run to make
  std::vector<std::int32_t> tokens;  // of each sequence of the Run before; -1: it has ended
};

struct Capture {  // owner of the layer -> coordinator; payload: float32 or int32 (n_rows, n_cols)
  static constexpr MessageType kType = MessageType::kCapture;
  static constexpr bool kHasPayload = true;
  std::uint64_t step = 0;
  std::uint32_t index = 0;
  std::uint32_t sequence = 0;  // its place in the step
  std::string name;
  std::uint32_t row = 0;
  std::uint32_t n_rows = 0;
  std::uint32_t n_cols = 0;
  bool ids = false;
};

// --- KV: travels round the ring in order with Run frames; the last worker answers the coordinator

enum class KvOpKind : std::uint8_t {
  kClose = 0,
  kTruncate = 1,
  kFork = 2,
  kRead = 3,
  kCloseAll = 4
};
struct KvOp {
  static constexpr MessageType kType = MessageType::kKvOp;
  std::uint64_t request = 0;
  KvOpKind kind = KvOpKind::kClose;
  std::uint64_t sequence = 0;
  std::uint64_t other = 0;  // kFork: the new sequence
  std::int64_t n_tokens = 0;
};
// Cached rows [token_begin, token_end) of one layer as stored (payload). Worker -> coordinator: the
// answer to kRead, and with `last` (no payload) from the last worker: an op has passed the whole
// ring. Coordinator -> worker: rows of a saved session for the sequence, which the worker opens.
struct KvRows {
  static constexpr MessageType kType = MessageType::kKvRows;
  static constexpr bool kHasPayload = true;
  std::uint64_t request = 0;
  std::uint64_t sequence = 0;
  std::uint32_t layer = 0;
  std::int64_t token_begin = 0;
  std::int64_t token_end = 0;
  bool last = false;
};

struct Cancel {
  static constexpr MessageType kType = MessageType::kCancel;
  std::uint64_t step = 0;  // this step and all before it
};

using Message =
    std::variant<Hello, Welcome, Ping, Pong, GoAway, ErrorReply, StatusRequest, Status,
                 ManifestRequest, Manifest, BlobRequest, Blob, Load, LoadProgress, Loaded, Join,
                 Run, Result, Tokens, Capture, KvOp, KvRows, Cancel, Unload>;

template <typename M>
constexpr MessageType message_type() {
  return M::kType;
}

// The message's fields as bytes; a payload follows them in the frame's body.
template <typename M>
std::vector<std::uint8_t> encode(const M& message);

// A message and what follows its fields in the body (a view into it). Types without a payload must
// end there.
struct Decoded {
  Message message;
  std::span<const std::uint8_t> payload;
};
Decoded decode(MessageType type, std::span<const std::uint8_t> body);  // throws ProtocolError

}  // namespace moesaic::wire

#include "wire/fields.h"

namespace moesaic::wire {

template <typename M>
std::vector<std::uint8_t> encode(const M& message) {
  Writer writer;
  writer.field(message);
  return writer.take();
}

}  // namespace moesaic::wire
