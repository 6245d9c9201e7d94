"""Makes tests/data/quant/: blocks of every element type with the values that `gguf` reads in them.

Run from this folder with an environment that has numpy and gguf, and LLAMA_CPP_LIB_PATH naming a
folder with libggml-base.so: its quantizers make the encoded blocks (the `gguf` package has only
some of them), its own decoders are a second opinion.

    python make_quant_goldens.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from oracle.ggml import F32, U8, Ggml

OUT = Path(__file__).parent / "quant"
SOURCE_VALUES = 1024  # what the encoded blocks encode: a multiple of every block size
RANDOM, EDGE, ENCODED = 0, 1, 2

# Byte offsets of the float16 fields of a block. IQ1_M's scale is spread over four words, MXFP4 and
# NVFP4 have 8-bit scales: see _set_scale.
_HALVES: dict[str, tuple[int, ...]] = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ1_S": (0,),
    "IQ1_M": (),
    "IQ2_XXS": (0,),
    "IQ2_XS": (0,),
    "IQ2_S": (0,),
    "IQ3_XXS": (0,),
    "IQ3_S": (0,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    "MXFP4": (),
    "NVFP4": (),
}
PLAIN = ("F32", "F16", "BF16")
# Zero, minus zero, smallest and largest subnormal, one, minus two, largest, most negative.
_EDGE_HALVES = (0x0000, 0x8000, 0x0001, 0x83FF, 0x3C00, 0xC000, 0x7BFF, 0xFBFF)
_EDGE_E8M0 = (0, 1, 2, 3, 127, 128, 200, 250)
_EDGE_UE4M3 = (0x00, 0x01, 0x07, 0x08, 0x38, 0x77, 0x7E, 0x7F)  # 0x7F reads as zero


def _set_scale(block: U8, name: str, field: int, code: int) -> None:
    """Write one scale field's bits into a block."""
    if name == "MXFP4":
        block[0] = code
    elif name == "NVFP4":
        block[field] = code
    elif name == "IQ1_M":
        words = block[48:56].view(np.uint16)
        for i in range(4):
            words[i] = (int(words[i]) & 0x0FFF) | ((code >> (4 * i) & 0xF) << 12)
    else:
        at = _HALVES[name][field]
        block[at : at + 2] = np.frombuffer(np.uint16(code).tobytes(), np.uint8)


def _fields(name: str) -> int:
    return {"NVFP4": 4, "MXFP4": 1, "IQ1_M": 1}.get(name) or len(_HALVES[name])


def _scale_codes(name: str, rng: np.random.Generator, n: int) -> list[int]:
    """Random scales: half of them ordinary, half any finite bit pattern."""
    if name == "MXFP4":
        return [int(x) for x in rng.integers(0, 251, n)]
    if name == "NVFP4":
        return [int(x) for x in rng.integers(0, 0x80, n)]
    small = rng.normal(0, 0.05, n).astype(np.float16).view(np.uint16)
    bits = rng.integers(0, 0x10000, n).astype(np.uint16)
    bits = np.where((bits & 0x7C00) == 0x7C00, bits & 0xBBFF, bits)  # no infinity, no NaN
    return [int(a if i % 2 else b) for i, (a, b) in enumerate(zip(small, bits, strict=True))]


def _source() -> F32:
    """Values like a weight row's: normal, a few outliers, one zero block of 32, one tiny block."""
    rng = np.random.default_rng(7)
    x = (rng.standard_normal(SOURCE_VALUES) * 0.04).astype(np.float32)
    x[rng.integers(0, SOURCE_VALUES, 8)] *= 8
    x[64:96] = 0
    x[96:128] *= 1e-6
    return x


