"""Text from sessions: what they generate, what they keep, what is left of a call cut short."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import moesaic
from moesaic.errors import ArgumentError, ClosedError


@pytest.fixture(params=["alone", "cluster"], scope="module")
def m(request, tmp_path_factory):
    """The demo in deterministic mode, on one machine and on two workers."""
    if request.param == "alone":
        with moesaic.Model.demo(progress=False, deterministic=True, kv_tokens=4096) as model:
            yield model
        return
    path = moesaic.Model.demo(progress=False, threads=1).path
    with (
        moesaic.Cluster.local(2) as c,
        c.load(path, n_ctx=512, kv_tokens=4096, deterministic=True, progress=False) as model,
    ):
        yield model


def test_goes_on_where_a_whole_generation_would(m):
    whole = m.generate("In the beginning", max_tokens=24, seed=5, ignore_eos=True)
    with m.session() as s:
        a = s.generate("In the beginning", max_tokens=7, seed=5, ignore_eos=True)
        assert s.tokens.tolist() == [*a.prompt_tokens.tolist(), *a.tokens.tolist()]
        branch = s.fork()
        b = s.generate(max_tokens=17, seed=5, ignore_eos=True)
        assert [*a.tokens, *b.tokens] == whole.tokens.tolist()
        assert b.prompt_tokens.tolist() == a.tokens[-1:].tolist()
        pieces = list(branch.stream(None, max_tokens=17, seed=5, ignore_eos=True))
        assert "".join(p.text for p in pieces) == b.text
        assert branch.tokens.tolist() == s.tokens.tolist()
        # The cache is what it would have been: the next logits are the same bytes.
        expected = m.forward([*s.tokens, 7])[-1]
        assert s.forward([7]).tobytes() == expected.tobytes()


def test_text_gets_a_begin_of_text_token_in_an_empty_session_only(m):
    with m.session() as s:
        first = s.feed("In the beginning")
        assert first.tolist() == m.tokenize("In the beginning").tolist()
        more = s.feed(" was the word")
        assert more.tolist() == m.tokenize(" was the word", add_special=False).tolist()
        last = s.forward(" and")
        assert last.tobytes() == m.forward(s.tokens)[-1].tobytes()
        assert s.forward(" so", logits=None) is None
        assert s.forward(" it", logits="all", capture="final_norm").logits.shape[0] >= 1
        with pytest.raises(ArgumentError, match="need at least one"):
            s.feed("")
        assert len(s) > 0


def test_a_stop_string_ends_the_session_behind_it(m):
    with m.session() as s:
        free = s.generate("In the beginning", max_tokens=30, seed=2, ignore_eos=True)
        s.truncate(0)
        stop = free.text[8:11]
        out = s.generate("In the beginning", max_tokens=30, seed=2, ignore_eos=True, stop=stop)
        assert out.stop == stop and stop not in out.text
        n = len(out.tokens)
        assert out.tokens.tolist() == free.tokens[:n].tolist()
        assert s.tokens.tolist() == [*out.prompt_tokens, *out.tokens]


def test_leaving_a_stream_keeps_what_was_handed_out(m):
    with m.session() as s:
        seen = []
        for chunk in s.stream("In the", max_tokens=400, seed=3, ignore_eos=True):
            seen += chunk.tokens
            if len(seen) >= 5:
                with pytest.raises(ArgumentError, match="writing"):
                    s.forward([1])
                with pytest.raises(ArgumentError, match="stream that is still open"):
                    s.fork()
                break
        assert s.tokens.tolist() == [*m.tokenize("In the").tolist(), *seen]
        assert s.forward([7]).tobytes() == m.forward(s.tokens)[-1].tobytes()
        before = s.tokens.tolist()
        stream = s.stream("And", echo=True)
        assert next(stream).text  # the echo: nothing was generated
        stream.close()
        assert s.tokens.tolist() == before


@pytest.mark.parametrize("prompt", ["And", None])
def test_an_exception_leaves_the_session_as_it_was(m, prompt):
    with m.session() as s:
        s.feed("In the beginning")
        before = s.tokens.tolist()
        calls = []

        def processor(tokens, logits):
            calls.append(tokens)
            if len(calls) == 3:
                raise RuntimeError("mine")

        with pytest.raises(RuntimeError, match="mine"):
            s.generate(prompt, max_tokens=20, logits_processor=processor, ignore_eos=True)
        assert calls[0].tolist()[: len(before)] == before  # it sees the whole session
        assert s.tokens.tolist() == before
        with pytest.raises(RuntimeError, match="body"):
            for _ in s.stream(prompt, max_tokens=20, ignore_eos=True):
                raise RuntimeError("body")
        s.truncate(len(before))
        assert s.forward([7]).tobytes() == m.forward([*before, 7])[-1].tobytes()


def test_refusals(m):
    with m.session() as s:
        with pytest.raises(ArgumentError, match="empty session"):
            s.generate()
        with pytest.raises(ArgumentError, match="one; fork"):
            s.generate(["a", "b"])
        with pytest.raises(ArgumentError, match="option"):
            s.stream("a", nonsense=1)
        s.feed(np.full(500, 3))
        assert len(s.generate([4], max_tokens=None, ignore_eos=True).tokens) == 11
        assert len(s) == 512
        with pytest.raises(ArgumentError, match="n_ctx"):
            s.generate([4])
    with pytest.raises(ClosedError):
        s.generate("a")


def test_a_session_may_be_closed_while_its_stream_is_open(m):
    free = m.stats()["kv_tokens_free"]
    s = m.session()
    stream = s.stream("In the", max_tokens=300, ignore_eos=True)
    next(stream)
    s.close()
    for _ in stream:  # it may end, or be read on
        pass
    m.clear_cache()
    assert m.stats()["kv_tokens_free"] >= free


def test_two_threads_take_turns(m):
    with m.session() as s:
        s.feed("In the")
        results = []

        def work(seed):
            results.append(len(s.generate(" and", max_tokens=5, seed=seed, ignore_eos=True).tokens))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        assert results == [5, 5, 5, 5]
