// Rotary embedding from a file's keys: frequencies with linear or YaRN scaling and rope_freqs
// applied. Not for turning anything. YaRN: arXiv:2309.00071; FACTS.md sections 3 and 4.
#pragma once

#include "backend/backend.h"
#include "model/file/keys.h"

namespace moesaic::model {

struct RopeOptions {
  bool interleaved = false;
  double default_base = 10000.0;  // where rope.freq_base is absent
  // Whether the bounds of YaRN's ramp are rounded to whole pairs. gpt-oss leaves them as they are,
  // and no key says so.
  bool round_ramp = true;
  // DeepSeek's YaRN: the softmax scale takes the magnitude's place (softmax_factor below).
  bool magnitude_in_softmax = false;
};

struct Rope {
  backend::RopeSpec spec;
  double softmax_factor = 1.0;  // multiplies the attention's scale
};

// n_rot: dimensions turned, of a head of d_head.
Rope read_rope(const Keys& keys, std::int64_t n_rot, std::int64_t d_head,
               const RopeOptions& options);

}  // namespace moesaic::model
