"""Other layouts of the same weights: fused tensors, scales beside them, types of one and two bits.

Each file is a family's golden model written anew, run on this machine and on two workers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import moesaic
from moesaic.cli.inspect import notes

FAMILIES = Path(__file__).parents[2] / "data" / "families"
TOKENS = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46]
Tensors = dict[str, Any]


def raw_of(source: moesaic.GGUF) -> Tensors:
    """Every tensor as it is: (bytes, element type, shape)."""
    return {name: (t.raw, t.qtype, t.shape) for name, t in source.tensors.items()}


def written(source: Path, target: Path, change: Callable[[Tensors], None]) -> Path:
    """Write a copy whose tensors were changed."""
    with moesaic.GGUF(source) as file:
        tensors = raw_of(file)
        change(tensors)
        moesaic.write_gguf(target, dict(file.metadata), tensors)
    return target


def logits(path: Path) -> npt.NDArray[np.float32]:
    with moesaic.Model(path, n_ctx=64, deterministic=True, progress=False) as model:
        return model.forward(TOKENS)


def logits_of_two_workers(path: Path) -> npt.NDArray[np.float32]:
    with (
        moesaic.Cluster.local(2, threads=1) as cluster,
        cluster.load(path, n_ctx=64, deterministic=True, progress=False) as model,
    ):
        assert all(len(node.models[0].layers) for node in cluster.nodes)
        return model.forward(TOKENS)


def fuse(tensors: Tensors) -> None:
    """q, k, v in one tensor, and gate and up in one, of every layer."""
    for name in list(tensors):
        for first, others, fused in (
            ("attn_q.", ("attn_k.", "attn_v."), "attn_qkv."),
            ("ffn_gate.", ("ffn_up.",), "ffn_gate_up."),
            ("ffn_gate_exps.", ("ffn_up_exps.",), "ffn_gate_up_exps."),
            ("ffn_gate_shexp.", ("ffn_up_shexp.",), "ffn_gate_up_shexp."),
        ):
            if first not in name:
                continue
            parts = [tensors.pop(name.replace(first, part)) for part in (first, *others)]
            kinds = {qtype for _, qtype, _ in parts}
            assert len(kinds) == 1
            # Rows are the last axis but one; biases are rows of one value.
            axis = -1 if name.endswith(".bias") else -2
            shape = list(parts[0][2])
            shape[axis] = sum(part[2][axis] for part in parts)
            experts = shape[0] if len(shape) == 3 or (axis == -1 and len(shape) == 2) else 1
            raw = np.concatenate(
                [np.ascontiguousarray(part[0]).reshape(experts, -1) for part in parts], axis=1
            )
            tensors[name.replace(first, fused)] = (raw.reshape(-1), kinds.pop(), tuple(shape))


@pytest.mark.parametrize("name", ["qwen3moe_top3", "glm4moe_bias", "gptoss_mxfp4", "llama_bias"])
def test_fused_tensors_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    source = FAMILIES / f"{name}.gguf"
    fused = written(source, tmp_path / "fused.gguf", fuse)
    with moesaic.GGUF(fused) as file:
        assert "blk.0.attn_qkv.weight" in file.tensors
    want = logits(source)
    assert np.array_equal(logits(fused), want)
    assert np.array_equal(logits_of_two_workers(fused), want)


def wide(path: Path) -> Path:
    """Write a qwen3moe whose rows are whole blocks of every type: all widths are 128."""
    with moesaic.GGUF(FAMILIES / "qwen3moe_top3.gguf") as file:
        meta = dict(file.metadata)
        vocab = file.tensors["token_embd.weight"].shape[0]
    sizes = {"embedding_length": 128, "attention.head_count": 2, "attention.head_count_kv": 1,
             "attention.key_length": 64, "attention.value_length": 64, "block_count": 2,
             "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 128,
             "rope.dimension_count": 64}  # fmt: skip
    meta |= {f"qwen3moe.{key}": value for key, value in sizes.items()}
    rng = np.random.default_rng(3)

    def draw(*shape: int) -> npt.NDArray[np.float32]:
        return (0.1 * rng.standard_normal(shape)).astype(np.float32)

    one = np.ones(128, np.float32)
    tensors: Tensors = {
        "token_embd.weight": draw(vocab, 128),
        "output.weight": draw(vocab, 128),
        "output_norm.weight": one,
    }
    for blk in ("blk.0.", "blk.1."):
        layer = {"attn_q": (128, 128), "attn_k": (64, 128), "attn_v": (64, 128),
                 "attn_output": (128, 128), "ffn_gate_inp": (4, 128),
                 "ffn_gate_exps": (4, 128, 128), "ffn_up_exps": (4, 128, 128),
                 "ffn_down_exps": (4, 128, 128)}  # fmt: skip
        tensors |= {f"{blk}{name}.weight": draw(*shape) for name, shape in layer.items()}
        tensors |= {f"{blk}{name}.weight": one for name in ("attn_norm", "ffn_norm")}
        tensors |= {f"{blk}attn_{x}_norm.weight": one[:64] for x in "qk"}
    moesaic.write_gguf(path, meta, tensors)
    return path


def scaled(kind: str, block: tuple[int, int], scale: bool) -> Callable[[Tensors], None]:
    """Matrices of layers as random blocks of a type, each with a factor beside it."""

    def change(tensors: Tensors) -> None:
        rng = np.random.default_rng(5)
        for name, (_, _, shape) in list(tensors.items()):
            if len(shape) < 2 or not name.endswith(".weight") or "blk." not in name:
                continue
            if "ffn_gate_inp" in name or shape[-1] % block[0]:
                continue
            n_blocks = int(np.prod(shape)) // block[0]
            raw = rng.integers(0, 256, (n_blocks, block[1]), dtype=np.uint8)
            if kind == "NVFP4":
                raw[:, :4] = rng.integers(0x20, 0x38, (n_blocks, 4))
            else:
                d = rng.uniform(0.02, 0.1, n_blocks).astype(np.float16)
                raw[:, :2] = d.view(np.uint8).reshape(-1, 2)
            tensors[name] = (raw.reshape(-1), kind, shape)
            if not scale:
                continue
            n = shape[0] if len(shape) == 3 else 1
            stem = name.removesuffix(".weight")
            factors = np.exp2(rng.integers(-2, 2, n)).astype(np.float32)
            tensors[f"{stem}.scale"] = (factors, "F32")
            tensors[f"{stem}.input_scale"] = (np.full(n, 7, np.float32), "F32")

    return change


def as_floats(tensors: Tensors) -> None:
    """Every matrix decoded, times its factor."""
    for name, given in list(tensors.items()):
        if name.endswith((".scale", ".input_scale")):
            continue
        if len(given) == 3:
            raw, kind, shape = given
            values = moesaic.dequantize(np.asarray(raw).reshape(-1), kind, shape)
            factor = tensors.get(name.removesuffix(".weight") + ".scale")
            if factor is not None:
                factors = np.asarray(factor[0]).view(np.float32).reshape(-1)
                values = values * factors.reshape(-1, *[1] * (len(shape) - 1))
            tensors[name] = (values.astype(np.float32), "F32")
    for name in [n for n in tensors if n.endswith((".scale", ".input_scale"))]:
        del tensors[name]


@pytest.mark.parametrize(
    ("kind", "block", "scale"),
    [("NVFP4", (64, 36), True), ("Q1_0", (128, 18), False), ("Q2_0", (64, 18), True)],
)
def test_few_bits_with_scales(
    kind: str, block: tuple[int, int], scale: bool, tmp_path: Path
) -> None:
    source = wide(tmp_path / "wide.gguf")
    path = written(source, tmp_path / "few.gguf", scaled(kind, block, scale))
    with moesaic.GGUF(path) as file:
        assert kind in {tensor.qtype for tensor in file.tensors.values()}
        assert [note[:2] for note in notes(file)] == (["14"] if scale else [])
    floats = written(path, tmp_path / "floats.gguf", as_floats)
    got, want = logits(path), logits(floats)
    # The same but for activations of 8 bits.
    assert np.corrcoef(got.reshape(-1), want.reshape(-1))[0, 1] > 0.99
    assert np.array_equal(logits_of_two_workers(path), got)
