// The sampler as a chain over candidates: bias, penalties, top_k, typical, top_p, min_p,
// temperature, draw. All sums are doubles in a fixed order (by logit, then by id), so that a token
// depends on the row, the spec, the seed and the position only. The draw is Gumbel-max: each token
// has noise of its own, keyed by (seed, position, token id), and the best sum of logit and noise
// wins. Rows that differ by rounding so give the same token about as often as any way of drawing
// can: no token's noise moves because others changed places. Not for stop conditions.
// Sources: llama.cpp's default chain (order of effects); typical sampling: arXiv:2202.00666;
// min-p: arXiv:2407.01082; Gumbel-max: Gumbel 1954, and Maddison et al., arXiv:1411.0030.
#include "model/run/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <unordered_map>
#include <vector>

#include "model/run/philox.h"

namespace moesaic::model {
namespace {

struct Candidate {
  float logit = 0.0F;
  std::int32_t id = 0;
};

// A total order: the better logit first, the lower id among equals.
bool better(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

// The tokens still in the race. `sorted` leading ones are in order; more are put in order on
// demand, since top_p and min_p rarely look past the first few of 160,000.
class Candidates {
 public:
  explicit Candidates(std::span<const float> logits) {
    items_.clear();
    items_.reserve(logits.size());
    for (std::size_t i = 0; i < logits.size(); ++i) {
      if (logits[i] == -std::numeric_limits<float>::infinity()) continue;  // banned
      items_.push_back({logits[i], static_cast<std::int32_t>(i)});
    }
  }

  std::size_t size() const { return items_.size(); }
  std::vector<Candidate>& items() { return items_; }

  // The i-th best.
  const Candidate& best(std::size_t i) {
    if (i >= sorted_) sort_to(std::max<std::size_t>(i + 1, std::max<std::size_t>(64, 4 * sorted_)));
    return items_[i];
  }
  void keep_best(std::size_t n) {
    if (n >= items_.size()) return;
    sort_to(n);
    items_.resize(n);
    sorted_ = std::min(sorted_, n);
  }
  void replace_unsorted(std::vector<Candidate> items) {
    items_ = std::move(items);
    sorted_ = 0;
  }
  // Sum of exp(logit - best) over all candidates, in the order they lie in: a function of the row
  // and the spec alone.
  double partition() {
    const double top = best(0).logit;
    double sum = 0.0;
    for (const Candidate& item : items_) sum += std::exp(double{item.logit} - top);
    return sum;
  }

 private:
  void sort_to(std::size_t n) {
    n = std::min(n, items_.size());
    if (n <= sorted_) return;
    const auto begin = items_.begin() + static_cast<std::ptrdiff_t>(sorted_);
    const auto middle = items_.begin() + static_cast<std::ptrdiff_t>(n);
    if (n < items_.size()) std::nth_element(begin, middle, items_.end(), better);
    std::sort(begin, middle, better);
    sorted_ = n;
  }

  std::vector<Candidate> items_;
  std::size_t sorted_ = 0;
};

void check_row(std::span<const float> logits, std::int64_t position) {
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == std::numeric_limits<float>::infinity()) {
      fail<BackendError>("[sampler] logits at position ", position, ": got ", logits[i],
                         " for token ", i,
                         ", need finite values (or -inf to ban a token); the weights, a kernel or "
                         "a logits_processor made it: look at Model.capture(tokens, \"*\")");
    }
  }
}

std::int32_t argmax(std::span<const float> logits) {
  std::size_t best = 0;
  for (std::size_t i = 1; i < logits.size(); ++i) {
    if (logits[i] > logits[best]) best = i;
  }
  return static_cast<std::int32_t>(best);
}

// log of the sum of exp over the row, in order of ids.
double log_partition(std::span<const float> logits, double top) {
  double sum = 0.0;
  for (const float logit : logits) sum += std::exp(double{logit} - top);
  return top + std::log(sum);
}

bool has_penalties(const SamplerSpec& spec) {
  return spec.penalty_last_n != 0 &&
         (spec.repeat_penalty != 1.0F || spec.presence_penalty != 0.0F ||
          spec.frequency_penalty != 0.0F);
}

void apply_bias(std::span<float> logits, const SamplerSpec& spec) {
  for (const auto& [token, bias] : spec.logit_bias) logits[static_cast<std::size_t>(token)] += bias;
}

void apply_penalties(std::span<float> logits, const SamplerSpec& spec,
                     std::span<const std::int32_t> history) {
  std::unordered_map<std::int32_t, int> counts;
  for (const std::int32_t token : looked_back(spec, history)) {
    if (token >= 0 && static_cast<std::size_t>(token) < logits.size()) ++counts[token];
  }
  for (const auto& [token, count] : counts) {  // one entry a token: the order does not matter
    float& logit = logits[static_cast<std::size_t>(token)];
    logit = logit <= 0.0F ? logit * spec.repeat_penalty : logit / spec.repeat_penalty;
    logit -= static_cast<float>(count) * spec.frequency_penalty + spec.presence_penalty;
  }
}

// Keeps the tokens whose surprise is nearest to the entropy, up to a mass of p.
void keep_typical(Candidates& race, double p) {
  race.best(race.size() - 1);  // all in order
  const double top = race.best(0).logit;
  const double sum = race.partition();
  const std::vector<Candidate>& items = race.items();
  std::vector<double> log_p(items.size());
  double entropy = 0.0;
  for (std::size_t i = 0; i < items.size(); ++i) {
    log_p[i] = double{items[i].logit} - top - std::log(sum);
    entropy -= std::exp(log_p[i]) * log_p[i];
  }
  std::vector<std::size_t> order(items.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return std::abs(-log_p[a] - entropy) < std::abs(-log_p[b] - entropy);
  });
  std::vector<Candidate> kept;
  double mass = 0.0;
  for (const std::size_t i : order) {
    kept.push_back(items[i]);
    mass += std::exp(log_p[i]);
    if (mass > p) break;
  }
  race.replace_unsorted(std::move(kept));
}

