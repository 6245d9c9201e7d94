// See step_check.h.
#include "model/step_check.h"

#include "model/sampler.h"

namespace moesaic::model {

void check_step(const Step& step, const Config& config, const Runner& runner) {
  std::int64_t n_rows = 0;
  for (const SequenceStep& sequence : step.sequences) {
    const auto n = static_cast<std::int64_t>(sequence.tokens.size());
    const std::int64_t length = runner.length(sequence.sequence);
    if (n < 1) fail<ArgumentError>("[run] tokens: got none, need at least one");
    if (sequence.start < 0 || sequence.start > length) {
      fail<ArgumentError>("[run] start: got ", sequence.start, ", need 0 to ", length,
                          ", the cached tokens of this sequence");
    }
    if (sequence.start + n > runner.n_ctx()) {
      fail<ArgumentError>("[run] tokens: got positions up to ", sequence.start + n,
                          ", need at most n_ctx, ", runner.n_ctx(),
                          "; load the model with a larger n_ctx");
    }
    for (const std::int32_t token : sequence.tokens) {
      if (token < 0 || token >= config.vocab) {
        fail<ArgumentError>("[run] tokens: got ", token, ", need 0 to ", config.vocab - 1);
      }
    }
    for (const Target& target : sequence.targets) {
      if (target.row < 0 || target.row >= n || target.token < 0 || target.token >= config.vocab) {
        fail<ArgumentError>("[run] targets: got row ", target.row, ", token ", target.token,
                            ", need a row below ", n, " and a token below ", config.vocab);
      }
    }
    if (sequence.sampler != nullptr) model::validate(*sequence.sampler, config.vocab);
    n_rows += n;
  }
  if (n_rows < 1 || n_rows > runner.max_step_rows()) {
    fail<ArgumentError>("[run] step: got ", n_rows, " rows, need 1 to ", runner.max_step_rows());
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

}  // namespace moesaic::model
