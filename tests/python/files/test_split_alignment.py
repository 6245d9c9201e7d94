"""Split sets whose later parts do not say their alignment: the part's size decides.

The gguf package's writer pads later parts to the first part's alignment without the key;
llama.cpp's gguf-split pads them to 32. Guessing wrongly shifts every weight.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

import moesaic

U16, U32, I32 = 2, 4, 5


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def key(name: str, kind: int, form: str, value: int) -> bytes:
    return text(name) + struct.pack("<I" + form, kind, value)


def pad(data: bytes, alignment: int) -> bytes:
    return data + bytes(-len(data) % alignment)


def write_part(
    path: Path,
    number: int,
    arrays: list[np.ndarray],
    first: int,
    said: int | None,
    alignment: int,
    total: int,
    *,
    pad_last: bool = True,
    tail: bytes = b"",
) -> None:
    """A part with the arrays as tensors t<first>, ... padded to `alignment`."""
    keys = [
        key("split.no", U16, "H", number),
        key("split.count", U16, "H", 2),
        key("split.tensors.count", I32, "i", total),
    ]
    if said is not None:
        keys.append(key("general.alignment", U32, "I", said))
    directory, data = b"", b""
    for i, array in enumerate(arrays):
        data = pad(data, alignment)
        directory += text(f"t{first + i}") + struct.pack("<IQIQ", 1, array.size, 0, len(data))
        data += array.tobytes()
    head = b"GGUF" + struct.pack("<IQQ", 3, len(arrays), len(keys)) + b"".join(keys) + directory
    path.write_bytes(pad(head, alignment) + (pad(data, alignment) if pad_last else data) + tail)


def write_set(folder: Path, sizes: list[int], set_alignment: int, later: int, **options) -> Path:
    rng = np.random.default_rng(sum(sizes) + set_alignment)
    arrays = [rng.standard_normal(n).astype(np.float32) for n in [7, *sizes]]
    one, two = (folder / f"m-0000{i}-of-00002.gguf" for i in (1, 2))
    write_part(one, 0, arrays[:1], 0, set_alignment, set_alignment, len(arrays))
    write_part(two, 1, arrays[1:], 1, None, later, len(arrays), **options)
    np.savez(folder / "want.npz", *arrays)
    return one


def check(folder: Path, one: Path) -> None:
    want = np.load(folder / "want.npz")
    file = moesaic.GGUF(one)
    for i, name in enumerate(want.files):
        np.testing.assert_array_equal(file.tensors[f"t{i}"].dequantize(), want[name])


@pytest.mark.parametrize("pad_last", [True, False])
@pytest.mark.parametrize("sizes", [[64], [1], [5, 64, 3], [8] * 9])
@pytest.mark.parametrize("set_alignment", [8, 16, 64, 256, 4096])
@pytest.mark.parametrize("as_first", [True, False])
def test_the_size_of_a_part_decides(tmp_path, set_alignment, sizes, pad_last, as_first):
    later = set_alignment if as_first else 32
    one = write_set(tmp_path, sizes, set_alignment, later, pad_last=pad_last)
    try:
        check(tmp_path, one)
    except moesaic.FormatError as error:  # what fits both is refused, never guessed
        assert "general.alignment" in str(error) and "both" in str(error)


def test_the_sets_that_exist_are_read(tmp_path):
    """Padded to the end, as both writers do: most sizes leave no doubt."""
    read = 0
    for n in range(1, 60):
        one = write_set(tmp_path, [n], 256, 256)
        try:
            check(tmp_path, one)
            read += 1
        except moesaic.FormatError as error:
            assert "both" in str(error)
    assert read >= 55


def test_a_size_that_fits_nothing_is_refused(tmp_path):
    one = write_set(tmp_path, [64], 256, 256, tail=b"x" * 13)
    with pytest.raises(moesaic.FormatError, match=r"general\.alignment.*neither 256"):
        moesaic.GGUF(one)


def test_a_part_that_says_its_alignment_is_believed(tmp_path):
    arrays = [np.arange(n, dtype=np.float32) for n in (7, 64)]
    one, two = (tmp_path / f"m-0000{i}-of-00002.gguf" for i in (1, 2))
    write_part(one, 0, arrays[:1], 0, 256, 256, 2)
    write_part(two, 1, arrays[1:], 1, 64, 64, 2)
    np.savez(tmp_path / "want.npz", *arrays)
    check(tmp_path, one)
