// What the kernel benches share: a clock that takes the best of several runs, operands, options and
// the machine's ceilings. One JSON line per figure on standard output.
#pragma once

#include <time.h>

#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

namespace moesaic::bench {

struct Options {
  std::string type;  // only this weight type, or all
  std::string isa;   // only this table, or all
  double seconds = 0.05;
  std::int64_t k = 2048;  // of a row of weights
  bool many_columns = true;
  bool matmul = true;
  bool attention = true;
};

struct Ceilings {
  double read_gb_per_s;    // one thread, from memory
  double cache_gb_per_s;   // one thread, from the second-level cache
  double int8_gop_per_s;   // one thread, dpbusd or maddubs
  double f32_gflop_per_s;  // one thread, fma
};

// Processor seconds of this thread: what other programs take meanwhile is not counted.
inline double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Seconds of the fastest of several calls of fn, spending about `budget` seconds.
inline double best_seconds(double budget, const std::function<void()>& fn) {
  double best = 1e30;
  double spent = 0.0;
  for (int i = 0; i < 7 || spent < budget; ++i) {
    const double begin = thread_seconds();
    fn();
    const double seconds = thread_seconds() - begin;
    best = seconds < best ? seconds : best;
    spent += seconds;
    if (i > 100000) break;
  }
  return best;
}

Ceilings measure_ceilings();
void bench_matmul(const Options& options, const Ceilings& ceilings);
void bench_attention(const Options& options, const Ceilings& ceilings);

}  // namespace moesaic::bench
