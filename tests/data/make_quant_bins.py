"""Write quant/golden_<type>.bin: blocks of every type and the floats `gguf` decodes them to.

The C++ tests read these; they need neither Python nor gguf. Blocks are random bytes, except that
the last half has its f16 scales made finite and ordinary, so that both odd and everyday values are
covered. Needs numpy and gguf: python tests/data/make_quant_bins.py

Layout, little endian: u32 element type, u32 blocks, u32 bytes of a block, u32 elements of a block,
the blocks, the floats.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

FOLDER = Path(__file__).parent / "quant"
TYPES = [
    "F32",
    "F16",
    "BF16",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q8_0",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ1_S",
    "IQ1_M",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "IQ3_XXS",
    "IQ3_S",
    "IQ4_NL",
    "IQ4_XS",
    "TQ1_0",
    "TQ2_0",
    "MXFP4",
    "NVFP4",
]
# Byte offsets of the f16 scales in a block. IQ1_M's is spread over four words and stays random.
F16_AT = {
    "F16": [0],
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
    "IQ1_S": [0],
    "IQ2_XXS": [0],
    "IQ2_XS": [0],
    "IQ2_S": [0],
    "IQ3_XXS": [0],
    "IQ3_S": [0],
    "IQ4_NL": [0],
    "IQ4_XS": [0],
    "TQ1_0": [52],
    "TQ2_0": [64],
}


def main() -> None:
    """Write the files."""
    rng = np.random.default_rng(20261121)
    FOLDER.mkdir(exist_ok=True)
    for name in TYPES:
        qtype = GGMLQuantizationType[name]
        elems, n_bytes = GGML_QUANT_SIZES[qtype]
        n_blocks = max(2048 // elems, 8)
        raw = rng.integers(0, 256, (n_blocks, n_bytes), dtype=np.uint8)
        for at in F16_AT.get(name, []):
            scales = (rng.uniform(-0.1, 0.1, n_blocks // 2)).astype(np.float16)
            raw[n_blocks // 2 :, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
        with np.errstate(all="ignore"):
            values = quants.dequantize(raw, qtype).astype(np.float32)
        header = np.array([qtype, n_blocks, n_bytes, elems], dtype=np.uint32)
        (FOLDER / f"golden_{name}.bin").write_bytes(
            header.tobytes() + raw.tobytes() + values.tobytes()
        )


if __name__ == "__main__":
    main()
