"""Random models big enough for K-quants, as lists of GGUF keys and float32 tensors; for kl.py.

Not trained: what is compared is arithmetic on the same quantized weights, and for that noise with a
weight row's statistics (normal, some columns larger than others) will do.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]

VOCAB = 512
D_MODEL = 512
N_LAYERS = 3
N_CTX = 1024


def _matrix(rng: np.random.Generator, *shape: int, gain: float = 1.0) -> F32:
    """Rows with the standard deviation gain / sqrt(row length); columns of uneven size.

    Matrices that write to the residual get a small gain below, as in trained models: else noise
    grows from layer to layer and every KL is that of two unrelated distributions.
    """
    columns = np.exp(0.35 * rng.standard_normal(shape[-1]))
    columns /= np.sqrt(np.mean(columns**2))
    noise = rng.standard_normal(shape) * columns * (gain / np.sqrt(shape[-1]))
    return np.asarray(noise, np.float32)


def _norm(rng: np.random.Generator, n: int) -> F32:
    return (1 + 0.2 * rng.standard_normal(n)).astype(np.float32)


def _ends(rng: np.random.Generator) -> Iterator[tuple[str, F32]]:
    yield "token_embd.weight", rng.standard_normal((VOCAB, D_MODEL)).astype(np.float32)
    yield "output_norm.weight", _norm(rng, D_MODEL)
    yield "output.weight", _matrix(rng, VOCAB, D_MODEL, gain=1.5)


_COMMON: dict[str, Any] = {
    "block_count": N_LAYERS,
    "context_length": N_CTX,
    "embedding_length": D_MODEL,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 10000.0,
    "vocab_size": VOCAB,
}


def llama(seed: int) -> tuple[dict[str, Any], Iterator[tuple[str, F32]]]:
    """A dense llama: 8 heads of 64, 2 KV heads, d_ff 768."""
    keys = _COMMON | {
        "feed_forward_length": 768,
        "attention.head_count": 8,
        "attention.head_count_kv": 2,
        "rope.dimension_count": 64,
    }

    def tensors() -> Iterator[tuple[str, F32]]:
        rng = np.random.default_rng(seed)
        yield from _ends(rng)
        for i in range(N_LAYERS):
            b = f"blk.{i}."
            yield f"{b}attn_norm.weight", _norm(rng, D_MODEL)
            yield f"{b}attn_q.weight", _matrix(rng, 512, D_MODEL, gain=1.5)
            yield f"{b}attn_k.weight", _matrix(rng, 128, D_MODEL, gain=1.5)
            yield f"{b}attn_v.weight", _matrix(rng, 128, D_MODEL)
            yield f"{b}attn_output.weight", _matrix(rng, D_MODEL, 512, gain=0.6)
            yield f"{b}ffn_norm.weight", _norm(rng, D_MODEL)
            yield f"{b}ffn_gate.weight", _matrix(rng, 768, D_MODEL, gain=1.5)
            yield f"{b}ffn_up.weight", _matrix(rng, 768, D_MODEL, gain=1.5)
            yield f"{b}ffn_down.weight", _matrix(rng, D_MODEL, 768, gain=0.6)

    return keys, tensors()


def deepseek2(seed: int) -> tuple[dict[str, Any], Iterator[tuple[str, F32]]]:
    """Kimi's shape: MLA, sigmoid router, 3 of 8 experts and a shared one, first layer dense."""
    heads, nope, rope, value, q_rank, latent = 4, 128, 64, 128, 256, 256
    experts, active, width = 8, 3, 256
    keys = _COMMON | {
        "feed_forward_length": 768,
        "attention.head_count": heads,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": q_rank,
        "attention.kv_lora_rank": latent,
        "attention.key_length": latent + rope,
        "attention.value_length": latent,
        "attention.key_length_mla": nope + rope,
        "attention.value_length_mla": value,
        "rope.dimension_count": rope,
        "leading_dense_block_count": 1,
        "expert_count": experts,
        "expert_used_count": active,
        "expert_shared_count": 1,
        "expert_feed_forward_length": width,
        "expert_weights_scale": 2.0,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
    }

    def feed_forward(rng: np.random.Generator, b: str, i: int) -> Iterator[tuple[str, F32]]:
        if i == 0:
            yield f"{b}ffn_gate.weight", _matrix(rng, 768, D_MODEL, gain=1.5)
            yield f"{b}ffn_up.weight", _matrix(rng, 768, D_MODEL, gain=1.5)
            yield f"{b}ffn_down.weight", _matrix(rng, D_MODEL, 768, gain=0.6)
            return
        yield f"{b}ffn_gate_inp.weight", _matrix(rng, experts, D_MODEL, gain=1.5)
        yield f"{b}exp_probs_b.bias", (0.1 * rng.standard_normal(experts)).astype(np.float32)
        for kind, lead in (("exps", (experts,)), ("shexp", ())):
            yield f"{b}ffn_gate_{kind}.weight", _matrix(rng, *lead, width, D_MODEL, gain=1.5)
            yield f"{b}ffn_up_{kind}.weight", _matrix(rng, *lead, width, D_MODEL, gain=1.5)
            yield f"{b}ffn_down_{kind}.weight", _matrix(rng, *lead, D_MODEL, width, gain=0.4)

    def tensors() -> Iterator[tuple[str, F32]]:
        rng = np.random.default_rng(seed)
        yield from _ends(rng)
        for i in range(N_LAYERS):
            b = f"blk.{i}."
            yield f"{b}attn_norm.weight", _norm(rng, D_MODEL)
            yield f"{b}attn_q_a.weight", _matrix(rng, q_rank, D_MODEL)
            yield f"{b}attn_q_a_norm.weight", _norm(rng, q_rank)
            yield f"{b}attn_q_b.weight", _matrix(rng, heads * (nope + rope), q_rank, gain=1.5)
            yield f"{b}attn_kv_a_mqa.weight", _matrix(rng, latent + rope, D_MODEL, gain=1.5)
            yield f"{b}attn_kv_a_norm.weight", _norm(rng, latent)
            yield f"{b}attn_k_b.weight", _matrix(rng, heads, latent, nope)
            yield f"{b}attn_v_b.weight", _matrix(rng, heads, value, latent)
            yield f"{b}attn_output.weight", _matrix(rng, D_MODEL, heads * value, gain=0.6)
            yield f"{b}ffn_norm.weight", _norm(rng, D_MODEL)
            yield from feed_forward(rng, b, i)

    return keys, tensors()


MODELS = {"deepseek2": deepseek2, "llama": llama}


def add_vocabulary(writer: gguf.GGUFWriter) -> None:
    """A made-up byte-level vocabulary of VOCAB tokens."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    tokens = [chr(b) if b in plain else chr(next(spare)) for b in range(256)]
    letters = "abcdefghijklmnop"
    merges = [f"{a} {b}" for a in letters for b in letters][: VOCAB - 257]
    tokens += ["".join(m.split()) for m in merges] + ["<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (VOCAB - 1) + [3])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(VOCAB - 1)
    writer.add_eos_token_id(VOCAB - 1)
    writer.add_add_bos_token(False)
