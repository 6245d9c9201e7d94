// What makes two machines' results equal byte for byte, as a digest: small fixed matmuls of every
// type of weight, experts, rotary embedding, and attention over each kind of cache (grouped heads
// and MLA) on this build and CPU, with the release that computes them. Peers compare it in their
// handshakes; deterministic deployments refuse workers that differ.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "wire/messages.h"

namespace moesaic::cluster {

// What it is made of: "matmul Q4_K", "attention f16", "MLA attention q8_0", ...
std::vector<std::pair<std::string, wire::Digest>> numerics_parts();

// Some tens of milliseconds the first time; the same on every call of a process with that release.
wire::Digest numerics_digest(const std::string& release);

}  // namespace moesaic::cluster
