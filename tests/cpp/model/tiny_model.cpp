// Recipes and their files; see tiny_model.h.
#include "model/tiny_model.h"

#include <cmath>
#include <cstring>
#include <random>

#include "gguf/writer.h"

namespace moesaic::model::testing {
namespace {

using quant::Qtype;

constexpr std::int64_t kVocab = 67;

struct Sizes {
  std::int64_t d;      // d_model
  std::int64_t heads;  // of queries
  std::int64_t kv_heads;
  std::int64_t d_head;
  std::int64_t ff;
  std::int64_t ff_expert;
  std::int64_t experts;
};

std::uint64_t u(std::int64_t n) { return static_cast<std::uint64_t>(n); }

std::string blk(std::int64_t layer, const char* name) {
  return "blk." + std::to_string(layer) + "." + name;
}

class Maker {
 public:
  Maker(std::string arch, const TinyOptions& options, const Sizes& sizes)
      : options_(options), s_(sizes) {
    r_.arch = std::move(arch);
    r_.keys["general.architecture"] = r_.arch;
    r_.key("block_count") = options.n_layers;
    r_.key("context_length") = std::int64_t{256};
    r_.key("embedding_length") = s_.d;
    r_.key("feed_forward_length") = s_.ff;
    r_.key("attention.head_count") = s_.heads;
    r_.key("attention.head_count_kv") = s_.kv_heads;
    r_.key("attention.layer_norm_rms_epsilon") = 1e-5;
    r_.key("rope.freq_base") = 10000.0;
    matrix("token_embd.weight", {u(s_.d), u(kVocab)});
    matrix("output.weight", {u(s_.d), u(kVocab)});
    vector("output_norm.weight", s_.d);
  }
  Recipe& recipe() { return r_; }
  std::int64_t n_layers() const { return options_.n_layers; }

  void matrix(const std::string& name, std::vector<std::uint64_t> ne) {
    r_.tensors[name] = {std::move(ne), options_.matrices};
  }
  void vector(const std::string& name, std::int64_t n) { r_.tensors[name] = {{u(n)}, Qtype::kF32}; }
  void floats(const std::string& name, std::vector<std::uint64_t> ne) {
    r_.tensors[name] = {std::move(ne), Qtype::kF32};
  }

  void head_keys() {
    r_.key("attention.key_length") = s_.d_head;
    r_.key("attention.value_length") = s_.d_head;
  }
  void grouped(std::int64_t layer, bool biases) {
    const std::int64_t q = s_.heads * s_.d_head;
    const std::int64_t kv = s_.kv_heads * s_.d_head;
    vector(blk(layer, "attn_norm.weight"), s_.d);
    matrix(blk(layer, "attn_q.weight"), {u(s_.d), u(q)});
    matrix(blk(layer, "attn_k.weight"), {u(s_.d), u(kv)});
    matrix(blk(layer, "attn_v.weight"), {u(s_.d), u(kv)});
    matrix(blk(layer, "attn_output.weight"), {u(q), u(s_.d)});
    if (!biases) return;
    vector(blk(layer, "attn_q.bias"), q);
    vector(blk(layer, "attn_k.bias"), kv);
    vector(blk(layer, "attn_v.bias"), kv);
  }
  void dense(std::int64_t layer) {
    matrix(blk(layer, "ffn_gate.weight"), {u(s_.d), u(s_.ff)});
    matrix(blk(layer, "ffn_up.weight"), {u(s_.d), u(s_.ff)});
    matrix(blk(layer, "ffn_down.weight"), {u(s_.ff), u(s_.d)});
  }
  void moe_keys(std::int64_t n_active) {
    r_.key("expert_count") = s_.experts;
    r_.key("expert_used_count") = n_active;
    r_.key("expert_feed_forward_length") = s_.ff_expert;
  }
  void moe(std::int64_t layer) {
    floats(blk(layer, "ffn_gate_inp.weight"), {u(s_.d), u(s_.experts)});
    matrix(blk(layer, "ffn_gate_exps.weight"), {u(s_.d), u(s_.ff_expert), u(s_.experts)});
    matrix(blk(layer, "ffn_up_exps.weight"), {u(s_.d), u(s_.ff_expert), u(s_.experts)});
    matrix(blk(layer, "ffn_down_exps.weight"), {u(s_.ff_expert), u(s_.d), u(s_.experts)});
  }
  void shared(std::int64_t layer) {
    matrix(blk(layer, "ffn_gate_shexp.weight"), {u(s_.d), u(s_.ff_expert)});
    matrix(blk(layer, "ffn_up_shexp.weight"), {u(s_.d), u(s_.ff_expert)});
    matrix(blk(layer, "ffn_down_shexp.weight"), {u(s_.ff_expert), u(s_.d)});
  }

