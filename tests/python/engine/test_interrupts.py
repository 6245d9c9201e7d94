"""Ctrl-C, threads, fork and exit: in processes of their own where they end badly if wrong."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings

import numpy as np
import pytest

import moesaic

# What is promised: 100 ms. The rest is room for a loaded machine.
LATE_S = 0.5


class CtrlC:
    """Sends SIGINT to this process after a while; tells how long it took to be heard."""

    def __init__(self, after: float) -> None:
        self.after = after

    def __enter__(self):
        def send():
            time.sleep(self.after)
            self.sent = time.monotonic()
            os.kill(os.getpid(), signal.SIGINT)

        self._thread = threading.Thread(target=send)
        self._thread.start()
        return self

    def __exit__(self, kind, error, trace):
        heard = time.monotonic()
        self._thread.join()
        assert kind is KeyboardInterrupt, f"not interrupted: {kind}"
        self.latency = heard - self.sent
        return True


@pytest.mark.parametrize(
    "call",
    [
        lambda m: [m.forward([7] * 500) for _ in range(1000)],
        lambda m: [m.capture([7] * 500, "*") for _ in range(1000)],
        lambda m: [m.generate([3] * 10, max_tokens=450, ignore_eos=True) for _ in range(100)],
        lambda m: [
            m.generate([[i + 3] * 10 for i in range(40)], max_tokens=400, ignore_eos=True)
            for _ in range(100)
        ],
        lambda m: [list(m.stream([3] * 10, max_tokens=450, ignore_eos=True)) for _ in range(100)],
        lambda m: [
            m.score([[5] * 300] * 64, [[i + 5] * 9 for i in range(64)]) for _ in range(1000)
        ],
        lambda m: [
            m.generate(
                [3] * 10, max_tokens=450, ignore_eos=True, logits_processor=lambda t, x: None
            )
            for _ in range(100)
        ],
    ],
    ids=["forward", "capture", "generate", "batch", "stream", "score", "processor"],
)
def test_ctrl_c_is_heard_and_leaves_the_model_usable(exact, call):
    want = exact.generate([5, 6, 7], max_tokens=5, seed=1, ignore_eos=True).tokens.tolist()
    with CtrlC(0.3) as c:
        call(exact)
    assert c.latency < LATE_S
    deadline = time.monotonic() + 5
    while sum(exact.stats()[k] for k in ("active", "waiting")) and time.monotonic() < deadline:
        time.sleep(0.005)
    assert exact.stats()["active"] == exact.stats()["waiting"] == 0
    got = exact.generate([5, 6, 7], max_tokens=5, seed=1, ignore_eos=True).tokens.tolist()
    assert got == want


def test_ctrl_c_leaves_a_session_as_it_was(demo):
    with demo.session() as s:
        s.forward([1, 2, 3], logits=None)
        with CtrlC(0.2):
            while True:
                s.forward([9] * 500, logits="all")
                s.truncate(3)
        s.truncate(3)
        assert s.tokens.tolist() == [1, 2, 3]
        want = demo.forward([1, 2, 3, 4])[-1]
        np.testing.assert_allclose(s.forward([4]), want, atol=0.1)


def test_ctrl_c_while_another_thread_generates(demo):
    """The interrupted caller stops; the other thread's generation goes on to its end."""
    options = {"max_tokens": 300, "seed": 4, "ignore_eos": True}
    result = []
    other = threading.Thread(target=lambda: result.append(demo.generate([4] * 9, **options)))
    other.start()
    with CtrlC(0.1):
        while True:
            demo.generate([3] * 10, max_tokens=450, ignore_eos=True)
    other.join()
    assert len(result[0].tokens) == 300


def test_ctrl_c_in_loading(tmp_path):
    with CtrlC(0.2) as c:
        while True:
            moesaic.Model.demo(progress=False).close()
    assert c.latency < 1.0
    with moesaic.Model.demo(progress=False) as m:
        assert m.forward([1]).shape[0] == 1


def test_no_ctrl_c_is_lost_while_text_is_made(demo):
    """Every one of many signals at random moments is heard, also amid the decoding of a token."""
    pressed = heard = 0

    def press(number, frame):
        nonlocal pressed
        pressed += 1
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, press)
    ids = list(range(5, 100))
    try:
        for delay in np.random.default_rng(3).uniform(1e-5, 3e-4, 2000):
            decoder = demo.tokenizer.stream_decoder()
            at = pressed
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                while pressed == at:
                    for i in ids:
                        decoder.feed(i)
            except KeyboardInterrupt:
                heard += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert pressed == heard == 2000


