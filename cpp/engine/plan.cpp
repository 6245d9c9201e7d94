// See plan.h. Row counts are cut to multiples of kMinRows, so that timing changes the shape of a
// step as little as possible.
#include "engine/plan.h"

#include <algorithm>

namespace moesaic::engine {

std::vector<std::int64_t> plan_rows(std::span<const Candidate> candidates, std::int64_t max_rows,
                                    std::int64_t prompt_budget) {
  std::vector<std::int64_t> rows(candidates.size(), 0);
  std::int64_t left = max_rows;
  std::int64_t n_prompts = 0;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (candidates[i].rows <= 0) continue;
    if (!candidates[i].decode) {
      ++n_prompts;
    } else if (left > 0) {
      rows[i] = 1;
      --left;
    }
  }
  left = std::min(left, prompt_budget);
  while (left > 0 && n_prompts > 0) {
    const std::int64_t share = std::max<std::int64_t>(1, left / n_prompts);
    n_prompts = 0;
    for (std::size_t i = 0; i < candidates.size() && left > 0; ++i) {
      if (candidates[i].decode) continue;
      const std::int64_t wanted = candidates[i].rows - rows[i];
      const std::int64_t given = std::min({share, wanted, left});
      if (given <= 0) continue;
      rows[i] += given;
      left -= given;
      if (wanted > given) ++n_prompts;
    }
  }
  return rows;
}

void Pacer::record(std::int64_t prompt_rows, std::int64_t decode_rows,
                   std::chrono::duration<double> took) {
  const auto blend = [](double& average, double value) {
    average = average == 0.0 ? value : 0.7 * average + 0.3 * value;
  };
  if (prompt_rows == 0) {
    blend(seconds_per_decode_step_, took.count());
  } else if (prompt_rows >= decode_rows) {
    const double own = took.count() - seconds_per_decode_step_;
    blend(seconds_per_prompt_row_,
          std::max(own, 0.2 * took.count()) / static_cast<double>(prompt_rows));
  }
}

std::int64_t Pacer::prompt_budget(bool alone) const {
  if (alone) return max_rows_;
  if (seconds_per_prompt_row_ == 0.0) return std::min(max_rows_, 4 * kMinRows);
  const double seconds = std::max(target_.count(), seconds_per_decode_step_);
  const double rows = seconds / seconds_per_prompt_row_;
  if (rows >= static_cast<double>(max_rows_)) return max_rows_;
  const std::int64_t whole = static_cast<std::int64_t>(rows) / kMinRows * kMinRows;
  return std::clamp(whole, std::min(kMinRows, max_rows_), max_rows_);
}

double Pacer::seconds_for(std::int64_t prompt_rows) const {
  return seconds_per_decode_step_ + seconds_per_prompt_row_ * static_cast<double>(prompt_rows);
}

}  // namespace moesaic::engine
