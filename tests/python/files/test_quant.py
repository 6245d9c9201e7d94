"""Element types through Python: goldens of the `gguf` package, encoders, threads, refusals."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import moesaic
from moesaic import _core
from moesaic.gguf import Typed, qtypes

DATA = Path(__file__).parents[2] / "data" / "quant"
TYPES = [name for name in qtypes() if name not in ("I8", "I16", "I32", "I64", "F64")]
WRITTEN = [name for name, _, _, written in _core.qtypes() if written]


def test_28_types_have_goldens() -> None:
    assert len(TYPES) == 28
    assert {p.stem for p in DATA.glob("*.npz")} - {"source"} == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_decodes_as_gguf_does(name: str) -> None:
    with np.load(DATA / f"{name}.npz") as golden:
        raw, values = golden["raw"], golden["values"]
    got = moesaic.dequantize(raw, name, values.shape)
    nan = np.isnan(values)
    assert np.array_equal(np.isnan(got), nan)
    assert np.array_equal(got.view(np.uint32)[~nan], values.view(np.uint32)[~nan])


@pytest.mark.parametrize("name", [n for n in WRITTEN if n not in ("F32", "F16", "BF16")])
def test_encodes_as_well_as_ggml(name: str) -> None:
    """The goldens hold what ggml's quantizer leaves as error on the same values: be no worse."""
    with np.load(DATA / f"{name}.npz") as golden:
        reference = float(golden["encoded_rms_error"])
    with np.load(DATA / "source.npz") as source:
        x = source["values"]
    y = moesaic.dequantize(moesaic.quantize(x, name), name, x.shape)
    ours = float(np.sqrt(np.mean((x - y) ** 2)))
    assert ours <= 1.05 * reference


@pytest.mark.parametrize("name", WRITTEN)
def test_threads_give_the_same_bytes(name: str) -> None:
    x = np.random.default_rng(5).standard_normal((48, 2048)).astype(np.float32)
    one = moesaic.quantize(x, name, threads=1)
    assert np.array_equal(one, moesaic.quantize(x, name, threads=3))
    assert np.array_equal(
        moesaic.dequantize(one, name, x.shape, threads=1),
        moesaic.dequantize(one, name, x.shape, threads=2),
    )


def test_f16_and_bf16_round_to_nearest_even() -> None:
    rng = np.random.default_rng(6)
    bits = rng.integers(0, 2**32, 100_000, dtype=np.uint32)
    x = bits.view(np.float32)
    x = x[np.isfinite(x)]
    small = x[np.abs(x) < 65520]  # what is larger would become infinite: refused
    assert np.array_equal(moesaic.quantize(small, "F16").view(np.float16), small.astype(np.float16))
    x = x[np.abs(x) < 3.39e38]
    word = x.view(np.uint32).astype(np.uint64)
    rounded = ((word + 0x7FFF + ((word >> 16) & 1)) >> 16).astype(np.uint16)
    assert np.array_equal(moesaic.quantize(x, "BF16").view(np.uint16), rounded)


def test_the_gil_is_free_meanwhile() -> None:
    x = np.random.default_rng(8).standard_normal((1024, 1024)).astype(np.float32)
    worker = threading.Thread(target=moesaic.quantize, args=(x, "Q2_K"), kwargs={"threads": 1})
    worker.start()
    n_ticks = (
        0  # with the lock held for the whole call (about half a second) there would be one or two
    )
    while worker.is_alive():
        time.sleep(0.001)
        n_ticks += 1
    assert n_ticks > 10


