// What this machine reaches, for plans: the rate at which weights are read by one row, and the rate
// of matmuls by many, with real matmuls of the types that large models are made of. Through the
// backend only. Not a benchmark: bench/ prints those.
#pragma once

#include "base/cancel.h"

namespace moesaic::cluster {

struct Rates {
  double read_bytes_per_s = 0;  // of weights, decoding one row: memory's rate or the unpacking's
  double matmul_ops_per_s = 0;  // int8 multiplies and adds, 256 rows
};

// Takes about half a second and 200 MB; 0 threads: those that this process may use. Throws
// OutOfMemoryError, and CancelledError soon after `cancel` is set.
Rates measure(int n_threads, const CancelFlag* cancel = nullptr);

}  // namespace moesaic::cluster
