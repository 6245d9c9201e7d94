// Which rows go into the next step: pure functions of what wants to run, so that fairness can be
// tested without a model. Not for KV memory (admission, core.cpp).
#pragma once

#include <chrono>
#include <cstdint>
#include <span>
#include <vector>

namespace moesaic::engine {

// One admitted request, in order of service (priority, then age).
struct Candidate {
  std::int64_t rows = 0;  // left to run; 0: waits for its caller
  bool decode = false;    // one row of a generation: always goes first
};

// Rows for each candidate, summing to at most max_rows. Decode rows first, in order; then prompts
// share prompt_budget rows evenly (a short prompt's unused share goes to the next ones), so that a
// long prompt delays nobody for long.
std::vector<std::int64_t> plan_rows(std::span<const Candidate> candidates, std::int64_t max_rows,
                                    std::int64_t prompt_budget);

// Learns how long rows take and answers how many prompt rows a step may take.
class Pacer {
 public:
  Pacer(std::int64_t max_rows, std::chrono::duration<double> target)
      : max_rows_(max_rows), target_(target) {}
  void record(std::int64_t prompt_rows, std::int64_t decode_rows,
              std::chrono::duration<double> took);
  // While only one call is served (alone) its cancel flag stops a step midway, and nobody else
  // waits: all rows. Else as many as add about `target`, or as long as the decode rows themselves
  // take, whichever is more.
  std::int64_t prompt_budget(bool alone) const;
  // What running so many rows of a prompt would take, in seconds; 0 before anything was measured.
  double seconds_for(std::int64_t prompt_rows) const;

 private:
  static constexpr std::int64_t kMinRows = 32;  // fewer would waste a pass over the weights
  std::int64_t max_rows_;
  std::chrono::duration<double> target_;
  // A step costs a fixed part (a pass over the weights: about a decode step) and a part per row.
  double seconds_per_prompt_row_ = 0.0;  // without the fixed part; 0: not measured yet
  double seconds_per_decode_step_ = 0.0;
};

}  // namespace moesaic::engine
