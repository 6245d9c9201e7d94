"""Losses late in a call, after a Ctrl-C, after the patience: the model and its sessions go on."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

import moesaic

PROMPT = [3, 4, 5]
WAIT_S = 1.0


def tokens(m: moesaic.Model, n: int = 12) -> list[int]:
    return m.generate(PROMPT, max_tokens=n, temperature=0, ignore_eos=True).tokens.tolist()


@pytest.fixture
def two():
    with moesaic.Cluster.local(2, memory=2 * 10**9) as c:
        yield c


@pytest.mark.filterwarnings("ignore:.*trained for")
@pytest.mark.parametrize("on_loss", ["wait", "replan"])
def test_patience_counts_from_the_loss_not_from_the_call(two, demo_path, on_loss):
    """The call has run for longer than the patience when the worker is lost."""
    sampling = {"max_tokens": None, "temperature": 0, "ignore_eos": True}
    options = {"n_ctx": 16384, "deterministic": True}
    got: list[int] = []
    lost_at = None
    with two.load(demo_path, on_loss=on_loss, wait_seconds=WAIT_S, **options) as m:
        begin = time.monotonic()
        for chunk in m.stream(PROMPT, **sampling):
            got += [int(token) for token in chunk.tokens]
            if lost_at is None and time.monotonic() > begin + WAIT_S + 0.3:
                lost_at = len(got)
                two.launcher.kill(two.addresses[1])
                two.launcher.restart(two.addresses[1])
            # What had come before the loss may still be on its way to the caller.
            if lost_at is not None and len(got) > lost_at + 1500:
                break
    assert lost_at is not None, "the whole generation took no time"
    with moesaic.Model(demo_path, progress=False, **options) as m:
        want = m.generate(PROMPT, **(sampling | {"max_tokens": len(got)})).tokens.tolist()
    assert got == want


def test_after_ctrl_c_in_a_wait_the_next_call_tries_again(two, demo_path, exact):
    with two.load(demo_path, n_ctx=256, on_loss="wait", deterministic=True) as m, m.session() as s:
        s.forward(PROMPT)
        two.launcher.kill(two.addresses[1])
        threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            tokens(m)
        two.launcher.restart(two.addresses[1])
        assert tokens(m) == tokens(exact)
        with exact.session() as other:
            other.forward(PROMPT)
            assert s.forward([7]).tobytes() == other.forward([7]).tobytes()


@pytest.mark.parametrize("on_loss", ["raise", "wait"])
def test_after_an_error_the_next_call_tries_again(two, demo_path, exact, on_loss):
    with (
        two.load(demo_path, n_ctx=256, on_loss=on_loss, wait_seconds=0.2, deterministic=True) as m,
        m.session() as s,
    ):
        s.forward(PROMPT)
        two.launcher.kill(two.addresses[0])
        for _ in range(2):
            with pytest.raises(moesaic.WorkerLost, match="the next call") as raised:
                tokens(m)
            assert raised.value.node == two.addresses[0]
        assert len(s) == len(PROMPT)
        two.launcher.restart(two.addresses[0])
        assert tokens(m) == tokens(exact)
        with exact.session() as other:
            other.forward(PROMPT)
            assert s.forward([7]).tobytes() == other.forward([7]).tobytes()


def test_a_request_of_any_size_costs_nobody_the_model(two, demo_path, exact):
    bias = dict.fromkeys(range(exact.config.vocab), 0.0)
    options = [
        {"stop_tokens": [7] * 600_000},
        {"logit_bias": bias},
        {"logprobs": exact.config.vocab},
        {"penalty_last_n": -1, "repeat_penalty": 1.1},
    ]
    with two.load(demo_path, n_ctx=256, deterministic=True) as m:
        for each in options:
            prompts = [PROMPT] * 4
            got = m.generate(prompts, max_tokens=3, temperature=0, **each)
            want = exact.generate(prompts, max_tokens=3, temperature=0, **each)
            assert [g.tokens.tolist() for g in got] == [w.tokens.tolist() for w in want], each
        assert tokens(m) == tokens(exact)


def test_all_who_wait_are_answered_at_once(two, demo_path):
    """Also those who came during the wait: none waits for a patience of its own."""
    patience_s = 3.0
    ended: list[float] = []

    def call(m: moesaic.Model, prompt: list[int]) -> None:
        with pytest.raises(moesaic.WorkerLost):
            m.generate(prompt, max_tokens=5, temperature=0)
        ended.append(time.monotonic())

    with two.load(demo_path, n_ctx=64, on_loss="wait", wait_seconds=patience_s) as m:
        two.launcher.kill(two.addresses[1])
        threads = []
        for i in range(6):
            threads.append(threading.Thread(target=call, args=(m, [3 + i, 4])))
            threads[-1].start()
            time.sleep(0.2)
        for thread in threads:
            thread.join(60)
    assert len(ended) == 6 and max(ended) - min(ended) < patience_s - 1.5
