"""Write corpus/gguf_open/: small valid GGUF files as seeds, each with another mix of features.

Plain struct packing, so that it depends on nothing of ours: python tests/fuzz/make_gguf_corpus.py
"""

from __future__ import annotations

import struct
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus" / "gguf_open"
U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
FORMATS = {
    U8: "B",
    I8: "b",
    U16: "H",
    I16: "h",
    U32: "I",
    I32: "i",
    F32: "f",
    BOOL: "?",
    U64: "Q",
    I64: "q",
    F64: "d",
}


def text(value: str) -> bytes:
    """A length and its bytes."""
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key: str, kind: int, value: object, elem: int | None = None) -> bytes:
    """A key with its type and value."""
    out = text(key) + struct.pack("<I", kind)
    if kind == STRING:
        return out + text(str(value))
    if kind != ARRAY:
        return out + struct.pack("<" + FORMATS[kind], value)
    assert isinstance(value, list) and elem is not None
    out += struct.pack("<IQ", elem, len(value))
    if elem == STRING:
        return out + b"".join(text(v) for v in value)
    return out + struct.pack(f"<{len(value)}{FORMATS[elem]}", *value)


def file(
    pairs: list[bytes],
    tensors: list[tuple[str, int, list[int], int]],
    *,
    align: int = 32,
    version: int = 3,
) -> bytes:
    """A whole file; tensors are (name, element type, ne, bytes)."""
    out = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(pairs)) + b"".join(pairs)
    offset = 0
    for name, kind, ne, n_bytes in tensors:
        out += text(name) + struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, kind, offset)
        offset += -(-n_bytes // align) * align
    out += b"\0" * (-len(out) % align)
    return out + bytes(range(256)) * (offset // 256) + b"\1" * (offset % 256)


def main() -> None:
    """Write the seeds."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    every_kind = [pair(f"k{kind}", kind, 1) for kind in FORMATS]
    arrays = [pair(f"a{kind}", ARRAY, [0, 1, 1], kind) for kind in FORMATS]
    strings = [
        pair("s", ARRAY, ["", "a", "token"] * 5, STRING),
        pair("general.architecture", STRING, "llama"),
    ]
    seeds = {
        "empty": file([], []),
        "v2": file(strings, [], version=2),
        "scalars": file(every_kind, []),
        "arrays": file(arrays + strings, []),
        "f32": file(strings, [("w", 0, [8, 2], 64), ("b", 0, [4], 16)]),
        "quants": file(
            [],
            [
                ("q8_0", 8, [32, 2], 68),
                ("q4_k", 12, [256], 144),
                ("q2_k", 10, [256, 1, 2], 168),
                ("mxfp4", 39, [32], 17),
                ("iq1_s", 19, [256], 50),
                ("iq2_xxs", 16, [256], 66),
                ("nvfp4", 40, [64], 36),
                ("tq1_0", 34, [256], 54),
            ],
        ),
        "aligned": file(
            [pair("general.alignment", U32, 64)], [("w", 1, [3], 6), ("i", 26, [2], 8)], align=64
        ),
        "dims4": file([], [("w", 30, [2, 2, 2, 2], 32), ("s", 0, [], 4)]),
        "split": file(
            [
                pair("split.no", U16, 0),
                pair("split.count", U16, 2),
                pair("split.tensors.count", I32, 1),
            ],
            [],
        ),
    }
    for name, data in seeds.items():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
