"""No call stops the other Python threads: a thread that only counts runs on beside every one.

Whether the interpreter's lock (GIL) is held is read off the counting thread: it sleeps 2 ms at a
time. A gap counts only when this process had the CPU meanwhile or slept itself; on a loaded
machine a second counting *process* has the same gaps, and those are taken off.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import moesaic

GAP_S = 0.05  # what is promised
ROUGH_S = 0.15  # what a machine with other work to do adds at most, in the better of some tries
TRIES = 4

# Sleeps and notes its longest gap; asked by a line on stdin.
CONTROL = """
import sys, threading, time
worst = 0.0
def tick():
    global worst
    last = time.monotonic()
    while True:
        time.sleep(0.002)
        now = time.monotonic()
        worst = max(worst, now - last)
        last = now
threading.Thread(target=tick, daemon=True).start()
for line in sys.stdin:
    value, worst = worst, 0.0
    print(value, flush=True)
"""


class Ticker:
    """The longest time for which no other Python thread ran, and the same of another process."""

    def __init__(self):
        self._control = subprocess.Popen(
            [sys.executable, "-c", CONTROL],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._over = threading.Event()
        self._worst = 0.0
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()

    def _tick(self):
        last = time.monotonic()
        while not self._over.is_set():
            time.sleep(0.002)
            now = time.monotonic()
            self._worst = max(self._worst, now - last)
            last = now

    def reset(self):
        self._ask()
        self._worst = 0.0

    def gap(self):
        """Since reset(): the longest gap, less the machine's own."""
        time.sleep(0.005)
        return self._worst - self._ask()

    def _ask(self):
        self._control.stdin.write("\n")
        self._control.stdin.flush()
        return float(self._control.stdout.readline())

    def close(self):
        self._over.set()
        self._thread.join()
        self._control.stdin.close()
        self._control.wait(20)
        self._control.stdout.close()


@pytest.fixture(scope="module")
def ticker():
    t = Ticker()
    yield t
    t.close()


def check(ticker, name, call):
    """Fails when every try of ``call`` stopped the counting thread."""
    gaps = []
    for _ in range(TRIES):
        ticker.reset()
        call()
        gaps.append(ticker.gap())
        if gaps[-1] < GAP_S:
            return
    assert min(gaps) < ROUGH_S, f"{name}: no Python thread ran for {min(gaps):.3f} s"


@pytest.fixture(scope="module")
def model_path():
    return moesaic.Model.demo(progress=False, threads=1).path


@pytest.fixture(params=["alone", "cluster"], scope="module")
def m(request, model_path):
    options = {"n_ctx": 512, "kv_tokens": 2048, "progress": False}
    if request.param == "alone":
        with moesaic.Model(model_path, **options) as model:
            yield model
        return
    with moesaic.Cluster.local(2) as c, c.load(model_path, **options) as model:
        yield model


LONG = [7] * 480


def model_calls(m, s, tmp):
    """Name and call of everything that a model and a session have."""
    path = tmp / "a.session"
    return {
        "forward": lambda: m.forward(LONG),
        "capture": lambda: m.capture(LONG, "blocks.*.resid_post"),
        "generate": lambda: m.generate([3] * 200, max_tokens=60, ignore_eos=True),
        "batch": lambda: m.generate([[i + 3] * 40 for i in range(16)], max_tokens=20),
        "stream": lambda: list(m.stream([3] * 200, max_tokens=60, ignore_eos=True)),
        "score": lambda: m.score(["In the"] * 16, [" beginning"] * 16),
        "score_rolling": lambda: m.score_rolling(["In the beginning"] * 8),
        "chat": lambda: m.chat([{"role": "user", "content": "Hello"}], max_tokens=8),
        "render_chat": lambda: m.render_chat([{"role": "user", "content": "Hello"}]),
        "forward_many": lambda: m.forward_many([(m.session(), LONG)], logits="last"),
        "tokenize": lambda: m.tokenize("In the beginning " * 500),
        "detokenize": lambda: m.detokenize(LONG * 50),
        "stats": m.stats,
        "clear_cache": m.clear_cache,
        "memory": lambda: (m.memory, m.device, m.closed, m.n_ctx, m.kv_tokens, repr(m)),
        "html": m._repr_html_,
        "session": lambda: m.session().close(),
        "left session": lambda: m.session().feed(LONG),
        "session.forward": lambda: (s.truncate(0), s.forward(LONG)),
        "session.generate": lambda: (s.truncate(0), s.generate([3], max_tokens=40)),
        "session.stream": lambda: (s.truncate(0), list(s.stream([3], max_tokens=40))),
        "left stream": lambda: next(m.stream([3] * 200, max_tokens=300, ignore_eos=True)),
        "session.feed": lambda: (s.truncate(0), s.feed(LONG)),
        "session.fork": lambda: s.fork(1).close(),
        "session.save": lambda: s.save(path),
        "load_session": lambda: m.load_session(path).close(),
        "session facts": lambda: (len(s), s.tokens, s.closed, repr(s)),
    }


