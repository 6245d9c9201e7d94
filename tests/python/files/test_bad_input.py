"""Hostile and broken files: a FormatError that names file and place, within 100 ms and 64 MB."""

from __future__ import annotations

import os
import resource
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from gguf_bytes import ARRAY, BOOL, STRING, U32, file, pair, tensor, text, u32

import moesaic

MAX = 2**64 - 1
# Seconds are promised of the build that people run; a sanitizer's checks cost several times that.
SLOWER = 10 if "libasan" in os.environ.get("LD_PRELOAD", "") else 1

CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "html": (b"<!DOCTYPE html>" + b" " * 500, "HTML"),
    "safetensors": (struct.pack("<Q", 64) + b'{"w":{}}', "safetensors"),
    "pickle": (b"\x80\x02}q\x00.", "pickle"),
    "zip": (b"PK\x03\x04" + b"\0" * 100, "PyTorch"),
    "version 1": (file(version=1), "version 1"),
    "big endian": (file(version=3 << 24), "big-endian"),
    "key count": (file(n_pairs=2**63), "key count: 9223372036854775808"),
    "tensor count": (file(n_tensors=2**63), "tensor count: 9223372036854775808"),
    "tensor count just too high": (file([], [], 0, n_tensors=1), "tensor count"),
    "string length": (
        file([pair("k", STRING, struct.pack("<Q", MAX))]),
        f'key "k": string: length {MAX}',
    ),
    "key length": (struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, MAX) + b"x" * 16, f"key: length {MAX}"),
    "long key": (file([u32("k" * 65536, 1)]), "65536 bytes"),
    "duplicate key": (file([u32("k", 1), u32("k", 2)]), 'key "k" stands twice'),
    "value type": (file([pair("k", 77, b"\0" * 8)]), "value type: 77"),
    "bool": (file([pair("k", BOOL, b"\2")]), "bool of value 2"),
    "nested array": (file([pair("k", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "array of arrays"),
    "array count": (
        file([pair("k", ARRAY, struct.pack("<IQ", U32, 2**63) + b"\0" * 64)]),
        "9223372036854775808",
    ),
    "strings count": (
        file([pair("k", ARRAY, struct.pack("<IQ", STRING, 2**40) + b"\0" * 64)]),
        str(2**40),
    ),
    "alignment 0": (file([u32("general.alignment", 0)]), "general.alignment"),
    "alignment 33": (file([u32("general.alignment", 33)]), "is 33"),
    "alignment 2^31": (file([u32("general.alignment", 2**31)]), "is 2147483648"),
    "alignment a string": (
        file([pair("general.alignment", STRING, text(b"32"))]),
        "is string, need u32",
    ),
    "zero dimension": (file([], [tensor("w", [8, 0])], 64), 'tensor "w": a dimension of 0'),
    "wrapping dimensions": (file([], [tensor("w", [2**32, 2**32])], 64), 'tensor "w"'),
    "n_dims": (file([], [tensor("w", [8], n_dims=2**32 - 1)], 64), "4294967295 dimensions"),
    "unknown type": (file([], [tensor("w", [8], 1000)], 64), "unknown element type 1000"),
    "removed type": (file([], [tensor("w", [8], 36)], 64), "removed"),
    "row length": (
        file([], [tensor("w", [100], 12)], 64),
        "rows of 100 elements of Q4_K, need a multiple of 256",
    ),
    "past the end": (file([], [tensor("w", [8], 0, 64)], 64), "32 bytes too early"),
    "offset 2^64": (file([], [tensor("w", [8], 0, MAX - 31)], 64), "offset"),
    "misaligned": (file([], [tensor("w", [8], 0, 4)], 64), "offset 4 is no multiple"),
    "overlapping": (
        file([], [tensor("a", [64]), tensor("b", [8], 0, 32)], 512),
        'inside tensor "a"',
    ),
    "duplicate tensor": (
        file([], [tensor("a", [8]), tensor("a", [8], 0, 32)], 64),
        'tensor "a" stands twice',
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_hostile_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    content, says = CASES[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    with pytest.raises(moesaic.FormatError) as info:
        moesaic.GGUF(path)
    took = time.process_time() - start
    assert says in str(info.value) and "hostile.gguf" in str(info.value)
    assert isinstance(info.value, ValueError)
    assert took < 0.1 * SLOWER
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # in KB


def test_large_hostile_files_are_quick(tmp_path: Path) -> None:
    """100 MB of zeros behind a claim: walking it must not take long nor memory."""
    path = tmp_path / "large.gguf"
    claims = {
        "empty strings": file([pair("k", ARRAY, struct.pack("<IQ", STRING, 12_000_000))]),
        "too many strings": file([pair("k", ARRAY, struct.pack("<IQ", STRING, 2**40))]),
        "many keys": file(n_pairs=7_000_000),
        "many tensors": file(n_tensors=3_900_000),
    }
    for name, head in claims.items():
        path.write_bytes(head)
        os.truncate(path, 100_000_000)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.process_time()
        if name == "empty strings":
            moesaic.GGUF(path)
        else:
            with pytest.raises(moesaic.FormatError):
                moesaic.GGUF(path)
        # The strings are honest, if useless: they are walked once, at the speed of memory.
        most = 0.5 if name == "empty strings" else 0.1
        assert time.process_time() - start < most * SLOWER, name
        if name != "empty strings":
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, name


def test_every_truncation_of_a_header(tmp_path: Path) -> None:
    path = tmp_path / "whole.gguf"
    metadata = {"general.architecture": "x", "list": ["a", "b"], "n": [1, 2, 3]}
    moesaic.write_gguf(path, metadata, {"w": np.zeros((2, 8), np.float32)})
    whole = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    for n in range(len(whole)):
        cut.write_bytes(whole[:n])
        with pytest.raises(moesaic.FormatError):
            moesaic.GGUF(cut)


def test_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"")
    with pytest.raises(moesaic.IoError, match=r"is a folder.*a\.gguf"):
        moesaic.GGUF(tmp_path)
    with pytest.raises(moesaic.IoError, match="No such file") as info:
        moesaic.GGUF(tmp_path / "absent.gguf")
    assert isinstance(info.value, OSError)
    with pytest.raises(moesaic.IoError):
        moesaic.GGUF("")
    with pytest.raises(moesaic.MoesaicError):
        moesaic.GGUF("a\0b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(moesaic.IoError, match="not a regular file"):
        moesaic.GGUF(tmp_path / "pipe")
    with pytest.raises(moesaic.ArgumentError, match="got int"):
        moesaic.GGUF(7)  # type: ignore[arg-type]
