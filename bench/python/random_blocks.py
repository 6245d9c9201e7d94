"""Random weights of any element type without quantising: random bits in the quants, sane numbers
in the scales.

The bytes of a block are random except for its float scales. These are set so that decoded weights
have mean 0 and
standard deviation `std`: scales of 1 are decoded once on a sample, and the real ones follow from
what came out.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

import moesaic

U8 = npt.NDArray[np.uint8]

# Where a block keeps its float16 scale d, and its float16 dmin if it has one (byte offsets).
_D = {
    "Q4_0": 0, "Q5_0": 0, "Q8_0": 0, "IQ4_NL": 0, "IQ2_XXS": 0, "IQ2_XS": 0, "IQ2_S": 0,
    "IQ3_XXS": 0,
    "IQ3_S": 0, "IQ1_S": 0, "IQ4_XS": 0, "Q4_1": 0, "Q5_1": 0, "Q4_K": 0, "Q5_K": 0, "Q3_K": 108,
    "Q6_K": 208, "Q2_K": 80, "TQ1_0": 52, "TQ2_0": 64, "Q1_0": 0, "Q2_0": 0,
}  # fmt: skip
_DMIN = {"Q4_1": 2, "Q5_1": 2, "Q4_K": 2, "Q5_K": 2, "Q2_K": 82}
# In Q4_1 and Q5_1 the minimum is added; elsewhere it is subtracted.
_ADDED = {"Q4_1", "Q5_1"}
_SAMPLE_BLOCKS = 4096


def _set_f16(blocks: U8, at: int, value: float) -> None:
    blocks[:, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)


def _set_iq1_m(blocks: U8, value: float) -> None:
    """IQ1_M spreads its float16 over the top nibbles of its four 16-bit scales."""
    bits = int(np.float16(value).view(np.uint16))
    for i in range(4):
        at = 48 + 2 * i + 1
        blocks[:, at] = (blocks[:, at] & 0x0F) | (((bits >> (4 * i)) & 15) << 4)


def _decode(blocks: U8, qtype: str, block_elems: int) -> npt.NDArray[np.float32]:
    shape = (len(blocks), block_elems)
    return moesaic.dequantize(np.ascontiguousarray(blocks), qtype, shape)


def _set_scales(blocks: U8, qtype: str, block_elems: int, std: float) -> None:
    if qtype == "MXFP4":  # an exponent: 2^(e - 128) times values of about 5.5
        blocks[:, 0] = 128 + round(math.log2(std / 5.5))
        return
    sample = blocks[:_SAMPLE_BLOCKS].copy()
    if qtype == "IQ1_M":
        _set_iq1_m(sample, 1.0)
        _set_iq1_m(blocks, std / float(_decode(sample, qtype, block_elems).std()))
        return
    at = _D[qtype]
    _set_f16(sample, at, 1.0)
    minimum = 0.0
    if qtype in _DMIN:
        _set_f16(sample, _DMIN[qtype], 0.0)
        scaled = _decode(sample, qtype, block_elems)
        _set_f16(sample, at, 0.0)
        _set_f16(sample, _DMIN[qtype], 1.0)
        minimum = -float(scaled.mean()) / float(_decode(sample, qtype, block_elems).mean())
        _set_f16(sample, at, 1.0)
        _set_f16(sample, _DMIN[qtype], minimum)
    d = std / float(_decode(sample, qtype, block_elems).std())
    _set_f16(blocks, at, d)
    if qtype in _DMIN:
        _set_f16(blocks, _DMIN[qtype], minimum * d)


def random_weight(
    rng: np.random.Generator, shape: tuple[int, ...], qtype: str
) -> tuple[npt.NDArray[np.generic], str, tuple[int, ...]]:
    """Make a weight for ``moesaic.write_gguf``: (raw, qtype, shape).

    Decoded values have mean 0 and variance 1 / row length, so that activations keep their size.
    """
    std = 1.0 / math.sqrt(shape[-1])
    if qtype == "F32":
        values = rng.standard_normal(shape, np.float32) * np.float32(std)
        return np.ascontiguousarray(values).view(np.uint8), qtype, shape
    if qtype in ("F16", "BF16"):
        values = rng.standard_normal(shape, np.float32) * np.float32(std)
        return moesaic.quantize(values, qtype), qtype, shape
    elems, n_bytes = moesaic.gguf.qtypes()[qtype]
    n_blocks = math.prod(shape) // elems
    blocks = np.frombuffer(bytearray(rng.bytes(n_blocks * n_bytes)), np.uint8).reshape(-1, n_bytes)
    _set_scales(blocks, qtype, elems, std)
    return blocks.reshape(*shape[:-1], -1), qtype, shape