def test_shapes_and_kinds() -> None:
    x = np.random.default_rng(7).standard_normal((2, 3, 64))
    raw = moesaic.quantize(x, "Q4_0")
    assert raw.shape == (2, 3, 36) and raw.dtype == np.uint8 and raw.flags.owndata
    assert moesaic.dequantize(raw.reshape(-1), "q4_0", [2, 3, 64]).shape == (2, 3, 64)
    assert np.array_equal(moesaic.quantize(np.asfortranarray(x), "Q4_0"), raw)
    assert np.array_equal(moesaic.quantize(x.astype(np.float32), "Q4_0"), raw)
    assert moesaic.quantize(np.zeros((0, 32), np.float32), "Q8_0").shape == (0, 34)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (
            lambda: moesaic.quantize(np.zeros(32, np.int32), "Q8_0"),
            r"got int32 \(32,\), need an array of floats",
        ),
        (lambda: moesaic.quantize([[True] * 32], "Q8_0"), "bool"),
        (lambda: moesaic.quantize(np.zeros(31, np.float32), "Q8_0"), "multiple of 32"),
        (lambda: moesaic.quantize(np.zeros(256, np.float32), "IQ2_XS"), "read but not written"),
        (lambda: moesaic.quantize(np.zeros(32, np.float32), "Q8"), 'got "Q8", need one of F32'),
        (lambda: moesaic.quantize(np.full(32, np.nan, np.float32), "Q8_0"), "element 0 is nan"),
        (lambda: moesaic.quantize(np.full(32, np.inf, np.float32), "Q4_K"), "multiple|inf"),
        (
            lambda: moesaic.dequantize(np.zeros(33, np.uint8), "Q8_0", (32,)),
            "got 33 bytes, need 34",
        ),
        (lambda: moesaic.dequantize(np.zeros(34, np.int8), "Q8_0", (32,)), "got int8"),
        (lambda: moesaic.dequantize(np.zeros(68, np.uint8)[::2], "Q8_0", (32,)), "C-contiguous"),
        (lambda: moesaic.dequantize(b"x" * 34, "Q8_0", (32,)), "got bytes"),  # type: ignore[arg-type]
        (lambda: moesaic.dequantize(np.zeros(34, np.uint8), "Q8_0", (-32,)), "negative"),
        (
            lambda: moesaic.dequantize(np.zeros(34, np.uint8), "Q8_0", (2**62, 2**62, 32)),
            "too large",
        ),
        (lambda: moesaic.dequantize(np.zeros(34, np.uint8), "Q8_0", (1.5,)), "shape"),  # type: ignore[arg-type]
        (lambda: moesaic.dequantize(np.zeros(34, np.uint8), "Q8_0", (2, 16)), "multiple of 32"),
        (lambda: moesaic.quantize(np.zeros(32, np.float32), None), "got NoneType, need the name"),  # type: ignore[arg-type]
        (lambda: moesaic.dequantize(np.zeros(34, np.uint8), 8, (32,)), "got int, need the name"),  # type: ignore[arg-type]
        (
            lambda: moesaic.quantize(np.zeros(32, np.float32), "Q8_0", threads=None),  # type: ignore[arg-type]
            "got NoneType None, need an integer from 0",
        ),
        (
            lambda: moesaic.dequantize(np.zeros(34, np.uint8), "Q8_0", (32,), threads=-1),
            "threads.*got -1, need an integer from 0",
        ),
        (
            lambda: moesaic.Model.demo().tensors["output_norm.weight"].dequantize(threads="a"),  # type: ignore[arg-type]
            "got str 'a', need an integer from 0",
        ),
    ],
)
def test_refusals(call, says: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(moesaic.ArgumentError, match=says):
        call()


BLOCKS = [name for name in WRITTEN if name not in ("F32", "F16", "BF16")]


@pytest.mark.parametrize("name", [*BLOCKS, "F16"])
@pytest.mark.parametrize("value", [1e30, -1e30, 3e8, 3.3e38])
def test_finite_numbers_beyond_a_type_are_refused_or_kept(name: str, value: float) -> None:
    """Whatever is written reads as what was given, to the precision of the type."""
    x = np.ones((3, 512), np.float32)
    x[1, 300] = value
    try:
        raw = moesaic.quantize(x, name)
    except moesaic.ArgumentError as error:
        where = r"element \(1, 300\) is "
        assert name != "MXFP4"
        assert re.search(where, str(error)) and name in str(error)
        return
    y = moesaic.dequantize(raw, name, x.shape)
    assert y[1, 300] == pytest.approx(value, rel=0.3)


# The largest magnitude whose scale is an f16: code x 65504, and x the scale's own bits.
LARGEST = {
    "Q8_0": 127, "Q4_0": 7, "Q5_0": 15, "Q4_1": 1, "Q5_1": 1, "Q2_K": 15, "Q3_K": 31 * 3,
    "Q4_K": 63, "Q5_K": 63, "Q6_K": 127 * 31, "IQ4_NL": 113, "IQ4_XS": 31 * 113,
}  # fmt: skip


@pytest.mark.parametrize("name", LARGEST)
@pytest.mark.parametrize("shape", ["spread", "one", "all"])
def test_numbers_within_the_scales_are_written(name: str, shape: str) -> None:
    peak = np.float32(0.9 * 65504 * LARGEST[name])
    x = np.random.default_rng(3).uniform(-1, 1, (4, 256)).astype(np.float32) * peak
    if shape == "one":
        x = np.zeros((1, 256), np.float32)
        x[0, 5] = -peak
    elif shape == "all":
        x = np.full((1, 256), -peak, np.float32)
    y = moesaic.dequantize(moesaic.quantize(x, name), name, x.shape)
    assert np.isfinite(y).all()
    assert float(np.abs(y - x).max()) <= 0.4 * peak


@pytest.mark.parametrize("threads", [1, 3])
def test_the_first_bad_element_is_named_whatever_the_threads(threads: int) -> None:
    x = np.ones((64, 65536), np.float32)
    x[50, 3] = np.nan
    x[20, 7] = 1e9
    with pytest.raises(moesaic.ArgumentError, match=r"element \(20, 7\) is 1e\+09"):
        moesaic.quantize(x, "Q8_0", threads=threads)


def test_numbers_of_their_own_types() -> None:
    for name, most, beyond in (("F16", 65504.0, 65520.0), ("BF16", 3.38e38, 3.4e38)):
        assert np.isfinite(moesaic.dequantize(moesaic.quantize(np.array([most]), name), name, (1,)))
        with pytest.raises(moesaic.ArgumentError, match=rf"element 0 is .*{name}"):
            moesaic.quantize(np.array([beyond]), name)
    with pytest.raises(moesaic.ArgumentError, match=r"element \(0, 1\) is 1e\+300"):
        moesaic.quantize(np.array([[np.inf, 1e300]]), "F32")
    for name in ("F32", "F16", "BF16"):  # these have an infinity and a NaN
        raw = moesaic.quantize(np.array([np.inf, -np.inf, np.nan]), name)
        got = moesaic.dequantize(raw, name, (3,))
        assert got[0] == np.inf and got[1] == -np.inf and np.isnan(got[2])


def test_write_gguf_names_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "q.gguf"
    meta = {"general.architecture": "none"}
    x = np.ones((2, 256), np.float32)
    x[1, 7] = 1e30
    for given, match in (
        ((x, "Q4_K"), r'tensor "w": .*element \(1, 7\) is 1e\+30'),
        ((np.array([1, 300]), "I8"), r'tensor "w": element \(1,\) is 300'),
        (
            (np.array([2**63], np.uint64), "I64"),
            r'tensor "w": element \(0,\) is 9223372036854775808',
        ),
    ):
        with pytest.raises(moesaic.ArgumentError, match=match):
            moesaic.write_gguf(path, meta, {"w": given})
    for value in (1e300, [1.0, -1e300], np.array([1e300])):
        typed = Typed(value, "f32") if isinstance(value, np.ndarray) else value
        with pytest.raises(moesaic.ArgumentError, match=r'key "k": .*f64'):
            moesaic.write_gguf(path, meta | {"k": typed}, {})
    assert not path.exists()
    moesaic.write_gguf(path, meta | {"k": Typed(1e300, "f64")}, {"w": (np.array([1, -128]), "i8")})
    assert moesaic.GGUF(path).metadata["k"] == 1e300
