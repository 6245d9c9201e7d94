"""Make the goldens of Q1_0 and Q2_0 by their formulas: gguf 0.19 decodes neither of them.

Written with NumPy alone, element by element as ggml's format says (quant/q1_0.h, quant/q2_0.h), in
the forms of make_quant_goldens.py (``NAME.npz``) and make_quant_bins.py (``golden_NAME.bin``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

FOLDER = Path(__file__).parent / "quant"
IDS = {"Q1_0": 41, "Q2_0": 42}
ELEMENTS = {"Q1_0": 128, "Q2_0": 64}
BLOCK_BYTES = 18
N_RANDOM = 48
RANDOM, EDGE = 0, 1
# Zero, minus zero, smallest and largest subnormal, one, minus two, largest, most negative.
EDGE_HALVES = (0x0000, 0x8000, 0x0001, 0x83FF, 0x3C00, 0xC000, 0x7BFF, 0xFBFF)


def decoded(name: str, raw: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Blocks (n, 18) as values (n, elements)."""
    d = raw[:, :2].copy().view(np.float16).astype(np.float32)  # (n, 1)
    j = np.arange(ELEMENTS[name])
    if name == "Q1_0":
        bit = (raw[:, 2 + j // 8] >> (j % 8)) & 1
        return np.where(bit == 1, d, -d).astype(np.float32)
    code = (raw[:, 2 + j // 4] >> (2 * (j % 4))) & 3
    return (d * (code.astype(np.float32) - 1)).astype(np.float32)


def main() -> None:
    """Write the files."""
    for name, number in IDS.items():
        rng = np.random.default_rng(number)
        raw = rng.integers(0, 256, (N_RANDOM + len(EDGE_HALVES), BLOCK_BYTES), dtype=np.uint8)
        scales = rng.normal(0, 0.05, N_RANDOM).astype(np.float16).view(np.uint16)
        halves = np.concatenate([scales, np.array(EDGE_HALVES, np.uint16)])
        raw[:, :2] = halves.view(np.uint8).reshape(-1, 2)
        raw[N_RANDOM + 4, 2:] = 0
        raw[N_RANDOM + 5, 2:] = 255
        values = decoded(name, raw)
        tag = np.array([RANDOM] * N_RANDOM + [EDGE] * len(EDGE_HALVES), np.uint8)
        np.savez_compressed(FOLDER / f"{name}.npz", raw=raw, values=values, tag=tag)
        header = np.array([number, len(raw), BLOCK_BYTES, ELEMENTS[name]], dtype=np.uint32)
        (FOLDER / f"golden_{name}.bin").write_bytes(
            header.tobytes() + raw.tobytes() + values.tobytes()
        )


if __name__ == "__main__":
    main()
