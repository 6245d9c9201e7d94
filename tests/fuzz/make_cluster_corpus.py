"""Write corpus/cluster_*/: changes of the good files that the targets make themselves.

The form is that of ``input_of`` in small_slice.h: python tests/fuzz/make_cluster_corpus.py
"""

from __future__ import annotations

import struct
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
#: Offsets that matter: of numbers, digests and records.
OFFSETS = {
    "cluster_slice_file": (8, 12, 16, 80, 88, 96, 104, 112, 130, 300, 4096, 12288, 12384),
    "cluster_slice_journal": (0, 8, 40, 72, 80, 88, 92, 96, 104, 144, 148, 152, 200, 256, 312),
    "cluster_digest_book": (0, 8, 12, 60, 108, 116, 120, 124, 156, 276),
}
CHANGES, REPAIR = 1, 2


def changed(flags: int, length: int, *changes: tuple[int, int]) -> bytes:
    """An input that changes bytes of a good file, or its length."""
    pairs = b"".join(struct.pack("<HB", at, value) for at, value in changes)
    return bytes([flags]) + struct.pack("<H", length) + pairs


def main() -> None:
    """Write the seeds."""
    for name, offsets in OFFSETS.items():
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        seeds = {
            "good": changed(CHANGES, 0),
            "longer": changed(CHANGES | REPAIR, 40),
            "raw": bytes(200),
        }
        for at in offsets:
            seeds[f"at_{at}"] = changed(CHANGES | REPAIR, 0, (at, 1))
            seeds[f"full_{at}"] = changed(CHANGES | REPAIR, 0, *((at + k, 255) for k in range(8)))
        for seed, data in seeds.items():
            (folder / seed).write_bytes(data)


if __name__ == "__main__":
    main()
