"""Random-weight GGUF models for the benches, written in seconds: nothing is quantised, blocks are
made of random bits.

    python bench/python/make_bench_model.py kimi /tmp/kimi.gguf

| name | shape | types |
|---|---|---|
| kimi | deepseek2, MLA, 8 layers, 128 experts of 768, top 8, 1 shared | Q2_K, Q3_K, Q4_K to Q6_K |
| qwen3moe | GQA 32/4 heads, 8 layers, 64 experts of 768, top 8 | Q4_K, Q6_K |
| gptoss | sinks, sliding window, biases, 4 layers, 32 experts of 2880, top 4 | MXFP4, Q8_0 |
| kimi-iq | kimi in the "dynamic 1 bit" mixture | IQ1_S, IQ1_M, IQ2_XXS, IQ3_XXS, IQ4_XS |

Both engines read these files. The vocabulary is made up (256 bytes, then names): prompts are
token ids.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from random_blocks import random_weight

import moesaic
from moesaic.gguf import Typed

Tensors = dict[str, Any]
MERGES = ["t h", "th e", "a n", "an d"]


def byte_tokens() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(others)) for b in range(256)]


def vocabulary(n: int) -> dict[str, Any]:
    """Metadata of a byte-level vocabulary of n tokens, the last two being control tokens."""
    tokens = byte_tokens() + [m.replace(" ", "") for m in MERGES]
    tokens += [f"token{i}" for i in range(len(tokens), n - 2)] + ["<bos>", "<eos>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([1] * (n - 2) + [3, 3], np.int32),
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": n - 2,
        "tokenizer.ggml.eos_token_id": n - 1,
        "tokenizer.ggml.add_bos_token": False,
    }


class Builder:
    """Collects tensors: random weights, and norms of ones."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.tensors: Tensors = {}

    def weight(self, name: str, shape: tuple[int, ...], qtype: str) -> None:
        """A matrix (or several) with rows along the last axis."""
        self.tensors[f"{name}.weight"] = random_weight(self.rng, shape, qtype)

    def ones(self, name: str, n: int) -> None:
        """A norm's weight."""
        self.tensors[f"{name}.weight"] = np.ones(n, np.float32)

    def small(self, name: str, shape: tuple[int, ...]) -> None:
        """Biases, sinks: small floats. The name is whole."""
        self.tensors[name] = self.rng.standard_normal(shape).astype(np.float32) * np.float32(0.02)


KIMI_TYPES = {"gate_up": ("Q2_K",), "down": ("Q3_K",), "attn": "Q4_K", "kv_a": "Q6_K",
"out": "Q5_K", "dense": "Q4_K",
              "shexp": "Q5_K", "embed": "Q4_K", "head": "Q6_K"}  # fmt: skip
# As the dynamic 1-bit files are mixed: most gates and ups at 1.6 bits, downs above them, the rest
# at 4.
IQ_TYPES = {"gate_up": ("IQ1_S", "IQ1_M", "IQ2_XXS"), "down": ("IQ2_XXS", "IQ3_XXS"),
"attn": "IQ4_XS", "kv_a": "IQ4_XS",
            "out": "IQ4_XS", "dense": "IQ4_XS", "shexp": "IQ4_XS", "embed": "Q4_K",
            "head": "Q6_K"}  # fmt: skip


