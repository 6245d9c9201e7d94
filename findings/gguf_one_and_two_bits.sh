#!/usr/bin/env bash
# gguf 0.19.0 (the Python package), with numpy 2.4.6.
#
# Behaviour: llama.cpp's element types 41 (Q1_0, 128 values in 18 bytes) and 42 (Q2_0, 64 values in 18
# bytes) are known to the package by halves. For Q1_0 there is an id and a block size, and GGUFReader
# opens a file that has such a tensor, but dequantize() raises NotImplementedError. Q2_0 has no id: the
# reader raises ValueError for the whole file, so that not even its metadata or its other tensors can
# be read.
#
# Seen: "Q1_0: opened, dequantize: NotImplementedError" and "Q2_0: not opened: ValueError: np.uint32(42) is not a
# valid GGMLQuantizationType".
#
# For tools that only need metadata: one tensor of a type that the package does not know closes the
# whole file to it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check gguf==0.19.0 numpy==2.4.6
cat >"$work/check.py" <<'PYTHON'
import struct
import sys
from pathlib import Path

from gguf import GGUFReader
from gguf.quants import dequantize

folder = Path(sys.argv[1])


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def file_with(type_id: int, n_values: int) -> Path:
    """A GGUF v3 file of one key and one tensor: a single block of 18 bytes."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
    head += text("general.architecture") + struct.pack("<I", 8) + text("none")
    head += text("t") + struct.pack("<IQIQ", 1, n_values, type_id, 0)
    head += bytes(-len(head) % 32)
    path = folder / f"type{type_id}.gguf"
    path.write_bytes(head + struct.pack("<e", 0.5) + bytes(range(16)) + bytes(14))
    return path


seen = []
for name, type_id, n_values in (("Q1_0", 41, 128), ("Q2_0", 42, 64)):
    try:
        tensor = GGUFReader(file_with(type_id, n_values)).tensors[0]
    except ValueError as error:
        seen.append(f"{name}: not opened: ValueError: {error}")
        continue
    try:
        dequantize(tensor.data, tensor.tensor_type)
        seen.append(f"{name}: opened, dequantized")
    except NotImplementedError:
        seen.append(f"{name}: opened, dequantize: NotImplementedError")
print("\n".join(seen))
expected = [
    "Q1_0: opened, dequantize: NotImplementedError",
    "Q2_0: not opened: ValueError: np.uint32(42) is not a valid GGMLQuantizationType",
]
if seen != expected:
    sys.exit(f"the behaviour has changed: had {expected}")
PYTHON
"$work/venv/bin/python" "$work/check.py" "$work"
