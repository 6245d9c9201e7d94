"""moesaic.GGUF and write_gguf: what is written comes back; views live as long as they must."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_bytes import STRING, file, pair, tensor, text

import moesaic
from moesaic.gguf import Typed, qtypes

DATA = Path(__file__).parents[2] / "data"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "small.gguf"


def test_metadata_comes_back(path: Path) -> None:
    metadata = {
        "general.architecture": "llama",
        "int": 7,
        "negative": -7,
        "large": 2**40,
        "largest": 2**64 - 1,
        "float": 1e-5,
        "yes": True,
        "no": False,
        "strings": ["a", "", "ä", "\udcff"],
        "ints": [1, 2, 3],
        "mixed": [1, -1],
        "floats": [1, 2.5],
        "bools": [True, False],
        "none": Typed([], "string"),
        "u16": Typed(9, "u16"),
        "f64": Typed(1e-5, "f64"),
        "bytes": Typed([1, 2], "u8"),
        "array": np.arange(4, dtype=np.int16),
        "scalar": np.float64(0.1),
    }
    moesaic.write_gguf(path, metadata, {})
    with moesaic.GGUF(path) as f:
        m = f.metadata
        assert list(m) == list(metadata)
        assert m["int"] == 7 and m["negative"] == -7 and m["largest"] == 2**64 - 1
        assert m["yes"] is True and m["no"] is False
        assert m["float"] == float(np.float32(1e-5)) and m["f64"] == 1e-5 and m["scalar"] == 0.1
        assert m["strings"] == ["a", "", "ä", "\udcff"] and m["none"] == []
        for key, dtype, values in [
            ("ints", "uint32", [1, 2, 3]),
            ("mixed", "int32", [1, -1]),
            ("floats", "float32", [1, 2.5]),
            ("bools", "bool", [True, False]),
            ("bytes", "uint8", [1, 2]),
            ("array", "int16", [0, 1, 2, 3]),
        ]:
            got = m[key]
            assert isinstance(got, np.ndarray) and got.dtype == dtype and got.tolist() == values
            assert not got.flags.writeable
        assert {
            k: m.type_of(k) for k in ("int", "negative", "large", "largest", "u16", "none")
        } == {
            "int": "u32",
            "negative": "i32",
            "large": "i64",
            "largest": "u64",
            "u16": "u16",
            "none": "array[string]",
        }
        assert m.get("absent") is None
        assert "absent" not in m
        with pytest.raises(KeyError):
            m["absent"]


def test_tensors_come_back(path: Path) -> None:
    rng = np.random.default_rng(1)
    matrix = rng.standard_normal((3, 64)).astype(np.float32)
    experts = rng.standard_normal((4, 2, 256))
    tensors = {
        "plain": matrix,
        "half": (matrix, "F16"),
        "experts": (experts, "Q4_K"),
        "ints": (np.arange(-2, 3, dtype=np.int32), "I32"),
        "raw": (moesaic.quantize(matrix, "Q8_0"), "Q8_0", (3, 64)),
        "scalar": np.float32(3),
    }
    moesaic.write_gguf(path, {}, tensors, alignment=64)
    f = moesaic.GGUF(path)
    assert f.alignment == 64 and f.version == 3 and f.paths == (str(path),)
    assert list(f.tensors) == list(tensors)
    assert {n: (t.shape, t.qtype) for n, t in f.tensors.items()} == {
        "plain": ((3, 64), "F32"),
        "half": ((3, 64), "F16"),
        "experts": ((4, 2, 256), "Q4_K"),
        "ints": ((5,), "I32"),
        "raw": ((3, 64), "Q8_0"),
        "scalar": ((1,), "F32"),
    }
    assert np.array_equal(f.tensors["plain"].dequantize(), matrix)
    assert np.array_equal(
        f.tensors["half"].dequantize(), matrix.astype(np.float16).astype(np.float32)
    )
    assert f.tensors["ints"].dequantize().tolist() == [-2, -1, 0, 1, 2]
    assert f.tensors["experts"].raw.shape == (4, 2, 144)
    assert f.tensors["experts"].nbytes == 8 * 144
    assert np.array_equal(f.tensors["raw"].raw, moesaic.quantize(matrix, "Q8_0"))
    out = f.tensors["plain"].dequantize()
    assert out.flags.c_contiguous and out.flags.owndata and out.flags.writeable


@pytest.mark.parametrize("qtype", ["F32", "Q8_0", "Q4_K"])
def test_rows_index_as_in_numpy(path: Path, qtype: str) -> None:
    values = np.random.default_rng(2).standard_normal((5, 3, 256)).astype(np.float32)
    moesaic.write_gguf(path, {}, {"w": (values, qtype), "v": (values[0, 0], qtype)})
    f = moesaic.GGUF(path)
    whole, vector = f.tensors["w"].dequantize(), f.tensors["v"].dequantize()
    some_rows: list[Any] = [0, -1, np.int64(2), slice(1, 3), slice(None, None, -1), slice(3, 1)]
    some_rows += [slice(0, 5, 2), [0, -1, 0], [], np.array([4, 1], np.uint8)]
    for rows in some_rows:
        index = np.asarray(rows, np.int64) if isinstance(rows, list) else rows
        got = f.tensors["w"].dequantize(rows)
        assert got.dtype == np.float32 and np.array_equal(got, whole[index]), rows
        assert got.flags.c_contiguous
        assert np.array_equal(f.tensors["v"].dequantize(rows), vector[index]), rows
    for bad in [5, -6, [0, 5], 1.5, "a", [0.5], True, [[1]], slice(0.5, 1)]:
        with pytest.raises(moesaic.ArgumentError, match="rows"):
            f.tensors["w"].dequantize(bad)  # type: ignore[arg-type]


def test_raw_is_a_view_that_keeps_the_file(path: Path) -> None:
    moesaic.write_gguf(path, {}, {"w": np.arange(32, dtype=np.float32)})
    f = moesaic.GGUF(path)
    tensor_, raw = f.tensors["w"], f.tensors["w"].raw
    assert raw.base is not None and not raw.flags.writeable and raw.dtype == np.uint8
    with pytest.raises(ValueError):
        raw[0] = 1
    assert np.shares_memory(raw, tensor_.raw)
    f.close()
    del f, tensor_
    path.unlink()
    gc.collect()
    assert raw.view(np.float32).tolist() == list(range(32))


def test_closed(path: Path) -> None:
    moesaic.write_gguf(path, {"k": [1]}, {"w": np.zeros(4, np.float32)})
    with moesaic.GGUF(path) as f:
        metadata, tensors, w = f.metadata, f.tensors, f.tensors["w"]
        assert len(metadata["k"]) == 1  # type: ignore[arg-type]
    f.close()
    f.close()
    assert "closed" in repr(f) and "closed" in f._repr_html_()
    for use in [
        lambda: f.metadata,
        lambda: f.tensors,
        lambda: f.paths,
        lambda: f.version,
        lambda: f.alignment,
        lambda: f.__enter__(),
        lambda: metadata["k"],
        lambda: list(metadata),
        lambda: len(tensors),
        lambda: w.raw,
        lambda: w.dequantize(),
    ]:
        with pytest.raises(moesaic.ClosedError, match="closed"):
            use()


def test_descriptors_and_memory_do_not_leak(path: Path) -> None:
    moesaic.write_gguf(path, {"s": ["x" * 100] * 1000}, {"w": np.zeros((256, 1024), np.float32)})

    def rss() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    def use() -> None:
        with moesaic.GGUF(path) as f:
            assert len(f.metadata["s"]) == 1000  # type: ignore[arg-type]
            f.tensors["w"].dequantize()
            f.tensors["w"].raw.sum()

    for _ in range(20):
        use()
    gc.collect()
    n_open, before = len(os.listdir("/proc/self/fd")), rss()
    for _ in range(100):
        use()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == n_open
    assert rss() - before < 8 << 20


def test_threads_can_share_a_file(path: Path) -> None:
    values = np.random.default_rng(3).standard_normal((64, 256)).astype(np.float32)
    moesaic.write_gguf(path, {}, {"w": (values, "Q6_K")})
    f = moesaic.GGUF(path)
    want = f.tensors["w"].dequantize(threads=1)
    wrong: list[int] = []

    def work(seed: int) -> None:
        for i in range(50):
            if not np.array_equal(
                f.tensors["w"].dequantize((seed + i) % 64), want[(seed + i) % 64]
            ):
                wrong.append(seed)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_split_sets(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-{i + 1:05d}-of-00003.gguf" for i in range(3)]
    for i, part in enumerate(parts):
        moesaic.write_gguf(
            part,
            {
                "split.no": Typed(i, "u16"),
                "split.count": Typed(3, "u16"),
                "split.tensors.count": Typed(3, "i32"),
            }
            | ({"general.architecture": "x"} if i == 0 else {}),
            {f"t{i}": np.full(8, i, np.float32)},
        )
    for part in parts:
        f = moesaic.GGUF(part)
        assert f.paths == tuple(str(p) for p in parts)
        assert f.metadata["general.architecture"] == "x"
        assert [t.dequantize()[0] for t in f.tensors.values()] == [0, 1, 2]
    parts[1].unlink()
    with pytest.raises(moesaic.FormatError, match=r"missing: .*m-00002-of-00003\.gguf"):
        moesaic.GGUF(parts[2])


def test_odd_paths(tmp_path: Path) -> None:
    name = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff \xc3\xa4.gguf")
    moesaic.write_gguf(name, {"k": 1}, {})
    assert moesaic.GGUF(name).paths == (name,)


def test_large_vocabulary_is_quick(path: Path) -> None:
    moesaic.write_gguf(path, {"tokenizer.ggml.tokens": [f"tok{i}" for i in range(163_840)]}, {})
    f = moesaic.GGUF(path)
    tokens = f.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list) and len(tokens) == 163_840 and tokens[-1] == "tok163839"
    assert f.metadata["tokenizer.ggml.tokens"] is tokens


def test_names_that_are_no_utf8(path: Path) -> None:
    bad = b"w\xff"
    raw = tensor("??", [8]).replace(b"??", bad)
    path.write_bytes(file([pair("k", STRING, text(b"\xfe"))], [raw], 32))
    f = moesaic.GGUF(path)
    assert list(f.tensors) == ["w\udcff"] and f.tensors["w\udcff"].dequantize().shape == (8,)
    assert f.metadata["k"] == "\udcfe"


def test_400_gb_open_in_milliseconds(path: Path) -> None:
    n = 400 << 30
    path.write_bytes(file([], [tensor("w", [1 << 20, n >> 22])]))
    try:
        os.truncate(path, n + 4096)
    except OSError:
        pytest.skip("the file system has no sparse files of this size")
    f = moesaic.GGUF(path)
    assert f.tensors["w"].nbytes == n
    assert f.tensors["w"].dequantize(102_399)[-1] == 0
    with pytest.raises(moesaic.OutOfMemoryError, match="fewer rows") as info:
        f.tensors["w"].dequantize()
    assert info.value.needed == n and 0 < info.value.free < n
    f.close()
    path.unlink()


def test_written_files_replace_whole(path: Path) -> None:
    moesaic.write_gguf(path, {"a": 1}, {})
    moesaic.write_gguf(path, {"a": 2}, {})
    assert moesaic.GGUF(path).metadata["a"] == 2
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    ("metadata", "tensors", "says"),
    [
        ({"k": None}, {}, "NoneType"),
        ({"k": {}}, {}, "dict"),
        ({"k": []}, {}, "empty sequence"),
        ({"k": [1, "a"]}, {}, "different kinds"),
        ({"k": 2**64}, {}, "64 bits"),
        ({"k": Typed(256, "u8")}, {}, "does not fit u8"),
        ({"k": Typed(-1, "u8")}, {}, "does not fit u8"),
        ({"k": Typed([1, 256], "u8")}, {}, "fit u8"),
        ({"k": Typed([1.5], "u8")}, {}, "fit u8"),
        ({"k": Typed(1.5, "u8")}, {}, "need an integer"),
        ({"k": Typed("a", "q")}, {}, "type|integer"),
        ({"k": Typed(["a"], "q")}, {}, "type"),
        ({"k": np.zeros((2, 2))}, {}, "shape"),
        ({"": 1}, {}, "key"),
        ({"general.alignment": 64}, {}, "alignment"),
        ({}, {"w": np.zeros(4, np.int32)}, "need an array of floats"),
        ({}, {"w": (np.zeros(33, np.float32), "Q8_0")}, "multiple of 32"),
        ({}, {"w": (np.zeros(32, np.float32), "Q9_9")}, "need one of"),
        ({}, {"w": (np.zeros(34, np.uint8), "Q8_0", (64,))}, "need 68"),
        ({}, {"w": np.zeros((2, 0), np.float32)}, "dimension of 0"),
        ({}, {"w": np.zeros((1, 1, 1, 1, 2), np.float32)}, "5 dimensions"),
        ({}, {"": np.zeros(4, np.float32)}, "name"),
    ],
)
def test_write_refuses(path: Path, metadata: dict, tensors: dict, says: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(moesaic.MoesaicError, match=says):
        moesaic.write_gguf(path, metadata, tensors)
    assert not path.exists()


def test_write_where_there_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(moesaic.IoError, match="No such file"):
        moesaic.write_gguf(tmp_path / "no" / "file.gguf", {}, {})


def test_reprs(path: Path) -> None:
    moesaic.write_gguf(path, {"general.architecture": "<b>"}, {"w": np.zeros((2, 4), np.float32)})
    f = moesaic.GGUF(path)
    assert "1 tensors" in repr(f) and "F32 1" in repr(f)
    assert "<b>" not in f._repr_html_() and "F32" in f._repr_html_()
    assert repr(f.tensors["w"]) == "Tensor('w', shape=(2, 4), qtype='F32', nbytes=32)"
    assert "1 keys" in repr(f.metadata) and "1 tensors" in repr(f.tensors)
    assert len(qtypes()) == 33


def test_text_that_is_not_utf8_is_read_and_written(tmp_path):
    bad = b"caf\xe9".decode("utf-8", "surrogateescape")
    meta = {
        f"{bad}.text": bad,
        f"{bad}.texts": [bad, "x"],
        f"{bad}.int": 3,
        f"{bad}.float": 0.5,
        f"{bad}.flag": True,
        f"{bad}.array": np.arange(3, dtype=np.int32),
    }
    path = tmp_path / "bad.gguf"
    moesaic.write_gguf(path, {"general.architecture": "x", **meta}, {bad: np.ones(4, np.float32)})
    with moesaic.GGUF(path) as file:
        for key, value in meta.items():
            assert np.array_equal(file.metadata[key], value)
        assert list(file.tensors) == [bad]
        repr(file), file._repr_html_(), repr(file.tensors[bad])
        for missing in (bad, "no such key"):
            with pytest.raises(KeyError):
                file.metadata[missing]
    for wrong in ({"key": "\ud800"}, {"\ud800": 1}, {"key": ["\ud800"]}):
        with pytest.raises(moesaic.ArgumentError, match="lone surrogate"):
            moesaic.write_gguf(tmp_path / "no.gguf", wrong, {})