def kimi(b: Builder, types: dict[str, Any] = KIMI_TYPES, *, n_layers: int = 8) -> dict[str, Any]:
    """deepseek2 with MLA, shaped like Kimi K2 at a quarter of its width."""
    d, heads, q_lora, kv_lora, nope, rope, v = 2048, 16, 768, 512, 128, 64, 128
    experts, active, ff, dense_ff, vocab = 128, 8, 768, 6144, 32000
    b.weight("token_embd", (vocab, d), types["embed"])
    b.ones("output_norm", d)
    b.weight("output", (vocab, d), types["head"])
    for n in range(n_layers):
        p = f"blk.{n}."
        b.ones(p + "attn_norm", d)
        b.weight(p + "attn_q_a", (q_lora, d), types["attn"])
        b.ones(p + "attn_q_a_norm", q_lora)
        b.weight(p + "attn_q_b", (heads * (nope + rope), q_lora), types["attn"])
        b.weight(p + "attn_kv_a_mqa", (kv_lora + rope, d), types["kv_a"])
        b.ones(p + "attn_kv_a_norm", kv_lora)
        b.weight(p + "attn_k_b", (heads, kv_lora, nope), "Q8_0")
        b.weight(p + "attn_v_b", (heads, v, kv_lora), "Q8_0")
        b.weight(p + "attn_output", (d, heads * v), types["out"])
        b.ones(p + "ffn_norm", d)
        if n == 0:
            b.weight(p + "ffn_gate", (dense_ff, d), types["dense"])
            b.weight(p + "ffn_up", (dense_ff, d), types["dense"])
            b.weight(p + "ffn_down", (d, dense_ff), types["dense"])
            continue
        b.weight(p + "ffn_gate_inp", (experts, d), "F32")
        b.small(p + "exp_probs_b.bias", (experts,))
        gate_up = types["gate_up"][n % len(types["gate_up"])]
        b.weight(p + "ffn_gate_exps", (experts, ff, d), gate_up)
        b.weight(p + "ffn_up_exps", (experts, ff, d), gate_up)
        b.weight(p + "ffn_down_exps", (experts, d, ff), types["down"][n % len(types["down"])])
        b.weight(p + "ffn_gate_shexp", (ff, d), types["shexp"])
        b.weight(p + "ffn_up_shexp", (ff, d), types["shexp"])
        b.weight(p + "ffn_down_shexp", (d, ff), types["shexp"])
    k = "deepseek2."
    return {
        "general.architecture": "deepseek2",
        k + "block_count": n_layers, k + "context_length": 131072, k + "embedding_length": d,
        k + "feed_forward_length": dense_ff, k + "leading_dense_block_count": 1,
        k + "vocab_size": vocab,
        k + "attention.head_count": heads, k + "attention.head_count_kv": 1,
        k + "attention.q_lora_rank": q_lora, k + "attention.kv_lora_rank": kv_lora,
        k + "attention.key_length": kv_lora + rope, k + "attention.value_length": kv_lora,
        k + "attention.key_length_mla": nope + rope, k + "attention.value_length_mla": v,
        k + "attention.layer_norm_rms_epsilon": 1e-5,
        k + "expert_count": experts, k + "expert_used_count": active, k + "expert_shared_count": 1,
        k + "expert_feed_forward_length": ff, k + "expert_weights_scale": 2.827,
        k + "expert_weights_norm": True, k + "expert_gating_func": 2,
        k + "rope.dimension_count": rope, k + "rope.freq_base": 50000.0,
        k + "rope.scaling.type": "yarn", k + "rope.scaling.factor": 32.0,
        k + "rope.scaling.original_context_length": 4096,
        k + "rope.scaling.yarn_log_multiplier": 0.1,
        **vocabulary(vocab),
    }  # fmt: skip


def kimi_iq(b: Builder) -> dict[str, Any]:
    """The same shape in the dynamic 1-bit mixture."""
    return kimi(b, IQ_TYPES)