def test_the_gil_is_free_while_it_computes(demo):
    counted = 0
    done = threading.Event()

    def work():
        for _ in range(5):
            demo.forward([7] * 500)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    longest, last = 0.0, time.monotonic()
    while not done.is_set():
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        counted += 1
        time.sleep(0.0005)
    thread.join()
    assert counted > 10
    assert longest < 1.0


def test_two_threads_run_two_models():
    with (
        moesaic.Model.demo(progress=False, deterministic=True, threads=1) as a,
        moesaic.Model.demo(progress=False, deterministic=True, threads=1) as b,
    ):
        want = a.generate("In the", max_tokens=60, seed=1, ignore_eos=True).tokens.tolist()
        results = {}

        def run(m):
            results[id(m)] = [
                m.generate("In the", max_tokens=60, seed=1, ignore_eos=True).tokens.tolist()
                for _ in range(3)
            ]

        threads = [threading.Thread(target=run, args=(m,)) for m in (a, b)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert results == {id(a): [want] * 3, id(b): [want] * 3}


def test_many_threads_on_one_model(exact):
    errors = []

    def work(i):
        try:
            prompt = [i + 3, 9, i + 20]
            mine = exact.generate(prompt, max_tokens=10, seed=i, ignore_eos=True).tokens
            logits = exact.forward(prompt)
            with exact.session() as s:
                np.testing.assert_array_equal(s.forward(prompt, logits="all"), logits)
            for _ in range(3):
                again = exact.generate(prompt, max_tokens=10, seed=i, ignore_eos=True).tokens
                np.testing.assert_array_equal(mine, again)
            score = exact.score([prompt], [mine])
            assert score == exact.score([prompt], [mine])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors


def test_one_session_from_many_threads_serves_them_in_turn(exact):
    with exact.session() as s:
        s.forward([1], logits=None)
        threads = [
            threading.Thread(target=lambda i=i: s.forward([i + 2], logits=None)) for i in range(10)
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert sorted(s.tokens.tolist()) == list(range(1, 12))


def test_fork_in_a_child_is_a_clear_error(demo):
    with demo.session() as s:
        s.forward([1], logits=None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for call in (lambda: demo.forward([1]), lambda: s.forward([1]), s.fork):
                    try:
                        call()
                    except moesaic.ClosedError as error:
                        assert "fork()" in str(error)
                    else:
                        raise AssertionError("no error")
                s.close()
                demo.close()
                code = 0
            finally:
                os._exit(code)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            time.sleep(0.02)
        else:
            os.kill(pid, signal.SIGKILL)
            pytest.fail("the child hangs")
        assert os.waitstatus_to_exitcode(status) == 0
        assert s.forward([2]).shape == (demo.config.vocab,)


def run_script(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    "ending",
    [
        "",
        "del m",
        "raise SystemExit(0)",
        "stream = m.stream('a', max_tokens=300, ignore_eos=True); next(stream)",
        "s = m.session(); s.forward([1, 2]); del m",
        "threading.Thread(target=m.generate, args=('a',), daemon=True).start(); time.sleep(0.01)",
        "multiprocessing.get_context('fork').Process(target=len, args=('',)).start()",
    ],
)
def test_the_interpreter_ends_whatever_is_open(ending):
    result = run_script(
        f"""
        import multiprocessing, threading, time, moesaic
        m = moesaic.Model.demo(progress=False)
        m.generate("a", max_tokens=2)
        {ending}
        """
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""


def test_open_and_close_again_and_again():
    import psutil

    process = psutil.Process()

    def once():
        with moesaic.Model.demo(progress=False) as m:
            m.generate([[1, 2, 3], [4]], max_tokens=2, ignore_eos=True)
            s = m.session()
            s.forward([1] * 70)
            s.fork()
            m.capture([1, 2], "*")
        gc.collect()

    for _ in range(10):
        once()
    rss, n_threads, n_fds = process.memory_info().rss, process.num_threads(), process.num_fds()
    for _ in range(40):
        once()
    assert process.num_threads() <= n_threads
    assert process.num_fds() <= n_fds
    assert process.memory_info().rss - rss < 8 << 20


def test_generations_do_not_leak(demo):
    import psutil

    process = psutil.Process()

    def once(i):
        demo.generate([i % 100 + 5, 9], max_tokens=4, capture="embed", logprobs=3, seed=i)
        demo.capture([i % 100 + 5, 9] * 10, "*")

    for i in range(50):
        once(i)
    rss = process.memory_info().rss
    for i in range(150):
        once(i)
    assert process.memory_info().rss - rss < 16 << 20
