"""Puts GGUF bytes together by hand, without checks, for files that no writer would write."""

from __future__ import annotations

import struct
from collections.abc import Sequence

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: str, kind: int, payload: bytes) -> bytes:
    return text(key.encode()) + struct.pack("<I", kind) + payload


def u32(key: str, value: int) -> bytes:
    return pair(key, U32, struct.pack("<I", value))


def tensor(
    name: str, ne: Sequence[int], qtype: int = 0, offset: int = 0, n_dims: int | None = None
) -> bytes:
    dims = len(ne) if n_dims is None else n_dims
    return text(name.encode()) + struct.pack(f"<I{len(ne)}QIQ", dims, *ne, qtype, offset)


def file(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: int = 0,
    *,
    version: int = 3,
    n_tensors: int | None = None,
    n_pairs: int | None = None,
) -> bytes:
    out = struct.pack(
        "<4sIQQ",
        b"GGUF",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(pairs) if n_pairs is None else n_pairs,
    )
    out += b"".join(pairs) + b"".join(tensors)
    return out + b"\0" * (-len(out) % 32) + b"\x5a" * data if data else out