def qwen3moe(b: Builder) -> dict[str, Any]:
    """GQA with per-head norms, softmax router, no shared expert."""
    d, heads, kv_heads, d_head, n_layers = 2048, 32, 4, 128, 8
    experts, active, ff, vocab = 64, 8, 768, 32000
    b.weight("token_embd", (vocab, d), "Q4_K")
    b.ones("output_norm", d)
    b.weight("output", (vocab, d), "Q6_K")
    for n in range(n_layers):
        p = f"blk.{n}."
        b.ones(p + "attn_norm", d)
        b.weight(p + "attn_q", (heads * d_head, d), "Q4_K")
        b.weight(p + "attn_k", (kv_heads * d_head, d), "Q4_K")
        b.weight(p + "attn_v", (kv_heads * d_head, d), "Q6_K")
        b.weight(p + "attn_output", (d, heads * d_head), "Q4_K")
        b.ones(p + "attn_q_norm", d_head)
        b.ones(p + "attn_k_norm", d_head)
        b.ones(p + "ffn_norm", d)
        b.weight(p + "ffn_gate_inp", (experts, d), "F32")
        b.weight(p + "ffn_gate_exps", (experts, ff, d), "Q4_K")
        b.weight(p + "ffn_up_exps", (experts, ff, d), "Q4_K")
        b.weight(p + "ffn_down_exps", (experts, d, ff), "Q6_K" if n % 2 else "Q4_K")
    k = "qwen3moe."
    return {
        "general.architecture": "qwen3moe",
        k + "block_count": n_layers, k + "context_length": 40960, k + "embedding_length": d,
        k + "feed_forward_length": 6144, k + "vocab_size": vocab,
        k + "attention.head_count": heads, k + "attention.head_count_kv": kv_heads,
        k + "attention.key_length": d_head, k + "attention.value_length": d_head,
        k + "attention.layer_norm_rms_epsilon": 1e-6, k + "rope.freq_base": 1e6,
        k + "expert_count": experts, k + "expert_used_count": active,
        k + "expert_feed_forward_length": ff,
        **vocabulary(vocab),
    }  # fmt: skip


def gptoss(b: Builder) -> dict[str, Any]:
    """gpt-oss' widths at four layers."""
    d, heads, kv_heads, d_head, n_layers = 2880, 64, 8, 64, 4
    experts, active, ff, vocab = 32, 4, 2880, 32000
    b.weight("token_embd", (vocab, d), "Q8_0")
    b.ones("output_norm", d)
    b.weight("output", (vocab, d), "Q8_0")
    for n in range(n_layers):
        p = f"blk.{n}."
        b.ones(p + "attn_norm", d)
        b.ones(p + "post_attention_norm", d)
        for name, rows in (
            ("q", heads * d_head),
            ("k", kv_heads * d_head),
            ("v", kv_heads * d_head),
        ):
            b.weight(f"{p}attn_{name}", (rows, d), "Q8_0")
            b.small(f"{p}attn_{name}.bias", (rows,))
        b.weight(p + "attn_output", (d, heads * d_head), "Q8_0")
        b.small(p + "attn_output.bias", (d,))
        b.small(p + "attn_sinks.weight", (heads,))
        b.weight(p + "ffn_gate_inp", (experts, d), "F32")
        b.small(p + "ffn_gate_inp.bias", (experts,))
        for name in ("gate", "up", "down"):
            b.weight(f"{p}ffn_{name}_exps", (experts, d if name == "down" else ff, d), "MXFP4")
            b.small(f"{p}ffn_{name}_exps.bias", (experts, d if name == "down" else ff))
    k = "gpt-oss."
    return {
        "general.architecture": "gpt-oss",
        k + "block_count": n_layers, k + "context_length": 131072, k + "embedding_length": d,
        k + "feed_forward_length": ff, k + "vocab_size": vocab,
        k + "attention.head_count": heads, k + "attention.head_count_kv": kv_heads,
        k + "attention.key_length": d_head, k + "attention.value_length": d_head,
        k + "attention.layer_norm_rms_epsilon": 1e-5, k + "attention.sliding_window": 128,
        k + "rope.freq_base": 150000.0, k + "rope.scaling.type": "yarn",
        k + "rope.scaling.factor": 32.0,
        k + "rope.scaling.original_context_length": 4096,
        k + "expert_count": experts, k + "expert_used_count": active,
        k + "expert_feed_forward_length": ff,
        **vocabulary(vocab),
    }  # fmt: skip


MODELS: dict[str, Callable[[Builder], dict[str, Any]]] = {
    "kimi": kimi,
    "qwen3moe": qwen3moe,
    "gptoss": gptoss,
    "kimi-iq": kimi_iq,
}


def make(name: str, path: Path, *, seed: int = 1) -> None:
    """Write one of MODELS."""
    builder = Builder(seed)
    metadata = MODELS[name](builder)
    metadata["general.name"] = f"bench {name}, random weights"
    metadata["general.file_type"] = Typed(10, "u32")
    moesaic.write_gguf(path, metadata, builder.tensors)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    make(args.model, args.path, seed=args.seed)
    print(f"{args.path}: {args.path.stat().st_size / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
