"""Writes a tiny `transformers` model as the GGUF that llama.cpp's converter would write.

Keys, tensor names and layouts follow llama.cpp's conversion scripts (facts only); nothing here is
needed to read a file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from oracle.specs import VOCAB, Spec
from oracle.weights import F32, exact

_MERGES = ("t h", "i n", "e r", "th e", "o n", "a n", "in g", "r e", "Ġ a", "Ġ the")
_CONTROL = ("<|bos|>", "<|eos|>", "<|pad|>")


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 byte values, in byte order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spare = iter(range(256, 512))
    return [chr(b) if b in plain else chr(next(spare)) for b in range(256)]


def _write_vocab(writer: gguf.GGUFWriter, pre: str) -> None:
    tokens = [*byte_symbols(), *("".join(m.split()) for m in _MERGES), *_CONTROL]
    assert len(tokens) == VOCAB
    normal, control = int(gguf.TokenType.NORMAL), int(gguf.TokenType.CONTROL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([normal] * (VOCAB - 3) + [control] * 3)
    writer.add_token_merges(list(_MERGES))
    writer.add_bos_token_id(VOCAB - 3)
    writer.add_eos_token_id(VOCAB - 2)
    writer.add_pad_token_id(VOCAB - 1)
    writer.add_add_bos_token(False)


def _rope_keys(c: Any, spec: Spec) -> dict[str, Any]:
    rope = c.rope_parameters
    keys: dict[str, Any] = {"rope.freq_base": float(rope["rope_theta"])}
    kind = rope["rope_type"]
    if kind == "linear":
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        keys |= {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": float(rope["factor"]),
            "rope.scaling.original_context_length": int(rope["original_max_position_embeddings"]),
        }
        for name in ("beta_fast", "beta_slow"):
            if name in rope:
                keys[f"rope.scaling.yarn_{name}"] = float(rope[name])
        if spec.arch == "deepseek2":
            # Written as 0.1 * mscale_all_dim, unlike the same key of other architectures.
            keys["rope.scaling.yarn_log_multiplier"] = 0.1 * float(rope["mscale_all_dim"])
    return keys


def _moe_keys(c: Any, spec: Spec) -> dict[str, Any]:
    if spec.arch in ("deepseek2", "glm4moe"):
        keys: dict[str, Any] = {
            "expert_count": c.n_routed_experts,
            "expert_used_count": c.num_experts_per_tok,
            "expert_shared_count": c.n_shared_experts,
            "expert_feed_forward_length": c.moe_intermediate_size,
            "leading_dense_block_count": c.first_k_dense_replace,
            "expert_weights_scale": float(c.routed_scaling_factor),
            "expert_gating_func": 1 if spec.hf == "DeepseekV2" else 2,
        }
        if c.norm_topk_prob:
            keys["expert_weights_norm"] = True
        if c.n_group is not None and c.topk_group is not None:
            keys |= {"expert_group_count": c.n_group, "expert_group_used_count": c.topk_group}
        return keys
    if spec.hf == "Mixtral":
        return {
            "expert_count": c.num_local_experts,
            "expert_used_count": c.num_experts_per_tok,
        }
    if spec.arch in ("qwen3moe", "gpt-oss"):
        width = c.intermediate_size if spec.arch == "gpt-oss" else c.moe_intermediate_size
        return {
            "expert_count": c.num_local_experts if spec.arch == "gpt-oss" else c.num_experts,
            "expert_used_count": c.num_experts_per_tok,
            "expert_feed_forward_length": width,
        }
    return {}


def metadata(c: Any, spec: Spec) -> dict[str, Any]:
    """Architecture keys, without the architecture's prefix.

    Parameters
    ----------
    c : transformers configuration
    spec : Spec

    Returns
    -------
    dict
        Key to int, float, bool or str.
    """
    keys: dict[str, Any] = {
        "block_count": c.num_hidden_layers + spec.nextn,
        "context_length": c.max_position_embeddings,
        "embedding_length": c.hidden_size,
        "feed_forward_length": c.intermediate_size,
        "attention.head_count": c.num_attention_heads,
        "attention.head_count_kv": c.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(c.rms_norm_eps),
        "vocab_size": VOCAB,
    }
    keys |= _rope_keys(c, spec) | _moe_keys(c, spec)
    head_dim = spec.config.get("head_dim")
    if spec.arch == "deepseek2":
        rope, nope, latent = c.qk_rope_head_dim, c.qk_nope_head_dim, c.kv_lora_rank
        keys |= {"rope.dimension_count": rope, "attention.kv_lora_rank": latent}
        if c.q_lora_rank is not None:
            keys["attention.q_lora_rank"] = c.q_lora_rank
        if spec.layout == "mla":
            keys |= {
                "attention.head_count_kv": 1,
                "attention.key_length": latent + rope,
                "attention.value_length": latent,
                "attention.key_length_mla": nope + rope,
                "attention.value_length_mla": c.v_head_dim,
            }
        else:
            keys |= {
                "attention.head_count_kv": c.num_attention_heads,
                "attention.key_length": nope + rope,
                "attention.value_length": c.v_head_dim,
            }
    elif head_dim is not None:
        keys |= {"attention.key_length": head_dim, "attention.value_length": head_dim}
    if spec.arch == "llama":
        keys["rope.dimension_count"] = head_dim or c.hidden_size // c.num_attention_heads
    if spec.arch == "gpt-oss":
        keys["attention.sliding_window"] = c.sliding_window
    if spec.arch == "glm4moe":
        partial = c.rope_parameters["partial_rotary_factor"]
        keys["rope.dimension_count"] = int(head_dim * partial)
        keys["nextn_predict_layers"] = spec.nextn
    for name in spec.omit:
        keys.pop(name, None)
    return keys


def _interleave(w: F32, n_heads: int) -> F32:
    """Rows of each head from [first halves | second halves] to pairs: llama's rope order."""
    per_head = w.reshape(n_heads, 2, w.shape[0] // n_heads // 2, *w.shape[1:])
    return np.ascontiguousarray(per_head.swapaxes(1, 2).reshape(w.shape))


_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}


