"""Calls that answer to their caller: streams read in turn, calls out of callbacks, full pools."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import moesaic

TINY = Path(__file__).parents[2] / "data" / "families"
WAIT_S = 120


def within(seconds, work):
    """What ``work()`` gives; fails when it takes longer than that."""
    done = []

    def run():
        try:
            done.append((work(), None))
        except BaseException as error:
            done.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, f"it waits still after {seconds} s"
    value, error = done[0]
    if error is not None:
        raise error
    return value


@pytest.fixture(params=["alone", "cluster"], scope="module")
def small(request):
    """The demo with a pool of one context of 192 tokens: three pages."""
    path = moesaic.Model.demo(progress=False, threads=1).path
    options = {"n_ctx": 192, "kv_tokens": 192, "deterministic": True, "progress": False}
    if request.param == "alone":
        with moesaic.Model(path, threads=1, **options) as m:
            yield m
        return
    with moesaic.Cluster.local(2) as c, c.load(path, **options) as m:
        yield m


def keep(tokens, logits):
    """A processor that changes nothing."""


def test_streams_read_in_turn(small):
    def work():
        streams = [
            small.stream(
                [40 + i] * 30, max_tokens=50, seed=i, ignore_eos=True, logits_processor=keep
            )
            for i in range(4)
        ]
        return [list(chunks) for chunks in zip(*(list_tokens(s) for s in streams), strict=False)]

    def list_tokens(stream):
        for chunk in stream:
            yield from chunk.tokens

    rows = within(WAIT_S, work)
    for i in range(4):
        alone = small.generate([40 + i] * 30, max_tokens=50, seed=i, ignore_eos=True)
        assert [row[i] for row in rows] == alone.tokens.tolist()


def test_calls_out_of_a_callback(small):
    plain = small.generate([5] * 100, max_tokens=8, seed=1, ignore_eos=True)
    inner = []

    def processor(tokens, logits):
        n = len(inner) % 4
        if n == 0:
            inner.append(small.generate([6] * 120, max_tokens=4, seed=2).tokens.tolist())
        elif n == 1:
            inner.append(small.score(["In the"], [" beginning"])[0])
        elif n == 2:
            with small.session() as s:
                inner.append(s.forward([7] * 130)[:3].tolist())
                inner[-1] += s.forward(" and")[:3].tolist()
        else:
            inner.append(small.capture([8] * 150, "final_norm")["final_norm"].shape)

    out = within(
        WAIT_S,
        lambda: small.generate(
            [5] * 100, max_tokens=8, seed=1, ignore_eos=True, logits_processor=processor
        ),
    )
    assert out.tokens.tolist() == plain.tokens.tolist()
    assert len(inner) == 8
    assert inner[0] == inner[4]


def test_what_can_never_fit_says_so(small):
    with small.session() as s:
        s.feed([3] * 100)
        errors = []

        def processor(tokens, logits):
            try:
                small.forward([4] * 130)
            except moesaic.OutOfMemoryError as error:
                errors.append(str(error))

        out = within(
            WAIT_S,
            lambda: small.generate([5], max_tokens=3, ignore_eos=True, logits_processor=processor),
        )
        assert len(out.tokens) == 3
        assert len(errors) == 3 and "1 session holds 100 tokens" in errors[0]


def test_a_stream_left_open_is_in_no_ones_way(small):
    left = [small.stream([9 + i] * 150, max_tokens=20, logits_processor=keep) for i in range(5)]
    for stream in left:
        within(WAIT_S, lambda stream=stream: next(stream))
    out = within(WAIT_S, lambda: small.generate([5] * 150, max_tokens=20, ignore_eos=True))
    assert len(out.tokens) == 20
    for stream in left:
        stream.close()


def test_two_models_whose_callbacks_ask_each_other():
    path = moesaic.Model.demo(progress=False, threads=1).path
    options = {"n_ctx": 64, "kv_tokens": 64, "threads": 1, "progress": False}
    with moesaic.Model(path, **options) as a, moesaic.Model(path, **options) as b:

        def ask_a(tokens, logits):
            a.forward([4] * 60)

        def ask_b(tokens, logits):
            b.generate([3] * 40, max_tokens=2, ignore_eos=True, logits_processor=ask_a)

        def work():
            return a.generate([5] * 40, max_tokens=4, ignore_eos=True, logits_processor=ask_b)

        assert len(within(WAIT_S, work).tokens) == 4


def test_an_exception_in_a_callback_gives_everything_back(small):
    small.clear_cache()
    free = small.stats()["kv_tokens_free"]

    def processor(tokens, logits):
        small.forward([4] * 190)
        raise RuntimeError("mine")

    for _ in range(3):
        with pytest.raises(RuntimeError, match="mine"):
            within(WAIT_S, lambda: small.generate([5] * 100, logits_processor=processor))
    small.clear_cache()
    assert small.stats()["kv_tokens_free"] == free
    assert small.stats()["active"] == small.stats()["waiting"] == 0
