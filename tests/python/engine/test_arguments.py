"""Each wrong option or argument is refused with got, need and what to do; the object works on."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import moesaic

NAN = float("nan")


class Odd:
    def __index__(self):
        raise RuntimeError("no")


@pytest.mark.sanitizer
@pytest.mark.parametrize(
    "tokens",
    [
        [1.0, 2.0],
        np.array([1.0]),
        np.array([True, False]),
        [True, False],
        [1, True],
        np.zeros((2, 2), int),
        np.array(3),
        3,
        None,
        [],
        np.array([], int),
        [-1],
        [2048],
        [10**30],
        np.array([2**63], np.uint64),
        np.array([-5], np.int8),
        [[1, 2]],
        ["1"],
        b"abc",
        {1: 2},
        object(),
        np.array(["a"]),
        np.array([1 + 2j]),
        np.array([None]),
        [None],
    ],
    ids=repr,
)
def test_bad_tokens(demo, tokens):
    calls = [demo.forward, lambda t: demo.capture(t, "embed")]
    # generate takes a list of prompts, and none are fine too.
    if not (isinstance(tokens, list) and (not tokens or isinstance(tokens[0], list | str))):
        calls.append(demo.generate)
    for call in calls:
        with pytest.raises(moesaic.MoesaicError) as caught:
            call(tokens)
        assert isinstance(caught.value, moesaic.ArgumentError)
        assert "got" in str(caught.value) and "need" in str(caught.value)
    with demo.session() as s:
        with pytest.raises(moesaic.ArgumentError):
            s.forward(tokens)
        assert len(s) == 0
    assert demo.forward([1]).shape == (1, demo.config.vocab)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("max_tokens", [-1, 1.5, "5", True, NAN, 2**70]),
        ("temperature", [NAN, -0.1, float("inf"), "hot", True, None]),
        ("top_k", [-1, 1.5, "4", 2**40]),
        ("top_p", [NAN, -0.1, 1.1, "x"]),
        ("min_p", [NAN, -0.1, 1.1]),
        ("typical_p", [NAN, -1, 2]),
        ("repeat_penalty", [NAN, 0, -1, 1e9]),
        ("presence_penalty", [NAN, 1e9]),
        ("frequency_penalty", [NAN, float("inf")]),
        ("penalty_last_n", [-2, 1.5]),
        ("logit_bias", [3, [1], {-1: 0.0}, {2048: 0.0}, {1: NAN}, {1: float("inf")}, {"a": 1.0}]),
        ("seed", [-1, 1.5, 2**64, "s", True]),
        ("stop", [3, [3], [""], "", b"x", [b"x"]]),
        ("stop_tokens", [[-1], [2048], [1.5], "x", 3]),
        ("ignore_eos", [1, "yes"]),
        ("logprobs", [-1, 2049, 1.5, True]),
        ("logits_processor", [3, "f"]),
        ("capture", ["nothing", [3], ["blocks.99.*"]]),
        ("echo", [1, "yes"]),
        ("priority", [1.5, 10**6]),
        ("temprature", [0.5]),
    ],
)
def test_bad_generate_options(demo, option, values):
    for value in values:
        for call in (
            demo.generate,
            demo.stream,
            lambda p, **o: demo.chat([{"role": "user", "content": p}], **o),
        ):
            with pytest.raises(moesaic.ArgumentError) as caught:
                call("In the", **{option: value})
            message = str(caught.value)
            assert ("got" in message and "need" in message) or "nearest" in message


def test_bad_prompts(demo):
    for bad in (None, 3, 1.5, b"x", [b"x"], ["a", 3], [[1], [1.5]], [["a"]], {"a": 1}, [[]]):
        with pytest.raises(moesaic.ArgumentError):
            demo.generate(bad)
    for bad in (["a", "b"], [[1], [2]]):
        with pytest.raises(moesaic.ArgumentError):
            demo.stream(bad)
    with pytest.raises(moesaic.ArgumentError):
        demo.generate("\ud800")
    for bad in ("first", 3, True):
        with demo.session() as s, pytest.raises(moesaic.ArgumentError):
            s.forward([1], logits=bad)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("n_ctx", [0, -1, 1.5, "4096", True, None, 2**40]),
        ("kv_tokens", [0, -1, 100, 1.5, "x"]),
        ("threads", [0, -1, 10_000, 1.5, "2", True]),
        ("backend", ["gpu", "hip", 3, None, ""]),
        ("deterministic", [1, "yes", None]),
        ("kv_type", ["q4_0", "f64", None, 16]),
        ("progress", [3, "bar"]),
    ],
)
def test_bad_load_options(option, values):
    for value in values:
        with pytest.raises(moesaic.MoesaicError) as caught:
            moesaic.Model.demo(**{"n_ctx": 256, option: value})
        assert "got" in str(caught.value) and "need" in str(caught.value)


def test_paths(tmp_path):
    for bad in (3, None, 1.5):
        with pytest.raises(moesaic.ArgumentError):
            moesaic.Model(bad)
    for bad in ("", str(tmp_path / "none.gguf"), tmp_path, "a\0b"):
        with pytest.raises(moesaic.MoesaicError):
            moesaic.Model(bad)
    (tmp_path / "not.gguf").write_bytes(b"hello there, this is no model at all")
    with pytest.raises(moesaic.FormatError):
        moesaic.Model(tmp_path / "not.gguf")


def test_a_pool_that_cannot_be_had_names_what_would_fit():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(moesaic.OutOfMemoryError) as caught:
            moesaic.Model.demo(n_ctx=2**30, progress=False)
    assert "n_ctx" in str(caught.value)


def test_n_ctx_above_the_training_length_warns():
    with pytest.warns(UserWarning, match="trained for 512") as caught:
        moesaic.Model.demo(n_ctx=513, progress=False).close()
    assert caught[0].filename.endswith(("model.py", "test_arguments.py"))


@pytest.mark.sanitizer
def test_closed():
    m = moesaic.Model.demo(progress=False)
    config, s = m.config, m.session()
    s.forward([1, 2])
    stream = m.stream("a", max_tokens=200, ignore_eos=True)
    next(stream)
    m.close()
    m.close()
    assert m.closed and s.closed and "closed" in repr(m)
    assert m.config is config
    for call in (
        lambda: m.forward([1]),
        lambda: m.generate("a"),
        lambda: m.stream("a"),
        lambda: m.chat([{"role": "user", "content": "a"}]),
        lambda: m.score(["a"], ["b"]),
        lambda: m.score_rolling(["a"]),
        lambda: m.capture([1], "embed"),
        lambda: m.forward_many([]),
        m.session,
        lambda: m.load_session("x"),
        lambda: m.metadata,
        lambda: m.tensors,
        m.stats,
        m.clear_cache,
        lambda: m.__enter__(),
        lambda: s.forward([1]),
        s.fork,
        lambda: s.truncate(0),
        lambda: s.tokens,
        lambda: s.save("x"),
        lambda: list(stream),
    ):
        with pytest.raises(moesaic.ClosedError):
            call()
    s.close()
    m._repr_html_()


def test_repr_and_html(demo):
    assert "deepseek2" in repr(demo) and "n_ctx 512" in repr(demo)
    assert "<table>" in demo._repr_html_()
    assert demo.config.n_layers == len(demo.config.layers)
    with pytest.raises(AttributeError):
        demo.config.n_layers = 3
    assert (
        sum(v for k, v in demo.memory.items() if k != "total_bytes") == demo.memory["total_bytes"]
    )


def test_progress_callback(tmp_path):
    calls = []
    with moesaic.Model.demo(progress=lambda *a: calls.append(a)) as m:
        assert calls and calls[-1][0] == "load" and calls[-1][1] == calls[-1][2]
        calls.clear()
        m.forward([1] * 300)
        m.generate([[2] * 200, [3] * 100], max_tokens=2)
    stages = {c[0] for c in calls}
    assert stages == {"prefill", "generate"}
    assert all(0 <= done <= total for _, done, total in calls)
    assert ("prefill", 300, 300) in calls and calls[-1] == ("generate", 2, 2)

    def stop(*_):
        raise ZeroDivisionError("enough")

    with pytest.raises(ZeroDivisionError):
        moesaic.Model.demo(progress=stop)
