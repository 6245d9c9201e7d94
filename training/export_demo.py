"""Write the trained demo as GGUF with Moesaic's own encoders: shipped mixture and float32 twin.

    python training/export_demo.py --run build/demo --out python/moesaic/data/demo.gguf

Keys, names and layouts are those of the `deepseek2` architecture in its MLA form (attn_k_b
transposed per head, one KV head as wide as latent plus rotary part). Not a converter for other
people's checkpoints.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import corpus
import moe_model
import numpy as np
import torch

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}<|user|>{{ message.content | trim }}<|end|>"
    "{% elif message.role == 'assistant' %}<|reply|>{{ message.content | trim }}<|end|>"
    "{% else %}{{ message.content | trim }}\n\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|reply|>{% endif %}"
)
AVERAGE = 2  # snapshots in the shipped model
NORMAL, CONTROL = 1, 3  # tokenizer.ggml.token_type
Tensors = dict[str, tuple[np.ndarray, str]]  # name -> (float32 array in NumPy order, element type)


def tensors(state: Mapping[str, torch.Tensor], s: moe_model.Shape) -> Tensors:
    """Return every tensor of the file with the element type it ships in.

    Q4_K where most bytes are (gate and up), Q6_K where errors add up on the residual or in the
    logits, Q8_0 where a row is no multiple of 256 long, F32 for norms and the router.
    """
    w = {name: t.float().numpy() for name, t in state.items()}
    out: Tensors = {
        "token_embd.weight": (w["embed"], "Q6_K"),
        "output_norm.weight": (w["norm.weight"], "F32"),
        "output.weight": (w["embed"], "Q6_K"),
    }
    for i in range(s.n_layers):
        b, f = f"blk.{i}.", f"blocks.{i}."
        kv_b = w[f + "attn.kv_b"].reshape(s.n_heads, s.d_nope + s.d_v, s.kv_lora)
        out |= {
            b + "attn_norm.weight": (w[f + "attn_norm.weight"], "F32"),
            b + "attn_q_a.weight": (w[f + "attn.q_a"], "Q6_K"),
            b + "attn_q_a_norm.weight": (w[f + "attn.q_a_norm.weight"], "F32"),
            b + "attn_q_b.weight": (w[f + "attn.q_b"], "Q8_0"),
            b + "attn_kv_a_mqa.weight": (w[f + "attn.kv_a"], "Q6_K"),
            b + "attn_kv_a_norm.weight": (w[f + "attn.kv_a_norm.weight"], "F32"),
            b + "attn_k_b.weight": (kv_b[:, : s.d_nope].transpose(0, 2, 1), "Q8_0"),
            b + "attn_v_b.weight": (kv_b[:, s.d_nope :], "Q8_0"),
            b + "attn_output.weight": (w[f + "attn.out"], "Q6_K"),
            b + "ffn_norm.weight": (w[f + "ffn_norm.weight"], "F32"),
        }
        if i < s.n_dense:
            gate, up = np.split(w[f + "ffn.gate_up"], 2, axis=0)
            out[b + "ffn_gate.weight"] = (gate, "Q4_K")
            out[b + "ffn_up.weight"] = (up, "Q4_K")
            out[b + "ffn_down.weight"] = (w[f + "ffn.down"], "Q6_K")
            continue
        gate, up = np.split(w[f + "ffn.gate_up"], 2, axis=1)
        shared_gate, shared_up = np.split(w[f + "ffn.shared.gate_up"], 2, axis=0)
        out |= {
            b + "ffn_gate_inp.weight": (w[f + "ffn.router"], "F32"),
            b + "exp_probs_b.bias": (w[f + "ffn.bias"], "F32"),
            b + "ffn_gate_exps.weight": (gate, "Q4_K"),
            b + "ffn_up_exps.weight": (up, "Q4_K"),
            b + "ffn_down_exps.weight": (w[f + "ffn.down"], "Q6_K"),
            b + "ffn_gate_shexp.weight": (shared_gate, "Q4_K"),
            b + "ffn_up_shexp.weight": (shared_up, "Q4_K"),
            b + "ffn_down_shexp.weight": (w[f + "ffn.shared.down"], "Q6_K"),
        }
    return {name: (np.ascontiguousarray(a, dtype=np.float32), t) for name, (a, t) in out.items()}


def metadata(s: moe_model.Shape, tokenizer_json: str) -> dict[str, object]:
    """Return the file's keys; NumPy scalars carry the width that GGUF stores."""
    u32, f32 = np.uint32, np.float32
    model = json.loads(tokenizer_json)["model"]
    ids: dict[str, int] = model["vocab"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    arch: dict[str, object] = {
        "block_count": u32(s.n_layers),
        "context_length": u32(s.n_ctx),
        "embedding_length": u32(s.d_model),
        "feed_forward_length": u32(s.d_ff_dense),
        "leading_dense_block_count": u32(s.n_dense),
        "vocab_size": u32(s.vocab),
        "attention.head_count": u32(s.n_heads),
        "attention.head_count_kv": u32(1),
        "attention.layer_norm_rms_epsilon": f32(s.rms_eps),
        "attention.q_lora_rank": u32(s.q_lora),
        "attention.kv_lora_rank": u32(s.kv_lora),
        "attention.key_length": u32(s.kv_lora + s.d_rope),
        "attention.value_length": u32(s.kv_lora),
        "attention.key_length_mla": u32(s.d_nope + s.d_rope),
        "attention.value_length_mla": u32(s.d_v),
        "rope.dimension_count": u32(s.d_rope),
        "rope.freq_base": f32(s.rope_base),
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": f32(s.rope_factor),
        "rope.scaling.original_context_length": u32(s.n_train),
        "rope.scaling.yarn_log_multiplier": f32(moe_model.YARN_LOG_MULTIPLIER),
        "expert_count": u32(s.n_experts),
        "expert_used_count": u32(s.n_active),
        "expert_shared_count": u32(1),
        "expert_feed_forward_length": u32(s.d_ff),
        "expert_weights_scale": f32(s.routed_scale),
        "expert_weights_norm": True,
        "expert_gating_func": u32(2),  # sigmoid
    }
    return {
        "general.architecture": "deepseek2",
        "general.type": "model",
        "general.name": "Moesaic demo",
        "general.description": "A tiny mixture of experts, trained on Jane Austen",
        "general.size_label": f"{s.n_experts}x1M",
        **{f"deepseek2.{key}": value for key, value in arch.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": sorted(ids, key=lambda token: ids[token]),
        "tokenizer.ggml.token_type": np.array(
            [CONTROL if i < len(corpus.SPECIALS) else NORMAL for i in range(s.vocab)], np.int32
        ),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": u32(ids[corpus.BEGIN]),
        "tokenizer.ggml.eos_token_id": u32(ids[corpus.END]),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": TEMPLATE,
        "general.quantization_version": u32(2),
    }


def read_run(folder: Path, average: int) -> tuple[moe_model.Shape, dict[str, torch.Tensor]]:
    """Return (shape, weights) of a folder that train_demo.py wrote.

    The weights are the mean of the last `average` snapshots: with a high learning rate it is much
    better than any of them (arXiv:1803.05407).
    """
    paths = sorted(folder.glob("weights-*.pt"))[-average:]
    if len(paths) < average:
        raise FileNotFoundError(f"[export_demo] {folder}: {len(paths)} snapshots, need {average}")
    snapshots = [torch.load(path, map_location="cpu") for path in paths]
    mean = {k: sum(snap[k] for snap in snapshots) / average for k in snapshots[0]}
    return moe_model.Shape(), mean


def main() -> None:
    """Write the two files and print their sizes."""
    import moesaic

    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--run", type=Path, required=True, help="the --out of train_demo.py")
    p.add_argument("--average", type=int, default=AVERAGE, help="how many snapshots to average")
    p.add_argument("--out", type=Path, required=True, help="the quantised file")
    p.add_argument("--twin", type=Path, help="also write the same model in float32 here")
    args = p.parse_args()
    shape, state = read_run(args.run, args.average)
    keys = metadata(shape, (args.run / "tokenizer.json").read_text(encoding="utf-8"))
    weights = tensors(state, shape)
    plain = {name: (a, "F32") for name, (a, _) in weights.items()}
    for path, mix, file_type in (
        (args.out, weights, 15),
        (args.twin, plain, 0),
    ):  # 15: Q4_K mixture; 0: F32
        if path is None:
            continue
        moesaic.write_gguf(path, {**keys, "general.file_type": np.uint32(file_type)}, mix)
        print(f"{path.name}: {path.stat().st_size:,} bytes, {len(mix)} tensors")


if __name__ == "__main__":
    main()
