// What makes two machines' results equal byte for byte, as a digest: a small fixed matmul and
// attention of several types on this build and CPU. Peers compare it in their handshakes;
// deterministic deployments refuse workers that differ.
#pragma once

#include "wire/messages.h"

namespace moesaic::cluster {

wire::Digest numerics_digest();  // some milliseconds; the same on every call of a process

}  // namespace moesaic::cluster
