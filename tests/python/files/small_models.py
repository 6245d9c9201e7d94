"""Models of random weights, made where a test needs keys or tokens of its own in the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import moesaic
from moesaic.tokenizer.bpe import BYTE_OF_CHAR

LETTERS = [c for c, _ in sorted(BYTE_OF_CHAR.items(), key=lambda item: item[1])]


def small_model(
    path: Path,
    *,
    extra: list[str] | tuple[str, ...] = (),
    merges: list[str] | tuple[str, ...] = ("A B",),
    keys: dict[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Write a llama of two layers.

    Tokens are the 256 bytes, <s> (256, added in front), </s> (257) and ``extra``; those in <> are
    control tokens.
    """
    rng = np.random.default_rng(seed)
    width, ff, heads, kv_heads, head = 64, 96, 4, 2, 16
    tokens = [*LETTERS, "<s>", "</s>", *extra]
    kinds = [3 if t.startswith("<") and t.endswith(">") and len(t) > 1 else 1 for t in tokens]
    meta = {
        "general.architecture": "llama",
        "general.name": "small",
        "llama.context_length": 256,
        "llama.embedding_length": width,
        "llama.block_count": 2,
        "llama.feed_forward_length": ff,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.key_length": head,
        "llama.attention.value_length": head,
        "llama.rope.dimension_count": head,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.add_bos_token": True,
        **(keys or {}),
    }

    def draw(*shape: int) -> Any:
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)

    ones = np.ones(width, np.float32)
    tensors = {
        "token_embd.weight": 5 * draw(len(tokens), width),
        "output_norm.weight": ones,
        "output.weight": draw(len(tokens), width),
    }
    for i in range(2):
        tensors |= {
            f"blk.{i}.attn_norm.weight": ones,
            f"blk.{i}.attn_q.weight": draw(heads * head, width),
            f"blk.{i}.attn_k.weight": draw(kv_heads * head, width),
            f"blk.{i}.attn_v.weight": draw(kv_heads * head, width),
            f"blk.{i}.attn_output.weight": draw(width, heads * head),
            f"blk.{i}.ffn_norm.weight": ones,
            f"blk.{i}.ffn_gate.weight": draw(ff, width),
            f"blk.{i}.ffn_up.weight": draw(ff, width),
            f"blk.{i}.ffn_down.weight": draw(width, ff),
        }
    moesaic.write_gguf(path, meta, tensors)
    return path