def _experts(arch: str, leaf: str, w: F32) -> dict[str, F32]:
    """Split a fused expert tensor into GGUF's (expert, out, in) tensors, (expert, out) biases."""
    suffix = "bias" if leaf.endswith("_bias") else "weight"
    if arch == "gpt-oss":
        rows = w if suffix == "bias" else w.swapaxes(1, 2)
        if leaf.startswith("gate_up"):
            return {
                f"ffn_gate_exps.{suffix}": rows[:, 0::2],
                f"ffn_up_exps.{suffix}": rows[:, 1::2],
            }
        return {f"ffn_down_exps.{suffix}": rows}
    if leaf == "gate_up_proj":
        half = w.shape[1] // 2
        return {"ffn_gate_exps.weight": w[:, :half], "ffn_up_exps.weight": w[:, half:]}
    return {"ffn_down_exps.weight": w}


def _layer_tensors(rest: str, w: F32, c: Any, spec: Spec) -> dict[str, F32]:
    if rest.startswith("mlp.experts."):
        return _experts(spec.arch, rest.removeprefix("mlp.experts."), w)
    if rest == "self_attn.sinks":
        return {"attn_sinks.weight": w}
    if rest.endswith("e_score_correction_bias"):
        return {"exp_probs_b.bias": w}
    module, _, leaf = rest.rpartition(".")
    if module == "post_attention_layernorm":
        post = spec.arch in ("gpt-oss", "glm4moe")
        return {f"{'post_attention_norm' if post else 'ffn_norm'}.{leaf}": w}
    if module == "self_attn.kv_b_proj":
        if spec.layout == "kv_b":
            return {"attn_kv_b.weight": w}
        nope = c.qk_nope_head_dim
        heads = w.reshape(c.num_attention_heads, nope + c.v_head_dim, -1)
        return {
            "attn_k_b.weight": heads[:, :nope].swapaxes(1, 2),
            "attn_v_b.weight": heads[:, nope:],
        }
    if spec.arch == "llama" and module == "self_attn.q_proj":
        w = _interleave(w, c.num_attention_heads)
    if spec.arch == "llama" and module == "self_attn.k_proj":
        w = _interleave(w, c.num_key_value_heads)
    return {f"{_NAMES[module]}.{leaf}": w}


