// See step_check.h.
#include "model/run/step_check.h"

#include "model/run/sampler.h"

namespace moesaic::model {

void check_step(const Step& step, const StepLimits& limits) {
  std::int64_t n_rows = 0;
  for (const SequenceStep& sequence : step.sequences) {
    const auto n = static_cast<std::int64_t>(sequence.tokens.size());
    const std::int64_t length = limits.length(sequence.sequence);
    if (n < 1) fail<ArgumentError>("[run] tokens: got none, need at least one");
    if (sequence.start < 0 || sequence.start > length) {
      fail<ArgumentError>("[run] start: got ", sequence.start, ", need 0 to ", length,
                          ", the cached tokens of this sequence");
    }
    if (sequence.start + n > limits.n_ctx) {
      fail<ArgumentError>("[run] tokens: got positions up to ", sequence.start + n,
                          ", need at most n_ctx, ", limits.n_ctx,
                          "; load the model with a larger n_ctx");
    }
    for (const std::int32_t token : sequence.tokens) {
      if (token < 0 || token >= limits.vocab) {
        fail<ArgumentError>("[run] tokens: got ", token, ", need 0 to ", limits.vocab - 1);
      }
    }
    for (const Target& target : sequence.targets) {
      if (target.row < 0 || target.row >= n || target.token < 0 || target.token >= limits.vocab) {
        fail<ArgumentError>("[run] targets: got row ", target.row, ", token ", target.token,
                            ", need a row below ", n, " and a token below ", limits.vocab);
      }
    }
    if (sequence.sampler != nullptr) model::validate(*sequence.sampler, limits.vocab);
    n_rows += n;
  }
  if (n_rows < 1 || n_rows > limits.max_rows) {
    fail<ArgumentError>("[run] step: got ", n_rows, " rows, need 1 to ", limits.max_rows);
  }
  for (std::size_t i = 0; i < step.sequences.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (step.sequences[i].sequence == step.sequences[j].sequence) {
        fail<ArgumentError>("[run] step: sequence ", step.sequences[i].sequence,
                            " stands in it twice, need each once");
      }
    }
  }
}

StepLimits limits_of(const Runner& runner) {
  return {.vocab = runner.config().vocab,
          .n_ctx = runner.n_ctx(),
          .max_rows = runner.max_step_rows(),
          .length = [&runner](SequenceId sequence) { return runner.length(sequence); }};
}

}  // namespace moesaic::model
