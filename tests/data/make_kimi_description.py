"""Writes python/moesaic/data/kimi-k2.5-ud-q2_k_xl.json: what `moesaic plan kimi-k2.5` plans for.

    .venv/bin/python tests/data/make_kimi_description.py

Shapes and keys are those that the published configuration of Kimi K2.5 and dumps of Kimi K2's GGUF
files show. The list of types of UD-Q2_K_XL was not to be had: gates and ups Q2_K and downs Q3_K are
the mixture whose sum is the published 375 GB; the rest is in the types of its family (attn_k_b and
attn_v_b Q8_0, norms and routers F32, the head Q6_K, what remains Q4_K to Q6_K).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PATH = Path(__file__).resolve().parents[2] / "python/moesaic/data/kimi-k2.5-ud-q2_k_xl.json"

N_LAYERS, D_MODEL, N_HEADS, VOCAB = 61, 7168, 64, 163840
Q_LORA, KV_LORA, NOPE, ROPE, V = 1536, 512, 128, 64, 128
N_EXPERTS, D_EXPERT, D_FF = 384, 2048, 18432
BLOCKS = {"F32": (1, 4), "Q8_0": (32, 34), "Q2_K": (256, 84), "Q3_K": (256, 110),
          "Q4_K": (256, 144), "Q5_K": (256, 176), "Q6_K": (256, 210)}  # fmt: skip


def metadata() -> dict[str, dict[str, Any]]:
    def text(value: str) -> dict[str, Any]:
        return {"type": "string", "value": value}

    def count(value: int) -> dict[str, Any]:
        return {"type": "u32", "value": value}

    def number(value: float) -> dict[str, Any]:
        return {"type": "f32", "value": value}

    own = {
        "block_count": count(N_LAYERS),
        "context_length": count(262144),
        "embedding_length": count(D_MODEL),
        "feed_forward_length": count(D_FF),
        "leading_dense_block_count": count(1),
        "attention.head_count": count(N_HEADS),
        "attention.head_count_kv": count(1),
        "attention.q_lora_rank": count(Q_LORA),
        "attention.kv_lora_rank": count(KV_LORA),
        "attention.key_length": count(KV_LORA + ROPE),
        "attention.value_length": count(KV_LORA),
        "attention.key_length_mla": count(NOPE + ROPE),
        "attention.value_length_mla": count(V),
        "attention.layer_norm_rms_epsilon": number(1e-5),
        "expert_count": count(N_EXPERTS),
        "expert_used_count": count(8),
        "expert_shared_count": count(1),
        "expert_feed_forward_length": count(D_EXPERT),
        "expert_weights_scale": number(2.827),
        "expert_weights_norm": {"type": "bool", "value": True},
        "expert_gating_func": count(2),
        "vocab_size": count(VOCAB),
        "rope.freq_base": number(50000.0),
        "rope.dimension_count": count(ROPE),
        "rope.scaling.type": text("yarn"),
        "rope.scaling.factor": number(64.0),
        "rope.scaling.original_context_length": count(4096),
        "rope.scaling.yarn_log_multiplier": number(0.1),
    }
    return {
        "general.architecture": text("deepseek2"),
        "general.name": text("Kimi K2.5 UD-Q2_K_XL"),
        **{f"deepseek2.{key}": value for key, value in own.items()},
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text("kimi-k2"),
        "tokenizer.ggml.tokens": {"type": "array[string]", "count": VOCAB},
    }


def tensors() -> list[dict[str, Any]]:
    """Shapes in NumPy order: the row length last."""
    rows: list[dict[str, Any]] = []

    def add(name: str, qtype: str, *shape: int) -> None:
        elems, n_bytes = BLOCKS[qtype]
        n = 1
        for length in shape:
            n *= length
        rows.append({"name": name, "shape": list(shape), "qtype": qtype,
                     "nbytes": n // elems * n_bytes})  # fmt: skip

    add("token_embd.weight", "Q4_K", VOCAB, D_MODEL)
    add("output_norm.weight", "F32", D_MODEL)
    add("output.weight", "Q6_K", VOCAB, D_MODEL)
    for layer in range(N_LAYERS):
        b = f"blk.{layer}."
        add(b + "attn_norm.weight", "F32", D_MODEL)
        add(b + "attn_q_a.weight", "Q4_K", Q_LORA, D_MODEL)
        add(b + "attn_q_a_norm.weight", "F32", Q_LORA)
        add(b + "attn_q_b.weight", "Q4_K", N_HEADS * (NOPE + ROPE), Q_LORA)
        add(b + "attn_kv_a_mqa.weight", "Q6_K", KV_LORA + ROPE, D_MODEL)
        add(b + "attn_kv_a_norm.weight", "F32", KV_LORA)
        add(b + "attn_k_b.weight", "Q8_0", N_HEADS, KV_LORA, NOPE)
        add(b + "attn_v_b.weight", "Q8_0", N_HEADS, V, KV_LORA)
        add(b + "attn_output.weight", "Q4_K", D_MODEL, N_HEADS * V)
        add(b + "ffn_norm.weight", "F32", D_MODEL)
        if layer == 0:
            add(b + "ffn_gate.weight", "Q4_K", D_FF, D_MODEL)
            add(b + "ffn_up.weight", "Q4_K", D_FF, D_MODEL)
            add(b + "ffn_down.weight", "Q6_K", D_MODEL, D_FF)
            continue
        add(b + "ffn_gate_inp.weight", "F32", N_EXPERTS, D_MODEL)
        add(b + "exp_probs_b.bias", "F32", N_EXPERTS)
        add(b + "ffn_gate_exps.weight", "Q2_K", N_EXPERTS, D_EXPERT, D_MODEL)
        add(b + "ffn_up_exps.weight", "Q2_K", N_EXPERTS, D_EXPERT, D_MODEL)
        add(b + "ffn_down_exps.weight", "Q3_K", N_EXPERTS, D_MODEL, D_EXPERT)
        add(b + "ffn_gate_shexp.weight", "Q4_K", D_EXPERT, D_MODEL)
        add(b + "ffn_up_shexp.weight", "Q4_K", D_EXPERT, D_MODEL)
        add(b + "ffn_down_shexp.weight", "Q5_K", D_MODEL, D_EXPERT)
    return rows


def text() -> str:
    rows = tensors()
    head = {
        "arch": "deepseek2",
        "name": "Kimi K2.5 UD-Q2_K_XL",
        "bytes": sum(row["nbytes"] for row in rows),
        "metadata": metadata(),
    }
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    return json.dumps(head, indent=1)[:-2] + ',\n "tensors": [\n' + lines + "\n]\n}\n"


if __name__ == "__main__":
    PATH.write_text(text())
    size = json.loads(text())["bytes"]
    print(f"{PATH.name}: {len(tensors())} tensors, {size / 1e9:.1f} GB", file=sys.stderr)