def _blocks(name: str, rng: np.random.Generator) -> tuple[U8, list[int]]:
    """Random blocks, then blocks whose scales are edge cases."""
    kind = gguf.GGMLQuantizationType[name]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    n_random = 4 if block == 256 else 16
    edges = {"MXFP4": _EDGE_E8M0, "NVFP4": _EDGE_UE4M3}.get(name, _EDGE_HALVES)
    raw = rng.integers(0, 256, (n_random + len(edges), size), dtype=np.uint8)
    for field in range(_fields(name)):
        codes = _scale_codes(name, rng, n_random)
        # The fields of one block take different edges, so that they are told apart.
        codes += [edges[(i + 3 * field) % len(edges)] for i in range(len(edges))]
        for i, code in enumerate(codes):
            _set_scale(raw[i], name, field, code)
    # The packed quants at their ends: all bits clear, all bits set.
    keep = raw.copy()
    for i, fill in ((n_random + 4, 0), (n_random + 5, 255)):
        raw[i] = fill
        for field in range(_fields(name)):
            _set_scale(raw[i], name, field, _get_scale(keep[i], name, field))
    return raw, [RANDOM] * n_random + [EDGE] * len(edges)


def _get_scale(block: U8, name: str, field: int) -> int:
    if name in ("MXFP4", "NVFP4"):
        return int(block[field])
    if name == "IQ1_M":
        words = block[48:56].view(np.uint16)
        return sum((int(words[i]) >> 12) << (4 * i) for i in range(4))
    at = _HALVES[name][field]
    return int(block[at]) | int(block[at + 1]) << 8


def _plain(name: str, source: F32, rng: np.random.Generator) -> dict[str, Any]:
    """The unquantized types: one block is one value."""
    kind = gguf.GGMLQuantizationType[name]
    dtype: Any = np.uint32 if name == "F32" else np.uint16
    specials = {
        "F32": (0, 0x80000000, 1, 0x007FFFFF, 0x3F800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000),
        "F16": (*_EDGE_HALVES, 0x7C00, 0xFC00, 0x7E00, 0x03FF, 0x0400),
        "BF16": (0, 0x8000, 1, 0x807F, 0x3F80, 0xC000, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0),
    }[name]
    finite = rng.normal(0, 1, 64).astype(np.float32)
    encoded = [finite.view(np.uint32), source[:128].view(np.uint32)]
    if name == "F16":
        encoded = [finite.astype(np.float16).view(np.uint16), source[:128].astype(np.float16)]
    if name == "BF16":
        encoded = [gguf.quants.quantize(x, kind) for x in (finite, source[:128])]
    bits = np.concatenate([np.array(specials, dtype), *(e.view(dtype) for e in encoded)])
    size = bits.itemsize
    raw = bits.view(np.uint8).reshape(-1, size)
    tags = [EDGE] * len(specials) + [RANDOM] * 64 + [ENCODED] * 128
    values = gguf.quants.dequantize(raw.reshape(-1), kind).reshape(-1, 1)
    return {"raw": raw, "values": values.astype(np.float32), "tag": np.array(tags, np.uint8)}


def main() -> None:
    """Write one file per type, and the source of the encoded blocks."""
    OUT.mkdir(exist_ok=True)
    ggml = Ggml()
    source = _source()
    np.savez_compressed(OUT / "source.npz", values=source)
    for number, name in enumerate((*PLAIN, *_HALVES)):
        rng = np.random.default_rng(1000 + number)
        kind = gguf.GGMLQuantizationType[name]
        if name in PLAIN:
            np.savez_compressed(OUT / f"{name}.npz", **_plain(name, source, rng))
            continue
        made, tags = _blocks(name, rng)
        encoded = ggml.encode(source, kind)
        raw = np.concatenate([made, encoded])
        values = np.stack([gguf.quants.dequantize(row, kind) for row in raw]).astype(np.float32)
        other = ggml.decode(raw, kind)
        same = np.array_equal(values.view(np.uint32), other.view(np.uint32))
        scale = np.abs(values).max(axis=-1, keepdims=True) + 1e-45
        error = float(np.sqrt(np.mean((values[len(made) :].ravel() - source) ** 2)))
        arrays: dict[str, Any] = {
            "raw": raw,
            "values": values,
            "tag": np.array(tags + [ENCODED] * len(encoded), np.uint8),
            "encoded_rms_error": np.float32(error),
        }
        np.savez_compressed(OUT / f"{name}.npz", **arrays)
        differ = float((np.abs(values - other) / scale).max())
        print(
            f"{name:8} {len(raw):3} blocks, finite {bool(np.isfinite(values).all())}, "
            f"encoded rms error {error:.2e}, ggml's decoder "
            + ("gives the same bits" if same else f"differs by {differ:.1e} of a block's largest")
        )


if __name__ == "__main__":
    main()