def _rope_freqs(c: Any, spec: Spec) -> dict[str, F32]:
    rope = c.rope_parameters
    if rope["rope_type"] != "llama3":
        return {}
    size = spec.config["head_dim"]
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    factors = []
    for i in range(size // 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (2 * i / size)
        turns = rope["original_max_position_embeddings"] / wavelength
        blend = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - blend) / rope["factor"] + blend))
    return {"rope_freqs.weight": np.array(factors, np.float32)}


def _nextn(tensors: dict[str, F32], c: Any, spec: Spec) -> dict[str, F32]:
    """One more block of noise in the shape of the last one, and the nextn tensors."""
    rng = np.random.default_rng(99)
    extra: dict[str, F32] = {}
    last, d = c.num_hidden_layers - 1, c.hidden_size
    for k in range(spec.nextn):
        prefix = f"blk.{last + 1 + k}."
        for name, w in tensors.items():
            if name.startswith(f"blk.{last}."):
                noise = rng.standard_normal(w.shape).astype(np.float32)
                extra[prefix + name.removeprefix(f"blk.{last}.")] = exact(noise)
        shapes = {"eh_proj": (d, 2 * d), "enorm": (d,), "hnorm": (d,), "shared_head_norm": (d,)}
        for name, shape in shapes.items():
            noise = rng.standard_normal(shape).astype(np.float32)
            extra[f"{prefix}nextn.{name}.weight"] = exact(noise)
    return extra


def tensors_of(model: torch.nn.Module, c: Any, spec: Spec) -> dict[str, F32]:
    """GGUF tensor name -> values, in NumPy order (row length last)."""
    out: dict[str, F32] = {}
    for name, tensor in model.state_dict().items():
        w = tensor.float().numpy()
        if name == "model.embed_tokens.weight":
            out["token_embd.weight"] = w
        elif name == "model.norm.weight":
            out["output_norm.weight"] = w
        elif name == "lm_head.weight":
            if not c.tie_word_embeddings:
                out["output.weight"] = w
        else:
            _, _, layer, rest = name.split(".", 3)
            for leaf, part in _layer_tensors(rest, w, c, spec).items():
                out[f"blk.{layer}.{leaf}"] = np.ascontiguousarray(part)
    return out | _rope_freqs(c, spec) | _nextn(out, c, spec)


def write(path: Path, model: torch.nn.Module, c: Any, spec: Spec) -> None:
    """Write the model, its matrices in the element types that the spec names."""
    writer = gguf.GGUFWriter(path, spec.arch)
    writer.add_name(spec.name)
    for key, value in metadata(c, spec).items():
        full = f"{spec.arch}.{key}"
        if isinstance(value, bool):
            writer.add_bool(full, value)
        elif isinstance(value, int):
            writer.add_uint32(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        else:
            writer.add_string(full, value)
    _write_vocab(writer, spec.pre)
    kinds = gguf.GGMLQuantizationType
    for name, w in tensors_of(model, c, spec).items():
        store = spec.experts if spec.experts and name.endswith("_exps.weight") else spec.store
        keep = w.ndim == 1 or name.endswith((".bias", "ffn_gate_inp.weight"))
        kind = kinds["F32" if keep else store]
        if kind == kinds.F32:
            writer.add_tensor(name, w)
        elif kind == kinds.F16:
            writer.add_tensor(name, w.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(w, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