// Keeps the shortest head of the order whose mass reaches p.
void keep_nucleus(Candidates& race, double p) {
  const double top = race.best(0).logit;
  const double sum = race.partition();
  double mass = 0.0;
  for (std::size_t i = 0; i < race.size(); ++i) {
    mass += std::exp(double{race.best(i).logit} - top) / sum;
    if (mass >= p) {
      race.keep_best(i + 1);
      return;
    }
  }
}

// Keeps the tokens at least p times as probable as the best one.
void keep_min_p(Candidates& race, double p) {
  const double least = double{race.best(0).logit} + std::log(p);
  std::size_t n = 1;
  while (n < race.size() && double{race.best(n).logit} >= least) ++n;
  race.keep_best(n);
}

// The token whose logit / temperature + Gumbel noise is largest; the lowest id among equals.
std::int32_t draw(Candidates& race, const SamplerSpec& spec, std::int64_t position) {
  // No noise is above -log(-log(1 - 2^-53)) < 37: what is farther behind cannot win.
  constexpr double kMostNoise = 37.0;
  const double top = race.best(0).logit;
  double most = -std::numeric_limits<double>::infinity();
  std::int32_t winner = race.best(0).id;
  for (const Candidate& item : race.items()) {
    const double score = (double{item.logit} - top) / double{spec.temperature};
    if (score + kMostNoise < most) continue;
    const double uniform = uniform_at(spec.seed, static_cast<std::uint64_t>(position), item.id);
    const double noisy = score - std::log(-std::log(uniform));
    if (noisy > most || (noisy == most && item.id < winner)) {
      most = noisy;
      winner = item.id;
    }
  }
  return winner;
}

std::int32_t choose(std::span<const float> logits, const SamplerSpec& spec, std::int64_t position) {
  Candidates race(logits);
  if (race.size() == 0) {
    fail<ArgumentError>("[sampler] logits at position ", position,
                        ": every token is banned (-inf); leave at least one in logit_bias or "
                        "logits_processor");
  }
  if (spec.top_k > 0) race.keep_best(static_cast<std::size_t>(spec.top_k));
  if (spec.typical_p < 1.0F) keep_typical(race, double{spec.typical_p});
  if (spec.top_p < 1.0F) keep_nucleus(race, double{spec.top_p});
  if (spec.min_p > 0.0F) keep_min_p(race, double{spec.min_p});
  return draw(race, spec, position);
}

template <typename T>
void need(bool ok, const char* field, T got, const char* range) {
  if (!ok) fail<ArgumentError>("[sampler] ", field, ": got ", got, ", need ", range);
}

}  // namespace

