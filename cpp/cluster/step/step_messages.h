// Between the model's words for a step and the wire's. What came from a peer is checked where it is
// used (stage.cpp), not here.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/config.h"
#include "model/file/overrides.h"
#include "model/runner.h"
#include "wire/messages.h"

namespace moesaic::cluster {

wire::Sampler to_wire(const model::SamplerSpec& spec);
model::SamplerSpec from_wire(const wire::Sampler& sampler);
std::vector<wire::Override> to_wire(const model::Overrides& overrides);
model::Overrides from_wire(const std::vector<wire::Override>& overrides);
wire::SampledToken to_wire(const model::Sampled& sampled);
model::Sampled from_wire(const wire::SampledToken& sampled);

// Drops the oldest tokens of a history that the sampler does not look back at (model::looked_back).
void keep_looked_back(const model::SamplerSpec& spec, std::vector<std::int32_t>& history);

// Bytes of one payload of a deployment: a micro-batch's hidden rows or a row of logits; larger
// results are cut into pieces of at most this.
std::uint32_t payload_limit(const model::Config& config, std::int64_t micro_batch_rows);

// Hidden rows (n, d_model) to and from payload bytes.
std::vector<std::uint8_t> pack_hidden(std::span<const float> hidden, wire::HiddenType type);
std::size_t hidden_bytes(std::int64_t n_values, wire::HiddenType type);
// bytes.size() must be hidden_bytes(out.size(), type).
void unpack_hidden(std::span<const std::uint8_t> bytes, wire::HiddenType type,
                   std::span<float> out);

template <typename T>
std::vector<std::uint8_t> pack(std::span<const T> values);
template <typename T>
std::vector<T> unpack(std::span<const std::uint8_t> bytes);  // throws ProtocolError for a rest

// An error as it travels, and back.
wire::ErrorReply error_reply(std::uint64_t request, const std::exception_ptr& error);
[[noreturn]] void throw_error(const wire::ErrorReply& reply, const std::string& node);

}  // namespace moesaic::cluster
