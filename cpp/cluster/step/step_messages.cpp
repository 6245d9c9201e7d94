// See step_messages.h.
#include "cluster/step/step_messages.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/errors.h"
#include "model/run/sampler.h"
#include "net/connection.h"
#include "quant/half.h"

namespace moesaic::cluster {

static_assert(std::endian::native == std::endian::little, "payloads are little endian");

wire::Sampler to_wire(const model::SamplerSpec& spec) {
  wire::Sampler out;
  out.temperature = spec.temperature;
  out.top_k = spec.top_k;
  out.top_p = spec.top_p;
  out.min_p = spec.min_p;
  out.typical_p = spec.typical_p;
  out.repeat_penalty = spec.repeat_penalty;
  out.presence_penalty = spec.presence_penalty;
  out.frequency_penalty = spec.frequency_penalty;
  out.penalty_last_n = spec.penalty_last_n;
  out.seed = spec.seed;
  out.n_logprobs = spec.n_logprobs;
  for (const auto& [token, value] : spec.logit_bias) {
    out.bias_tokens.push_back(token);
    out.bias_values.push_back(value);
  }
  return out;
}

model::SamplerSpec from_wire(const wire::Sampler& sampler) {
  if (sampler.bias_tokens.size() != sampler.bias_values.size()) {
    fail<ProtocolError>("[run] sampler: got ", sampler.bias_tokens.size(), " biased tokens and ",
                        sampler.bias_values.size(), " values, need as many");
  }
  model::SamplerSpec out;
  out.temperature = sampler.temperature;
  out.top_k = sampler.top_k;
  out.top_p = sampler.top_p;
  out.min_p = sampler.min_p;
  out.typical_p = sampler.typical_p;
  out.repeat_penalty = sampler.repeat_penalty;
  out.presence_penalty = sampler.presence_penalty;
  out.frequency_penalty = sampler.frequency_penalty;
  out.penalty_last_n = sampler.penalty_last_n;
  out.seed = sampler.seed;
  out.n_logprobs = sampler.n_logprobs;
  for (std::size_t i = 0; i < sampler.bias_tokens.size(); ++i) {
    out.logit_bias.emplace_back(sampler.bias_tokens[i], sampler.bias_values[i]);
  }
  return out;
}

std::vector<wire::Override> to_wire(const model::Overrides& overrides) {
  using wire::OverrideKind;
  std::vector<wire::Override> sent;
  for (const model::Override& override : overrides) {
    wire::Override& to = sent.emplace_back();
    to.name = override.name;
    if (const auto* flag = std::get_if<bool>(&override.value)) {
      to.kind = OverrideKind::kFlag;
      to.flag = *flag;
    } else if (const auto* integer = std::get_if<std::int64_t>(&override.value)) {
      to.kind = OverrideKind::kInteger;
      to.integer = *integer;
    } else if (const auto* number = std::get_if<double>(&override.value)) {
      to.kind = OverrideKind::kNumber;
      to.number = *number;
    } else {
      to.kind = OverrideKind::kText;
      to.text = std::get<std::string>(override.value);
    }
  }
  return sent;
}

model::Overrides from_wire(const std::vector<wire::Override>& overrides) {
  using wire::OverrideKind;
  model::Overrides got;
  for (const wire::Override& override : overrides) {
    model::Override& to = got.emplace_back(model::Override{override.name, override.flag});
    if (override.kind == OverrideKind::kInteger) to.value = override.integer;
    if (override.kind == OverrideKind::kNumber) to.value = override.number;
    if (override.kind == OverrideKind::kText) to.value = override.text;
  }
  return got;
}

wire::SampledToken to_wire(const model::Sampled& sampled) {
  return {sampled.token, sampled.logprob, sampled.top_ids, sampled.top_logprobs};
}

model::Sampled from_wire(const wire::SampledToken& sampled) {
  return {sampled.token, sampled.logprob, sampled.top_ids, sampled.top_logprobs};
}

void keep_looked_back(const model::SamplerSpec& spec, std::vector<std::int32_t>& history) {
  const auto kept = static_cast<std::ptrdiff_t>(model::looked_back(spec, history).size());
  history.erase(history.begin(), history.end() - kept);
}

std::uint32_t payload_limit(const model::Config& config, std::int64_t micro_batch_rows) {
  constexpr std::uint64_t kLeast = std::uint64_t{1} << 20U;
  constexpr std::uint64_t kMost = std::uint64_t{48} << 20U;  // a frame stays below a link's queue
  const auto rows = static_cast<std::uint64_t>(micro_batch_rows);
  const std::uint64_t need =
      std::max({kLeast, rows * static_cast<std::uint64_t>(config.d_model) * sizeof(float),
                static_cast<std::uint64_t>(config.vocab) * sizeof(float)});
  if (need > kMost) {
    fail<ArgumentError>("[cluster] micro_batch_rows: ", micro_batch_rows, " rows of ",
                        config.d_model, " values are ", need, " bytes, need at most ", kMost,
                        " in one frame; use fewer rows");
  }
  return static_cast<std::uint32_t>(need);
}

std::size_t hidden_bytes(std::int64_t n_values, wire::HiddenType type) {
  return static_cast<std::size_t>(n_values) * (type == wire::HiddenType::kF16 ? 2 : 4);
}

std::vector<std::uint8_t> pack_hidden(std::span<const float> hidden, wire::HiddenType type) {
  if (type == wire::HiddenType::kF32) return pack(hidden);
  std::vector<std::uint16_t> half(hidden.size());
  std::transform(hidden.begin(), hidden.end(), half.begin(), quant::f32_to_f16);
  return pack(std::span<const std::uint16_t>(half));
}

void unpack_hidden(std::span<const std::uint8_t> bytes, wire::HiddenType type,
                   std::span<float> out) {
  if (type == wire::HiddenType::kF32) {
    std::memcpy(out.data(), bytes.data(), out.size_bytes());
    return;
  }
  for (std::size_t i = 0; i < out.size(); ++i) {
    std::uint16_t half = 0;
    std::memcpy(&half, bytes.data() + 2 * i, sizeof half);
    out[i] = quant::f16_to_f32(half);
  }
}

template <typename T>
std::vector<std::uint8_t> pack(std::span<const T> values) {
  std::vector<std::uint8_t> bytes(values.size_bytes());
  if (!bytes.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

template <typename T>
std::vector<T> unpack(std::span<const std::uint8_t> bytes) {
  if (bytes.size() % sizeof(T) != 0) {
    fail<ProtocolError>("[cluster] payload: got ", bytes.size(), " bytes, need a multiple of ",
                        sizeof(T));
  }
  std::vector<T> values(bytes.size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

template std::vector<std::uint8_t> pack(std::span<const float>);
template std::vector<std::uint8_t> pack(std::span<const std::int32_t>);
template std::vector<std::uint8_t> pack(std::span<const std::uint16_t>);
template std::vector<float> unpack(std::span<const std::uint8_t>);
template std::vector<std::int32_t> unpack(std::span<const std::uint8_t>);

wire::ErrorReply error_reply(std::uint64_t request, const std::exception_ptr& error) {
  using wire::ErrorKind;
  wire::ErrorReply reply;
  reply.request = request;
  const auto as = [&](ErrorKind kind, const std::exception& e) {
    reply.kind = kind;
    reply.text = net::printable(e.what());
  };
  try {
    std::rethrow_exception(error);
  } catch (const OutOfMemoryError& e) {
    as(ErrorKind::kOutOfMemory, e);
    reply.needed_bytes = e.needed_bytes;
    reply.free_bytes = e.free_bytes;
  } catch (const WorkerLost& e) {
    as(ErrorKind::kWorkerLost, e);
  } catch (const ArgumentError& e) {
    as(ErrorKind::kArgument, e);
  } catch (const FormatError& e) {
    as(ErrorKind::kFormat, e);
  } catch (const IoError& e) {
    as(ErrorKind::kIo, e);
  } catch (const DeadlineError& e) {
    as(ErrorKind::kDeadline, e);
  } catch (const ProtocolError& e) {
    as(ErrorKind::kProtocol, e);
  } catch (const NetError& e) {
    as(ErrorKind::kNet, e);
  } catch (const BackendError& e) {
    as(ErrorKind::kBackend, e);
  } catch (const CancelledError& e) {
    as(ErrorKind::kCancelled, e);
  } catch (const std::bad_alloc& e) {
    as(ErrorKind::kOutOfMemory, e);
    reply.text = "the system has no more memory";
  } catch (const std::exception& e) {
    as(ErrorKind::kInternal, e);
  }
  return reply;
}

void throw_error(const wire::ErrorReply& reply, const std::string& node) {
  using wire::ErrorKind;
  const std::string text = strcat("worker ", node, ": ", net::printable(reply.text));
  switch (reply.kind) {
    case ErrorKind::kArgument:
      throw ArgumentError(text);
    case ErrorKind::kFormat:
      throw FormatError(text);
    case ErrorKind::kIo:
      throw IoError(text);
    case ErrorKind::kNet:
      throw NetError(text);
    case ErrorKind::kDeadline:
      throw DeadlineError(text);
    case ErrorKind::kProtocol:
      throw ProtocolError(text);
    case ErrorKind::kOutOfMemory:
      throw OutOfMemoryError(text, reply.needed_bytes, reply.free_bytes);
    case ErrorKind::kBackend:
      throw BackendError(text);
    case ErrorKind::kCancelled:
      throw CancelledError(text);
    case ErrorKind::kWorkerLost:
      throw WorkerLost(text, node, {}, {});
    case ErrorKind::kInternal:
      break;
  }
  throw InternalError(text);
}

}  // namespace moesaic::cluster
