"""Random weights for a tiny `transformers` model, scaled so that nothing is degenerate.

Every value is exact in F32, BF16 and F16, so that the element type of the file never matters.
"""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch

F32 = npt.NDArray[np.float32]

# Gains g: a matrix gets the standard deviation g / sqrt(row length), so that its output has the
# standard deviation g for normalised input.
_GAINS = {
    "q_proj": 1.6,
    "q_b_proj": 1.6,
    "k_proj": 1.6,
    "kv_b_proj": 1.4,
    "down_proj": 1.5,
    "gate.weight": 1.6,
    "router.weight": 1.6,
    "lm_head": 1.2,
}


def exact(x: F32) -> F32:
    """Round to values that F32, BF16 and F16 all hold exactly."""
    rounded = torch.from_numpy(np.ascontiguousarray(x)).to(torch.bfloat16).float().numpy()
    return np.where(np.abs(rounded) < 2.0**-14, np.float32(0), rounded).astype(np.float32)


def _draw(
    name: str, shape: tuple[int, ...], rng: np.random.Generator, *, gate_gain: float, tied: bool
) -> F32:
    noise = rng.standard_normal(shape).astype(np.float32)
    if tied and name == "model.norm.weight":
        # A tied head sees the embedding's own direction again; signs at random in between keep
        # the logits from being "repeat the last token".
        return np.float32(0.2) * noise
    if "norm" in name:
        return 1 + np.float32(0.25) * noise
    if name.endswith("e_score_correction_bias"):
        return np.float32(0.15) * noise
    if name.endswith("sinks"):
        return np.float32(0.5) + noise
    if name.endswith("bias"):
        return np.float32(0.3) * noise
    if "embed_tokens" in name:
        return noise
    gain = next((g for key, g in _GAINS.items() if key in name), 1.0)
    if any(key in name for key in ("gate_proj", "up_proj", "gate_up_proj")):
        gain = gate_gain
    return noise * np.float32(gain / np.sqrt(shape[-1]))


def fill(model: torch.nn.Module, *, seed: int, gate_gain: float, tied: bool, arch: str) -> None:
    """Fill every parameter and the router's bias buffers, in the order of their names."""
    rng = np.random.default_rng(seed)
    named: dict[str, Any] = dict(model.named_parameters())
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            named[name] = buffer
    with torch.no_grad():
        for name in sorted(named):
            tensor = named[name]
            shape = tuple(tensor.shape)
            # gpt-oss keeps its experts as (expert, in, out); everything else is (..., out, in).
            swap = arch == "gpt-oss" and len(shape) == 3
            if swap:
                shape = (shape[0], shape[2], shape[1])
            value = exact(_draw(name, shape, rng, gate_gain=gate_gain, tied=tied))
            tensor.copy_(torch.from_numpy(value.swapaxes(1, 2).copy() if swap else value))


def snap_to_mxfp4(model: torch.nn.Module) -> None:
    """Replace the experts of a gpt-oss model by their MXFP4 values (blocks of 32 along a row)."""
    kind = gguf.GGMLQuantizationType.MXFP4
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                rows = np.ascontiguousarray(tensor.numpy().swapaxes(1, 2))
                back = gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind)
                tensor.copy_(torch.from_numpy(back.swapaxes(1, 2).copy()))
