// Frequencies of rotary embedding; see rope.h.
#include "model/layers/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

namespace moesaic::model {
namespace {

// A head is never wider; bounds what is allocated from a key.
constexpr std::int64_t kMaxRot = 65536;

struct Yarn {
  double factor = 1.0;
  double original_ctx = 0.0;
  double beta_fast = 32.0;
  double beta_slow = 1.0;
};

// The pair whose wavelength makes `turns` turns within the original context. Section 3.2,
// arXiv:2309.00071.
double pair_of(double turns, double n_rot, double base, double original_ctx) {
  return n_rot * std::log(original_ctx / (2.0 * std::numbers::pi * turns)) / (2.0 * std::log(base));
}

void apply_yarn(const Yarn& yarn, double base, bool round_ramp, std::vector<double>& freqs) {
  const double n_rot = 2.0 * static_cast<double>(freqs.size());
  double low = pair_of(yarn.beta_fast, n_rot, base, yarn.original_ctx);
  double high = pair_of(yarn.beta_slow, n_rot, base, yarn.original_ctx);
  if (round_ramp) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, n_rot - 1.0);
  for (std::size_t i = 0; i < freqs.size(); ++i) {
    const double at = (static_cast<double>(i) - low) / std::max(0.001, high - low);
    const double keep = 1.0 - std::clamp(at, 0.0, 1.0);
    freqs[i] = freqs[i] / yarn.factor * (1.0 - keep) + freqs[i] * keep;
  }
}

// Divisors per pair, as the llama3 scaling is stored.
void apply_rope_freqs(const Keys& keys, std::vector<double>& freqs) {
  const gguf::TensorInfo* tensor = keys.tensor("rope_freqs.weight");
  if (tensor == nullptr) return;
  if (tensor->type != quant::Qtype::kF32 || tensor->ne.size() != 1 ||
      tensor->ne[0] != freqs.size()) {
    fail<FormatError>("[model] ", keys.path(), ": tensor rope_freqs.weight: got ",
                      quant::traits(tensor->type).name, " with ", tensor->n_elems,
                      " elements, need F32 with ", freqs.size(), " (half the rotary dimensions)");
  }
  std::vector<float> divisors(freqs.size());
  quant::traits(tensor->type)
      .decode(keys.file()->bytes(*tensor).data(), static_cast<std::int64_t>(freqs.size()),
              divisors.data());
  for (std::size_t i = 0; i < freqs.size(); ++i) {
    if (!std::isfinite(divisors[i]) || divisors[i] <= 0.0F) {
      fail<FormatError>("[model] ", keys.path(), ": tensor rope_freqs.weight: element ", i, " is ",
                        divisors[i], ", need a finite number above 0");
    }
    freqs[i] /= static_cast<double>(divisors[i]);
  }
}

Yarn read_yarn(const Keys& keys) {
  Yarn yarn;
  yarn.factor = keys.positive("rope.scaling.factor");
  yarn.original_ctx = static_cast<double>(keys.has("rope.scaling.original_context_length")
                                              ? keys.count("rope.scaling.original_context_length")
                                              : keys.count("context_length"));
  yarn.beta_fast = keys.positive_or("rope.scaling.yarn_beta_fast", yarn.beta_fast);
  yarn.beta_slow = keys.positive_or("rope.scaling.yarn_beta_slow", yarn.beta_slow);
  return yarn;
}

double yarn_magnitude(double factor, double multiplier) {
  return factor > 1.0 ? 1.0 + multiplier * std::log(factor) : 1.0;
}

}  // namespace

Rope read_rope(const Keys& keys, std::int64_t n_rot, std::int64_t d_head,
               const RopeOptions& options) {
  if (n_rot % 2 != 0 || n_rot > std::min(d_head, kMaxRot)) {
    keys.bad("rope.dimension_count", n_rot,
             strcat("an even number, at most the head size ", std::min(d_head, kMaxRot)));
  }
  const double base = keys.positive_or("rope.freq_base", options.default_base);
  if (base <= 1.0) keys.bad("rope.freq_base", base, "a number above 1");

  Rope rope;
  rope.spec.n_rot = n_rot;
  rope.spec.interleaved = options.interleaved;
  std::vector<double>& freqs = rope.spec.inverse_freqs;
  freqs.resize(static_cast<std::size_t>(n_rot / 2));
  for (std::size_t i = 0; i < freqs.size(); ++i) {
    freqs[i] = std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(n_rot));
  }
  apply_rope_freqs(keys, freqs);

  const bool has_factor = keys.has("rope.scaling.factor");
  // Older files give linear scaling under another name; 0 stands for none. The newer key wins.
  const double older = has_factor ? 0.0 : keys.number_or("rope.scale_linear", 0.0);
  if (older < 0.0) keys.bad("rope.scale_linear", older, "a number above 0, or 0 for none");
  const bool is_scaled = has_factor || older != 0.0;
  const std::string kind = keys.text_or("rope.scaling.type", is_scaled ? "linear" : "none");
  if (kind == "linear") {
    const double factor = older != 0.0 ? older : keys.positive_or("rope.scaling.factor", 1.0);
    for (double& freq : freqs) freq /= factor;
  } else if (kind == "yarn") {
    const Yarn yarn = read_yarn(keys);
    apply_yarn(yarn, base, options.round_ramp, freqs);
    // With mscale_all_dim (DeepSeek stores 0.1 x its value) cos and sin keep magnitude 1 and the
    // softmax scale is multiplied by m^2; without it they are multiplied by 1 + 0.1 ln(factor).
    // Mistral stores mscale_all_dim itself, and divides by its magnitude.
    const double multiplier = keys.number_or("rope.scaling.yarn_log_multiplier", 0.0);
    if (multiplier < 0.0) keys.bad("rope.scaling.yarn_log_multiplier", multiplier, "0 or more");
    if (options.magnitude_in_softmax && multiplier != 0.0) {
      const double m = yarn_magnitude(yarn.factor, multiplier);
      rope.softmax_factor = m * m;
    } else {
      rope.spec.magnitude =
          yarn_magnitude(yarn.factor, 0.1) / yarn_magnitude(yarn.factor, 0.1 * multiplier);
    }
  } else if (kind != "none") {
    keys.bad("rope.scaling.type", "'" + kind + "'", "'none', 'linear' or 'yarn'");
  }
  rope.spec.magnitude *= keys.positive_or("rope.scaling.attn_factor", 1.0);
  return rope;
}

}  // namespace moesaic::model
