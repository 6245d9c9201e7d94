"""Write corpus/engine_session_file/: session files of the fuzzer's small model, good and bad.

Plain struct packing, so that it depends on nothing of ours.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus" / "engine_session_file"
IDENTITY = b"fuzz"
VALUES = 12  # of KV a token: 2 layers of a latent row of 6


def file(
    tokens: list[int],
    *,
    bytes_per_value: int = 2,
    n_kv: int | None = None,
    identity: bytes = IDENTITY,
    version: int = 2,
    magic: bytes = b"MOESESS1",
) -> bytes:
    """A whole file with its digest."""
    right = len(tokens) * VALUES * bytes_per_value
    kv = bytes(i % 251 for i in range(right if n_kv is None else n_kv))
    head = magic + struct.pack("<IIQQ", version, len(identity), len(tokens), len(kv))
    body = head + identity + struct.pack(f"<{len(tokens)}i", *tokens) + kv
    return body + hashlib.sha256(body).digest()


def main() -> None:
    """Write the seeds; the first byte says whether the fuzzer makes the digest right."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    f16, f32 = file([0, 1, 999]), file([5, 7], bytes_per_value=4)
    seeds = {
        "none": b"\1" + file([]),
        "f16": b"\0" + f16,
        "f32": b"\1" + f32,
        "full": b"\1" + file(list(range(64))),
        "too_many": b"\1" + file(list(range(65))),
        "kv_short": b"\1" + file([1, 2], n_kv=47),
        "kv_none": b"\1" + file([1, 2], n_kv=0),
        "cut": b"\0" + f16[:-1],
        "digest": b"\0" + f16[:-1] + bytes([f16[-1] ^ 1]),
        "token": b"\1" + file([0, 1000]),
        "negative": b"\1" + file([-1]),
        "identity": b"\1" + file([1], identity=b"other"),
        "version": b"\1" + file([1], version=1),
        "magic": b"\1" + file([1], magic=b"MOESESS2"),
    }
    for name, data in seeds.items():
        (FOLDER / name).write_bytes(data)


if __name__ == "__main__":
    main()
