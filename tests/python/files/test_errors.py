"""Every error of the core arrives as its Python class, which is also the fitting built-in."""

from __future__ import annotations

import pickle

import pytest

from moesaic import _core, errors

BUILT_INS = {
    "ArgumentError": ValueError,
    "ClosedError": ValueError,
    "FormatError": ValueError,
    "IoError": OSError,
    "NetError": ConnectionError,
    "DeadlineError": TimeoutError,
    "ProtocolError": ConnectionError,
    "WorkerLost": ConnectionError,
    "OutOfMemoryError": MemoryError,
    "BackendError": RuntimeError,
    "QueueFullError": RuntimeError,
    "InternalError": RuntimeError,
    "CancelledError": Exception,
    "MoesaicError": Exception,
}


def test_the_list_is_whole() -> None:
    assert set(BUILT_INS) == set(errors.__all__)


@pytest.mark.parametrize("name", BUILT_INS)
def test_translation(name: str) -> None:
    with pytest.raises(errors.MoesaicError) as info:
        _core._throw(name, "[where] what: got 1, need 2")
    error = info.value
    assert type(error) is getattr(errors, name)
    assert isinstance(error, BUILT_INS[name])
    assert str(error) == "[where] what: got 1, need 2"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)


def test_attributes() -> None:
    with pytest.raises(errors.OutOfMemoryError) as memory:
        _core._throw("OutOfMemoryError", "x")
    assert (memory.value.needed, memory.value.free) == (20, 10)
    with pytest.raises(errors.WorkerLost) as lost:
        _core._throw("WorkerLost", "x")
    assert (lost.value.node, lost.value.layers, lost.value.tokens) == (
        "10.0.0.2:9777",
        [3, 4],
        [7, 8, 9],
    )
    with pytest.raises(errors.ArgumentError):
        _core._throw("ClosedError", "x")