 private:
  TinyOptions options_;
  Sizes s_;
  Recipe r_;
};

// Row lengths in `unit`s: 1 for float types, a block for quantised ones.
Sizes sizes_of(const TinyOptions& o) {
  const std::int64_t u1 = o.unit;
  if (u1 == 1) return {42, 3, 1, 14, 37, 11, 5};
  return {u1, 2, 1, u1 / 2, u1, u1, 5};
}

Recipe deepseek2(const TinyOptions& options, bool kv_b) {
  Sizes s = sizes_of(options);
  const bool odd = options.unit == 1;
  const std::int64_t lora = odd ? 18 : options.unit;
  const std::int64_t nope = odd ? 10 : options.unit;
  const std::int64_t rope = odd ? 8 : options.unit;
  const std::int64_t d_v = odd ? 13 : options.unit;
  const std::int64_t q_lora = odd ? 21 : options.unit;
  Maker m("deepseek2", options, s);
  Recipe& r = m.recipe();
  r.key("attention.kv_lora_rank") = lora;
  r.key("attention.q_lora_rank") = q_lora;
  r.key("rope.dimension_count") = rope;
  r.key("leading_dense_block_count") = std::int64_t{1};
  r.key("expert_shared_count") = std::int64_t{1};
  r.key("expert_gating_func") = std::int64_t{2};
  r.key("expert_weights_norm") = true;
  r.key("expert_weights_scale") = 2.5;
  m.moe_keys(2);
  if (kv_b) {
    r.key("attention.head_count_kv") = s.heads;
    r.key("attention.key_length") = nope + rope;
    r.key("attention.value_length") = d_v;
  } else {
    r.key("attention.head_count_kv") = std::int64_t{1};
    r.key("attention.key_length") = lora + rope;
    r.key("attention.value_length") = lora;
    r.key("attention.key_length_mla") = nope + rope;
    r.key("attention.value_length_mla") = d_v;
  }
  for (std::int64_t i = 0; i < m.n_layers(); ++i) {
    m.vector(blk(i, "attn_norm.weight"), s.d);
    m.matrix(blk(i, "attn_q_a.weight"), {u(s.d), u(q_lora)});
    m.vector(blk(i, "attn_q_a_norm.weight"), q_lora);
    m.matrix(blk(i, "attn_q_b.weight"), {u(q_lora), u(s.heads * (nope + rope))});
    m.matrix(blk(i, "attn_kv_a_mqa.weight"), {u(s.d), u(lora + rope)});
    m.vector(blk(i, "attn_kv_a_norm.weight"), lora);
    if (kv_b) {
      m.matrix(blk(i, "attn_kv_b.weight"), {u(lora), u(s.heads * (nope + d_v))});
    } else {
      m.matrix(blk(i, "attn_k_b.weight"), {u(nope), u(lora), u(s.heads)});
      m.matrix(blk(i, "attn_v_b.weight"), {u(lora), u(d_v), u(s.heads)});
    }
    m.matrix(blk(i, "attn_output.weight"), {u(s.heads * d_v), u(s.d)});
    m.vector(blk(i, "ffn_norm.weight"), s.d);
    if (i == 0) {
      m.dense(i);
    } else {
      m.moe(i);
      m.shared(i);
      m.vector(blk(i, "exp_probs_b.bias"), s.experts);
    }
  }
  return r;
}

// A File over bytes that it keeps.
class OwnedFile {
 public:
  explicit OwnedFile(std::vector<std::uint8_t> file_bytes) : bytes(std::move(file_bytes)) {
    file = gguf::File::from_memory(bytes, "tiny.gguf");
  }
  std::vector<std::uint8_t> bytes;
  std::shared_ptr<const gguf::File> file;
};

}  // namespace

Recipe tiny_llama(const TinyOptions& options) {
  Maker m("llama", options, sizes_of(options));
  m.head_keys();
  for (std::int64_t i = 0; i < m.n_layers(); ++i) {
    m.grouped(i, false);
    m.vector(blk(i, "ffn_norm.weight"), sizes_of(options).d);
    m.dense(i);
  }
  return m.recipe();
}

Recipe tiny_deepseek2(const TinyOptions& options) { return deepseek2(options, false); }
Recipe tiny_deepseek2_kv_b(const TinyOptions& options) { return deepseek2(options, true); }

Recipe tiny_qwen3moe(const TinyOptions& options) {
  const Sizes s = sizes_of(options);
  Maker m("qwen3moe", options, s);
  m.head_keys();
  m.moe_keys(3);
  for (std::int64_t i = 0; i < m.n_layers(); ++i) {
    m.grouped(i, false);
    m.vector(blk(i, "attn_q_norm.weight"), s.d_head);
    m.vector(blk(i, "attn_k_norm.weight"), s.d_head);
    m.vector(blk(i, "ffn_norm.weight"), s.d);
    m.moe(i);
  }
  return m.recipe();
}

Recipe tiny_gpt_oss(const TinyOptions& options) {
  const Sizes s = sizes_of(options);
  Maker m("gpt-oss", options, s);
  m.head_keys();
  m.moe_keys(2);
  Recipe& r = m.recipe();
  r.key("attention.sliding_window") = std::int64_t{7};
  for (std::int64_t i = 0; i < m.n_layers(); ++i) {
    m.grouped(i, true);
    m.vector(blk(i, "attn_output.bias"), s.d);
    m.vector(blk(i, "attn_sinks.weight"), s.heads);
    m.vector(blk(i, "post_attention_norm.weight"), s.d);
    m.moe(i);
    m.vector(blk(i, "ffn_gate_inp.bias"), s.experts);
    m.floats(blk(i, "ffn_gate_exps.bias"), {u(s.ff_expert), u(s.experts)});
    m.floats(blk(i, "ffn_up_exps.bias"), {u(s.ff_expert), u(s.experts)});
    m.floats(blk(i, "ffn_down_exps.bias"), {u(s.d), u(s.experts)});
  }
  return r;
}

Recipe tiny_glm4moe(const TinyOptions& options) {
  const Sizes s = sizes_of(options);
  Maker m("glm4moe", options, s);
  m.head_keys();
  m.moe_keys(2);
  Recipe& r = m.recipe();
  r.key("rope.dimension_count") = s.d_head / 4 * 2;
  r.key("leading_dense_block_count") = std::int64_t{1};
  r.key("expert_shared_count") = std::int64_t{1};
  r.key("expert_weights_norm") = true;
  for (std::int64_t i = 0; i < m.n_layers(); ++i) {
    m.grouped(i, true);
    m.vector(blk(i, "post_attention_norm.weight"), s.d);
    if (i == 0) {
      m.dense(i);
    } else {
      m.moe(i);
      m.shared(i);
      m.vector(blk(i, "exp_probs_b.bias"), s.experts);
    }
  }
  return r;
}

// Normal values scaled so that no layer explodes: a matrix by 1.5 / sqrt(row length), norms near 1.
std::vector<float> values_of(const std::string& name, const TinyTensor& tensor) {
  if (!tensor.values.empty()) return tensor.values;
  std::seed_seq seed(name.begin(), name.end());
  std::mt19937 random(seed);
  // Box-Muller by hand: the library's normal distribution differs between implementations.
  const auto uniform = [&] { return (static_cast<double>(random()) + 0.5) / 4294967296.0; };
  std::uint64_t n = 1;
  for (const std::uint64_t dim : tensor.ne) n *= dim;
  const bool norm = name.find("norm") != std::string::npos;
  const bool embd = name.find("token_embd") != std::string::npos;
  const double scale = tensor.ne.size() == 1 || norm ? 0.2
                       : embd                        ? 1.0
                              : 1.5 / std::sqrt(static_cast<double>(tensor.ne[0]));
  std::vector<float> values(n);
  for (float& value : values) {
    const double gauss =
        std::sqrt(-2.0 * std::log(uniform())) * std::cos(6.283185307179586 * uniform());
    value = static_cast<float>((norm ? 1.0 : 0.0) + scale * gauss);
  }
  return values;
}

namespace {

std::vector<std::uint8_t> encode(const std::string& name, const TinyTensor& tensor) {
  const std::vector<float> values = values_of(name, tensor);
  const quant::QtypeTraits& traits = quant::traits(tensor.type);
  const std::uint64_t blocks = values.size() / static_cast<std::uint64_t>(traits.block_elems);
  std::vector<std::uint8_t> bytes(blocks * static_cast<std::uint64_t>(traits.block_bytes));
  if (traits.encode != nullptr) {
    traits.encode(values.data(), static_cast<std::int64_t>(blocks), bytes.data());
  }  // integers stay zero: they stand for tensors of a wrong type
  return bytes;
}

}  // namespace

std::vector<std::uint8_t> bytes_of(const Recipe& recipe) {
  using gguf::ValueType;
  gguf::Writer writer;
  for (const auto& [key, value] : recipe.keys) {
    if (const auto* number = std::get_if<std::int64_t>(&value)) {
      writer.add_int(key, ValueType::kU32, *number);
    } else if (const auto* real = std::get_if<double>(&value)) {
      writer.add_float(key, ValueType::kF32, *real);
    } else if (const auto* flag = std::get_if<bool>(&value)) {
      writer.add_bool(key, *flag);
    } else if (const auto* numbers = std::get_if<std::vector<std::int32_t>>(&value)) {
      writer.add_array(key, ValueType::kI32, numbers->size(),
                       {reinterpret_cast<const std::uint8_t*>(numbers->data()),
                        numbers->size() * sizeof(std::int32_t)});
    } else if (const auto* flags = std::get_if<std::vector<bool>>(&value)) {
      const std::vector<std::uint8_t> bytes(flags->begin(), flags->end());
      writer.add_array(key, ValueType::kBool, bytes.size(), bytes);
    } else if (const auto* reals = std::get_if<std::vector<float>>(&value)) {
      writer.add_array(
          key, ValueType::kF32, reals->size(),
          {reinterpret_cast<const std::uint8_t*>(reals->data()), reals->size() * sizeof(float)});
    } else {
      writer.add_string(key, std::get<std::string>(value));
    }
  }
  for (const auto& [name, tensor] : recipe.tensors) {
    writer.add_tensor(name, tensor.type, tensor.ne, encode(name, tensor));
  }
  return writer.finish();
}

std::shared_ptr<const gguf::File> file_of(std::vector<std::uint8_t> bytes) {
  const auto owned = std::make_shared<OwnedFile>(std::move(bytes));
  return {owned, owned->file.get()};
}

std::shared_ptr<const gguf::File> build(const Recipe& recipe) { return file_of(bytes_of(recipe)); }

LoadOptions small_options() {
  LoadOptions options;
  options.n_ctx = 96;
  options.page_tokens = 16;
  options.threads = 1;
  return options;
}

std::unique_ptr<LocalRunner> load(const Recipe& recipe, const LoadOptions& options) {
  return LocalRunner::load(build(recipe), options);
}

std::vector<std::int32_t> some_tokens(std::int64_t n, std::int64_t vocab, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(n));
  for (std::int32_t& token : tokens) {
    token = static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(vocab));
  }
  return tokens;
}

