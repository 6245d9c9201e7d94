"""Too many requests at once, and whom the messages of loading name."""

from __future__ import annotations

import warnings

import pytest

import moesaic
from moesaic import _core


@pytest.fixture(scope="module")
def model():
    with moesaic.Model.demo(progress=False) as m:
        yield m


def specs(model, n):
    ids = model.tokenize("a")
    return [_core.RequestSpec(where="Model.score", tokens=ids, logits="none") for _ in range(n)]


def test_a_full_queue_is_an_error_of_its_own(model):
    with pytest.raises(moesaic.QueueFullError) as caught:
        _core.Batch(model._engine, specs(model, 1025))
    assert isinstance(caught.value, moesaic.BackendError | RuntimeError)
    for part in ("[Model.score] queue", "1025", "1024", "wait"):
        assert part in str(caught.value)


def test_a_refused_batch_leaves_the_queue_as_it_was(model):
    with pytest.raises(moesaic.QueueFullError):
        _core.Batch(model._engine, specs(model, 1025))
    stats = model.stats()
    assert stats["waiting"] == stats["active"] == 0
    assert len(model.generate("a", max_tokens=2, ignore_eos=True).tokens) == 2


def test_a_list_longer_than_the_queue_is_taken_in_pieces(model):
    assert len(model.score_rolling(["ab"] * 1100)) == 1100


def test_loading_is_named_as_the_caller_wrote_it():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(moesaic.OutOfMemoryError) as memory:
            moesaic.Model.demo(n_ctx=2**30, progress=False)
        with pytest.raises(moesaic.ArgumentError) as pool:
            moesaic.Model.demo(n_ctx=64, kv_tokens=63, progress=False)
    assert str(memory.value).startswith("[Model] ")
    assert str(pool.value).startswith("[Model] kv_tokens: got 63")