void validate(const SamplerSpec& spec, std::int64_t vocab) {
  const auto within = [](float value, float low, float high) {
    return value >= low && value <= high;  // false for NaN
  };
  need(within(spec.temperature, 0.0F, 1e6F), "temperature", spec.temperature, "0 (greedy) to 1e6");
  need(within(spec.top_p, 0.0F, 1.0F), "top_p", spec.top_p, "0 to 1 (1: off)");
  need(within(spec.min_p, 0.0F, 1.0F), "min_p", spec.min_p, "0 (off) to 1");
  need(within(spec.typical_p, 0.0F, 1.0F), "typical_p", spec.typical_p, "0 to 1 (1: off)");
  need(within(spec.repeat_penalty, 1e-3F, 1e3F), "repeat_penalty", spec.repeat_penalty,
       "0.001 to 1000 (1: off)");
  need(within(spec.presence_penalty, -1e3F, 1e3F), "presence_penalty", spec.presence_penalty,
       "-1000 to 1000 (0: off)");
  need(within(spec.frequency_penalty, -1e3F, 1e3F), "frequency_penalty", spec.frequency_penalty,
       "-1000 to 1000 (0: off)");
  need(spec.penalty_last_n >= -1, "penalty_last_n", spec.penalty_last_n,
       ">= -1 (-1: all tokens, 0: off)");
  need(spec.n_logprobs >= -1 && spec.n_logprobs <= vocab, "logprobs", spec.n_logprobs,
       "0 to the vocabulary's size");
  for (const auto& [token, bias] : spec.logit_bias) {
    if (token < 0 || token >= vocab) {
      fail<ArgumentError>("[sampler] logit_bias: got token ", token, ", need 0 to ", vocab - 1);
    }
    need(!std::isnan(bias) && bias < std::numeric_limits<float>::infinity(), "logit_bias", bias,
         "a finite number, or -inf to ban the token");
  }
}

Sampled sample(std::span<float> logits, const SamplerSpec& spec, std::int64_t position,
               std::span<const std::int32_t> history) {
  if (logits.empty()) fail<InternalError>("[sampler] an empty row of logits");
  check_row(logits, position);
  Sampled sampled;
  std::vector<Candidate> best;
  double log_z = 0.0;
  std::vector<float> before;  // the row as the model made it, for the token's log-probability
  if (spec.n_logprobs >= 0) {
    log_z = log_partition(logits, double{logits[static_cast<std::size_t>(argmax(logits))]});
    Candidates all(logits);
    const std::size_t n = std::min(all.size(), static_cast<std::size_t>(spec.n_logprobs));
    for (std::size_t i = 0; i < n; ++i) {
      const Candidate& item = all.best(i);
      sampled.top_ids.push_back(item.id);
      sampled.top_logprobs.push_back(static_cast<float>(double{item.logit} - log_z));
    }
    before.assign(logits.begin(), logits.end());
  }
  apply_bias(logits, spec);
  apply_penalties(logits, spec, history);
  sampled.token = spec.temperature <= 0.0F ? argmax(logits) : choose(logits, spec, position);
  if (logits[static_cast<std::size_t>(sampled.token)] == -std::numeric_limits<float>::infinity()) {
    fail<ArgumentError>("[sampler] logits at position ", position,
                        ": every token is banned (-inf); leave at least one in logit_bias or "
                        "logits_processor");
  }
  if (!before.empty()) {
    sampled.logprob =
        static_cast<float>(double{before[static_cast<std::size_t>(sampled.token)]} - log_z);
  }
  return sampled;
}

std::span<const std::int32_t> looked_back(const SamplerSpec& spec,
                                          std::span<const std::int32_t> tokens) {
  if (!has_penalties(spec)) return {};
  if (spec.penalty_last_n < 0) return tokens;
  return tokens.last(std::min(tokens.size(), static_cast<std::size_t>(spec.penalty_last_n)));
}

TargetResult score_target(std::span<const float> logits, std::int32_t token) {
  if (token < 0 || static_cast<std::size_t>(token) >= logits.size()) {
    fail<ArgumentError>("[score] target token: got ", token, ", need 0 to ", logits.size());
  }
  check_row(logits, -1);
  const std::int32_t best = argmax(logits);
  const double log_z = log_partition(logits, double{logits[static_cast<std::size_t>(best)]});
  return {double{logits[static_cast<std::size_t>(token)]} - log_z, token == best};
}

}  // namespace moesaic::model
