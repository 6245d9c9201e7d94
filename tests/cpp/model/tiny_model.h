// Tiny seeded models for tests: a recipe of keys and tensors that a test may spoil before it
// becomes a GGUF in memory. Sizes are odd where a family allows it. Not for goldens: those are in
// tests/data/families.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "gguf/file.h"
#include "model/run/local_runner.h"
#include "quant/qtype.h"

namespace moesaic::model::testing {

struct TinyTensor {
  std::vector<std::uint64_t> ne;  // file order
  quant::Qtype type = quant::Qtype::kF32;
  std::vector<float> values = {};  // instead of seeded ones
};

struct Recipe {
  std::string arch;
  // Full names; integers become u32.
  std::map<std::string,
           std::variant<std::int64_t, double, bool, std::string, std::vector<std::int32_t>,
                        std::vector<bool>, std::vector<float>>>
      keys;
  std::map<std::string, TinyTensor> tensors;

  // "x" -> "<arch>.x"
  auto& key(const std::string& name) { return keys[arch + "." + name]; }
  void drop_key(const std::string& name) { keys.erase(arch + "." + name); }
};

// Options of a recipe.
struct TinyOptions {
  std::int64_t n_layers = 2;
  quant::Qtype matrices = quant::Qtype::kF32;  // with K-quants, row lengths become multiples of 256
  std::int64_t unit = 1;  // multiplies row lengths: 32 or 256 for quantised types
};

Recipe tiny_llama(const TinyOptions& options = {});
Recipe tiny_deepseek2(const TinyOptions& options = {});  // MLA layout, MoE from layer 1 on
Recipe tiny_deepseek2_kv_b(const TinyOptions& options = {});
Recipe tiny_qwen3moe(const TinyOptions& options = {});
Recipe tiny_gpt_oss(const TinyOptions& options = {});
Recipe tiny_glm4moe(const TinyOptions& options = {});

// The values a tensor of a recipe gets, seeded by its name.
std::vector<float> values_of(const std::string& name, const TinyTensor& tensor);

std::vector<std::uint8_t> bytes_of(const Recipe& recipe);
// A file that owns its bytes.
std::shared_ptr<const gguf::File> file_of(std::vector<std::uint8_t> bytes);
// The recipe as a file whose bytes it owns.
std::shared_ptr<const gguf::File> build(const Recipe& recipe);

// Loads with small defaults: n_ctx 96, pages of 16 tokens, one thread.
LoadOptions small_options();
std::unique_ptr<LocalRunner> load(const Recipe& recipe, const LoadOptions& options);

// n tokens below vocab, seeded.
std::vector<std::int32_t> some_tokens(std::int64_t n, std::int64_t vocab, std::uint32_t seed);

// One step of one sequence.
SequenceStep rows(SequenceId sequence, std::int64_t start, std::vector<std::int32_t> tokens,
                  Logits logits);
SequenceResult run_one(Runner& runner, const SequenceStep& sequence,
                       const std::vector<std::string>& capture = {});
// All logits of a prompt, cut into steps of at most `chunk` rows.
std::vector<float> all_logits(Runner& runner, const std::vector<std::int32_t>& tokens,
                              std::int64_t chunk);

}  // namespace moesaic::model::testing
