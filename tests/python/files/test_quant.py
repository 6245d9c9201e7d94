"""Element types through Python: goldens of the `gguf` package, encoders, threads, refusals."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

import moesaic
from moesaic import _core
from moesaic.gguf import qtypes

DATA = Path(__file__).parents[2] / "data" / "quant"
TYPES = [name for name in qtypes() if name not in ("I8", "I16", "I32", "I64", "F64")]
WRITTEN = [name for name, _, _, written in _core.qtypes() if written]


def test_26_types_have_goldens() -> None:
    assert len(TYPES) == 26
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
    with np.errstate(over="ignore"):
        want = x.astype(np.float16)
    assert np.array_equal(moesaic.quantize(x, "F16").view(np.float16), want)
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
