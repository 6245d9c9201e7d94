"""The tiny random models: one row per file in tests/data/families/.

Data only. How a model becomes weights is in weights.py, how it becomes a GGUF in gguf_out.py, how
its golden values are made in hf.py. Sizes are odd on purpose: heads, experts and row lengths that
no kernel's tile divides.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VOCAB = 269  # 256 bytes + 10 merges + 3 control tokens; a prime, so that no row block divides it


@dataclass(frozen=True)
class Spec:
    """One tiny model.

    Attributes
    ----------
    name : str
        Stem of the three files.
    arch : str
        GGUF `general.architecture`.
    hf : str
        Class prefix in `transformers` ("DeepseekV3" -> DeepseekV3Config, DeepseekV3ForCausalLM).
    config : dict
        Arguments of the configuration class.
    covers : tuple of str
        What a reader that gets this file wrong has got wrong.
    long_tokens : int
        Length of the long prompt: past the YaRN original context or the sliding window.
    store : str
        Element type of the matrices in the file: F32, F16 or BF16. The values are the same.
    experts : str
        Element type of the routed experts, when it differs ("" = like store).
    layout : str
        deepseek2 only: "mla" (attn_k_b, attn_v_b) or "kv_b" (attn_kv_b).
    nextn : int
        Trailing multi-token-prediction blocks to write; a reader must skip them.
    omit : tuple of str
        GGUF keys (without the architecture) that older converters did not write.
    golden : str
        Name of the spec whose golden file serves this one too ("" = its own).
    twin : dict
        Configuration changes under which llama.cpp can be compared, where it cannot run the model
        as it is (see README.md). Empty: compared as it is.
    gate_gain : float
        Gain of gate and up matrices: larger where the activation clamps.
    pre : str
        `tokenizer.ggml.pre` of the made-up vocabulary.
    """

    name: str
    arch: str
    hf: str
    config: dict[str, Any]
    covers: tuple[str, ...]
    long_tokens: int = 40
    store: str = "F32"
    experts: str = ""
    layout: str = "mla"
    nextn: int = 0
    omit: tuple[str, ...] = ()
    golden: str = ""
    twin: dict[str, Any] = field(default_factory=dict)
    gate_gain: float = 1.6
    pre: str = "gpt-2"


def _kimi() -> dict[str, Any]:
    return {
        "hidden_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "q_lora_rank": 20,
        "kv_lora_rank": 18,
        "qk_nope_head_dim": 10,
        "qk_rope_head_dim": 24,
        "v_head_dim": 13,
        "intermediate_size": 52,
        "moe_intermediate_size": 10,
        "n_routed_experts": 7,
        "num_experts_per_tok": 3,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 2.827,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 320 * 64,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 100.0,
            "factor": 64.0,
            "original_max_position_embeddings": 320,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    }


_KIMI_COVERS = (
    "q-LoRA",
    "sigmoid router with bias for the selection only, norm and scale 2.827",
    "one expert group",
    "YaRN: ramp from pair 1 to 11 of 12, softmax scale with m squared; prompt past its 320",
    "first layer dense, one shared expert",
)

SPECS: tuple[Spec, ...] = (
    Spec(
        name="deepseek2_kimi",
        arch="deepseek2",
        hf="DeepseekV3",
        config=_kimi(),
        covers=("MLA layout: attn_k_b and attn_v_b", *_KIMI_COVERS),
        long_tokens=350,
        store="BF16",
        pre="kimi-k2",
    ),
    Spec(
        name="deepseek2_kimi_kvb",
        arch="deepseek2",
        hf="DeepseekV3",
        config=_kimi(),
        covers=("older layout: attn_kv_b, head_count_kv = heads, no *_mla keys", *_KIMI_COVERS),
        long_tokens=350,
        store="BF16",
        layout="kv_b",
        golden="deepseek2_kimi",
        omit=("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
        pre="kimi-k2",
    ),
    Spec(
        name="deepseek2_v2lite",
        arch="deepseek2",
        hf="DeepseekV2",
        config={
            "hidden_size": 30,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "q_lora_rank": None,
            "kv_lora_rank": 18,
            "qk_nope_head_dim": 10,
            "qk_rope_head_dim": 8,
            "v_head_dim": 11,
            "intermediate_size": 45,
            "moe_intermediate_size": 9,
            "n_routed_experts": 5,
            "num_experts_per_tok": 2,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "topk_method": "greedy",
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 64 * 40,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 40.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
            },
        },
        covers=(
            "no q-LoRA: attn_q, in a model that has neither 26 nor 27 layers",
            "softmax router without norm; expert_gating_func and expert_weights_norm absent",
            "two shared experts in one matrix",
            "yarn_log_multiplier 0.0707",
        ),
        long_tokens=90,
        store="F32",
        omit=("expert_gating_func",),
        twin={"num_hidden_layers": 27},
        pre="deepseek-llm",
    ),
    Spec(
        name="deepseek2_v2groups",
        arch="deepseek2",
        hf="DeepseekV2",
        config={
            "hidden_size": 39,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "q_lora_rank": 15,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 6,
            "v_head_dim": 10,
            "intermediate_size": 45,
            "moe_intermediate_size": 9,
            "n_routed_experts": 15,
            "num_experts_per_tok": 4,
            "n_shared_experts": 1,
            "first_k_dense_replace": 0,
            "topk_method": "group_limited_greedy",
            "n_group": 5,
            "topk_group": 2,
            "norm_topk_prob": False,
            "routed_scaling_factor": 3.0,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        covers=(
            "softmax router with expert groups: a group counts by its maximum",
            "older layout attn_kv_b with q-LoRA, no rope scaling",
            "no dense layer, 15 experts in 5 groups, top 4 of 2 groups, scale 3",
        ),
        store="BF16",
        layout="kv_b",
        twin={"topk_method": "greedy", "n_group": None, "topk_group": None},
        pre="deepseek-coder",
    ),
    Spec(
        name="deepseek2_v3",
        arch="deepseek2",
        hf="DeepseekV3",
        config={
            "hidden_size": 33,
            "num_hidden_layers": 3,
            "num_attention_heads": 7,
            "num_key_value_heads": 7,
            "q_lora_rank": 18,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 16,
            "v_head_dim": 8,
            "intermediate_size": 40,
            "moe_intermediate_size": 11,
            "n_routed_experts": 9,
            "num_experts_per_tok": 3,
            "n_shared_experts": 1,
            "first_k_dense_replace": 2,
            "n_group": 3,
            "topk_group": 2,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 48 * 40,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 40.0,
                "original_max_position_embeddings": 48,
                "beta_fast": 4.0,
                "beta_slow": 0.25,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        },
        covers=(
            "expert groups: a group counts by the sum of its top two, bias included",
            "YaRN betas other than 32 / 1 read from the file",
            "two dense layers first",
        ),
        long_tokens=90,
        store="BF16",
        twin={"rope_parameters.beta_fast": 32.0, "rope_parameters.beta_slow": 1.0},
        pre="deepseek-v3",
    ),
    Spec(
        name="llama_gqa",
        arch="llama",
        hf="Llama",
        config={
            "hidden_size": 45,
            "num_hidden_layers": 3,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 10,
            "intermediate_size": 50,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "max_position_embeddings": 64 * 8,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        covers=(
            "grouped-query attention 9 : 3, head size 10 given by key_length",
            "rope_freqs.weight (llama3 scaling)",
            "tied output: no output.weight",
        ),
        long_tokens=90,
        store="F16",
        pre="llama-bpe",
    ),
    Spec(
        name="llama_bias",
        arch="llama",
        hf="Llama",
        config={
            "hidden_size": 36,
            "num_hidden_layers": 2,
            "num_attention_heads": 9,
            "num_key_value_heads": 1,
            "intermediate_size": 37,
            "rms_norm_eps": 1e-6,
            "attention_bias": True,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        covers=("biases on q, k, v and the attention output", "one KV head", "no key_length key"),
        store="F32",
        pre="llama-bpe",
    ),
    Spec(
        name="llama_linear",
        arch="llama",
        hf="Llama",
        config={
            "hidden_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 5,
            "num_key_value_heads": 5,
            "intermediate_size": 40,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
        },
        covers=("as many KV heads as heads", "linear rope scaling by 4"),
        store="BF16",
        pre="llama-bpe",
    ),
    Spec(
        name="llama_moe",
        arch="llama",
        hf="Mixtral",
        config={
            "hidden_size": 36,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "intermediate_size": 21,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
        covers=("Mixtral: softmax over all experts, top 2, renormalised",),
        store="BF16",
        pre="llama-bpe",
    ),
    Spec(
        name="qwen2_tied",
        arch="qwen2",
        hf="Qwen2",
        config={
            "hidden_size": 42,
            "num_hidden_layers": 3,
            "num_attention_heads": 7,
            "num_key_value_heads": 1,
            "intermediate_size": 55,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
        covers=("biases on q, k, v only", "NEOX rope", "tied output", "no key_length key"),
        store="F16",
        pre="qwen2",
    ),
    Spec(
        name="qwen2_untied",
        arch="qwen2",
        hf="Qwen2",
        config={
            "hidden_size": 30,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 3,
            "intermediate_size": 47,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 64 * 4,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 100.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        covers=("YaRN on a plain family: cos and sin times 1 + 0.1 ln 4",),
        long_tokens=90,
        store="F32",
        pre="qwen2",
    ),
    Spec(
        name="qwen3_tied",
        arch="qwen3",
        hf="Qwen3",
        config={
            "hidden_size": 35,
            "num_hidden_layers": 3,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 12,
            "intermediate_size": 31,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
        covers=("RMS norm of q and k per head before rope", "heads * head size != d_model", "tied"),
        store="F32",
        pre="qwen2",
    ),
    Spec(
        name="qwen3_untied",
        arch="qwen3",
        hf="Qwen3",
        config={
            "hidden_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 64,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        covers=("output.weight of its own", "grouped-query attention 6 : 2"),
        store="BF16",
        pre="qwen2",
    ),
    Spec(
        name="qwen3moe_top3",
        arch="qwen3moe",
        hf="Qwen3Moe",
        config={
            "hidden_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 10,
            "intermediate_size": 44,
            "moe_intermediate_size": 9,
            "num_experts": 7,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
        covers=("softmax router, top 3 of 7, renormalised; no key says so", "no shared expert"),
        store="BF16",
        pre="qwen2",
    ),
    Spec(
        name="qwen3moe_top1",
        arch="qwen3moe",
        hf="Qwen3Moe",
        config={
            "hidden_size": 34,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 8,
            "intermediate_size": 44,
            "moe_intermediate_size": 13,
            "num_experts": 5,
            "num_experts_per_tok": 1,
            "norm_topk_prob": True,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "max_position_embeddings": 256,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        covers=("one expert per token, whose weight is 1", "tied output"),
        store="F32",
        pre="qwen2",
    ),
    Spec(
        name="gptoss_f32",
        arch="gpt-oss",
        hf="GptOss",
        config={
            "hidden_size": 36,
            "num_hidden_layers": 3,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 12,
            "intermediate_size": 9,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "sliding_window": 16,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 64 * 32,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150.0,
                "factor": 32.0,
                "original_max_position_embeddings": 64,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
            },
        },
        covers=(
            "attention sinks",
            "layers 0 and 2 slide over 16 keys, layer 1 sees all",
            "biases everywhere",
            "clamped SwiGLU",
            "YaRN with unrounded ramp bounds, cos and sin times 1 + 0.1 ln 32",
        ),
        long_tokens=90,
        store="BF16",
        experts="F32",
        twin={"rope_parameters.truncate": True},
        gate_gain=3.0,
        pre="gpt-4o",
    ),
    Spec(
        name="gptoss_mxfp4",
        arch="gpt-oss",
        hf="GptOss",
        config={
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "intermediate_size": 32,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "sliding_window": 13,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 32 * 32,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 150000.0,
                "factor": 32.0,
                "original_max_position_embeddings": 32,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
            },
        },
        covers=("MXFP4 experts", "window 13", "top 3 of 5, softmax over the chosen logits"),
        long_tokens=60,
        store="BF16",
        experts="MXFP4",
        twin={"rope_parameters.truncate": True},
        gate_gain=3.0,
        pre="gpt-4o",
    ),
    Spec(
        name="glm4moe_bias",
        arch="glm4moe",
        hf="Glm4Moe",
        config={
            "hidden_size": 35,
            "num_hidden_layers": 3,
            "num_attention_heads": 5,
            "num_key_value_heads": 1,
            "head_dim": 12,
            "intermediate_size": 40,
            "moe_intermediate_size": 8,
            "n_routed_experts": 5,
            "num_experts_per_tok": 2,
            "n_shared_experts": 1,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.7,
            "attention_bias": True,
            "use_qk_norm": False,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 256,
            "partial_rotary_factor": 0.5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000000.0,
                "partial_rotary_factor": 0.5,
            },
        },
        covers=(
            "rope on the first 6 of 12 dimensions",
            "biases on q, k, v",
            "sigmoid router with bias, norm, scale 1.7",
            "one trailing nextn block to skip",
        ),
        store="BF16",
        nextn=1,
        pre="glm4",
    ),
    Spec(
        name="glm4moe_qknorm",
        arch="glm4moe",
        hf="Glm4Moe",
        config={
            "hidden_size": 36,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 33,
            "moe_intermediate_size": 9,
            "n_routed_experts": 7,
            "num_experts_per_tok": 3,
            "n_shared_experts": 1,
            "first_k_dense_replace": 2,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "attention_bias": False,
            "use_qk_norm": True,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 256,
            "partial_rotary_factor": 0.25,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.25,
            },
        },
        covers=(
            "q and k norms before a rope on 4 of 16 dimensions",
            "two dense layers first",
            "no nextn block",
        ),
        store="BF16",
        pre="glm4",
    ),
)