SequenceStep rows(SequenceId sequence, std::int64_t start, std::vector<std::int32_t> tokens,
                  Logits logits) {
  SequenceStep step;
  step.sequence = sequence;
  step.start = start;
  step.tokens = std::move(tokens);
  step.logits = logits;
  return step;
}

SequenceResult run_one(Runner& runner, const SequenceStep& sequence,
                       const std::vector<std::string>& capture) {
  Step step;
  step.sequences.push_back(sequence);
  step.sequences[0].capture = !capture.empty();
  step.capture = capture;
  return std::move(runner.run(step).sequences[0]);
}

std::vector<float> all_logits(Runner& runner, const std::vector<std::int32_t>& tokens,
                              std::int64_t chunk) {
  const SequenceId id = runner.open();
  std::vector<float> logits;
  for (std::size_t at = 0; at < tokens.size(); at += static_cast<std::size_t>(chunk)) {
    const std::size_t n = std::min(tokens.size() - at, static_cast<std::size_t>(chunk));
    const std::vector<std::int32_t> part(tokens.begin() + static_cast<std::ptrdiff_t>(at),
                                         tokens.begin() + static_cast<std::ptrdiff_t>(at + n));
    const SequenceResult result =
        run_one(runner, rows(id, static_cast<std::int64_t>(at), part, Logits::kAll));
    logits.insert(logits.end(), result.logits.begin(), result.logits.end());
  }
  runner.close(id);
  return logits;
}

}  // namespace moesaic::model::testing