def test_beside_every_call_of_a_model_and_a_session(ticker, m, tmp_path):
    with m.session() as s:
        s.feed([3] * 300)
        for name, call in model_calls(m, s, tmp_path).items():
            check(ticker, name, call)


def test_looking_at_things_while_another_thread_works(ticker, m, tmp_path):
    """What others hold for long is not waited for: facts are there at once."""
    over = threading.Event()
    with m.session() as s, m.session() as other:

        def work():
            while not over.is_set():
                s.truncate(0)
                s.feed(LONG)
                s.save(tmp_path / "b.session")

        thread = threading.Thread(target=work)
        thread.start()
        try:
            for _ in range(20):
                began = time.monotonic()
                check(ticker, "facts", lambda: (len(s), s.tokens, s.closed, repr(s), m.stats()))
                assert time.monotonic() - began < 5
            check(ticker, "other session", lambda: other.feed([3] * 20))
            check(ticker, "cancelled", lambda: next(m.stream([3] * 50, max_tokens=400)))
        finally:
            over.set()
            thread.join(60)


def test_beside_load_and_close(ticker, model_path):
    def load():
        with moesaic.Model(model_path, n_ctx=512, progress=False) as model:
            model.generate([3] * 50, max_tokens=3)

    def left():
        model = moesaic.Model(model_path, n_ctx=512, progress=False)
        stream = model.stream([3] * 400, max_tokens=100)
        next(stream)
        del stream, model  # the last references: everything ends here

    check(ticker, "load and close", load)
    check(ticker, "a model that is left", left)


def test_beside_a_cluster(ticker, model_path):
    with moesaic.Cluster.local(2) as c:
        check(ticker, "facts", lambda: (c.nodes, repr(c)))
        check(ticker, "plan", lambda: c.plan(model_path, n_ctx=256))
        check(ticker, "load", lambda: c.load(model_path, n_ctx=256, progress=False).close())
        check(ticker, "connect", lambda: moesaic.Cluster.local(1).close())


def test_beside_gguf_and_tokenizer(ticker, model_path, tmp_path):
    def read():
        with moesaic.GGUF(model_path) as file:
            for tensor in file.tensors.values():
                tensor.dequantize()
            file.tokenizer()
            repr(file)

    check(ticker, "GGUF", read)
    rng = np.random.default_rng(0)
    big = rng.standard_normal((2048, 2048)).astype(np.float32)
    check(ticker, "quantize", lambda: moesaic.quantize(big, "q4_k"))
    check(ticker, "write", lambda: moesaic.write_gguf(tmp_path / "a.gguf", {}, {"a": big}))
    tokenizer = moesaic.GGUF(model_path).tokenizer()
    check(ticker, "encode", lambda: tokenizer.encode("In the beginning " * 2000))
    check(ticker, "decode", lambda: tokenizer.decode([7] * 20000))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a worker is killed")
def test_a_session_whose_save_waits_for_a_lost_worker(ticker, model_path, tmp_path):
    """Looking at it, closing it: nothing waits with the save, and no thread stands still."""
    with (
        moesaic.Cluster.local(2) as c,
        c.load(model_path, n_ctx=256, on_loss="wait", wait_seconds=4, progress=False) as m,
    ):
        s = m.session()
        s.feed(list(range(3, 30)))
        c.launcher.kill(c.addresses[1])
        time.sleep(0.2)
        errors = []

        def save():
            try:
                s.save(Path(tmp_path) / "c.session")
            except moesaic.errors.MoesaicError as error:
                errors.append(error)

        saving = threading.Thread(target=save)
        saving.start()
        time.sleep(0.3)
        assert saving.is_alive()
        began = time.monotonic()
        check(ticker, "facts", lambda: (len(s), s.tokens, s.closed, repr(s), m.stats(), repr(m)))
        assert time.monotonic() - began < 2.5
        saving.join(60)
        check(ticker, "close", s.close)
        assert len(errors) == 1
