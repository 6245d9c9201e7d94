"""Cases: coordinators that die, workers that stop, stop and come back, and Ctrl-C."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import fault_rig
from fault_kills import Figures, stream
from fault_rig import (
    DEMO,
    FREED_S,
    LATE_S,
    LOST_S,
    Once,
    Rig,
    after,
    check,
    dice,
    eventually,
    generate,
    reference,
)

import moesaic

SCRIPT = Path(__file__).with_name("fault_coordinator.py")
#: Where a coordinator is killed: at the first line that begins so, and how long after it at most.
MOMENTS: dict[str, tuple[str, float]] = {
    "handshake": ("connecting", 0.02),
    "load": ("connected", 0.05),
    "prefill": ("prefill", 0.05),
    "decode": ("decode", 0.2),
    "session save": ("saving", 0.005),
    "shutdown": ("closing", 0.005),
}


def coordinator(rig: Rig, *, once: bool) -> subprocess.Popen[str]:
    """Start a coordinator on the rig's workers."""
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), ",".join(rig.addresses), str(DEMO), str(rig.folder)]
        + (["once"] if once else []),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert process.stdin is not None
    process.stdin.write(rig.key.decode() + "\n")
    process.stdin.flush()
    return process


def killed_coordinator(rig: Rig, i: int, moment: str) -> Figures:
    """Kill a coordinator; workers free its cache, keep the weights, and take the next one."""
    line, most = MOMENTS[moment]
    rig.revive()
    with rig.load() as model:  # the weights are there
        check(model, 5)
    rig.settle()
    before = rig.cluster.nodes
    n_skip = dice(i, moment).randrange(1, 60) if moment == "decode" else 1
    with coordinator(rig, once=False) as process:
        assert process.stdout is not None
        for said in process.stdout:
            n_skip -= said.startswith(line)
            if n_skip == 0:
                break
        time.sleep(dice(i, moment).uniform(0.0, most))
        process.kill()
        began = time.monotonic()
        process.stdout.read()
    assert all(rig.lives()), "a worker died with its coordinator"

    def freed() -> bool:
        now = rig.cluster.nodes
        return all(
            b.state == "idle" and b.memory_free == a.memory_free and not sessions(b)
            for a, b in zip(before, now, strict=True)
        )

    eventually(freed, FREED_S, "the dead coordinator's cache is free")
    took = time.monotonic() - began
    with rig.load() as model:
        check(model)
    now = rig.cluster.nodes
    assert [n.bytes_read for n in now] == [n.bytes_read for n in before], "weights were read again"
    saved = rig.folder / "coordinator.session"
    if saved.exists():  # whole or not at all
        with rig.load() as model, model.load_session(saved) as session:
            assert len(session) == 400
    for path in rig.folder.glob("*.session*"):
        path.unlink()
    return {"freed_after_s": took}


def sessions(node: moesaic.Node) -> int:
    """Return how many sequences a worker has."""
    return sum(model.sessions for model in node.models)


def resumed(rig: Rig, i: int, on_loss: str) -> Figures:
    """Kill a worker in a generation that goes on by itself, at a position: the same tokens."""
    rig.revive()
    victim = i % len(rig.workers)
    at = 1 + 73 * i % 200  # each position once in 200 cases, spread in the first ones
    kill = Once(lambda: rig.kill(victim))
    back = threading.Thread(target=lambda: (time.sleep(0.3), rig.revive()))
    got: list[int] = []
    with rig.load(on_loss=on_loss, wait_seconds=60) as model:
        try:
            for chunk in stream(model, 220):
                got += chunk
                if len(got) >= at and not kill.done:
                    kill()
                    if on_loss == "wait":
                        back.start()
            took = kill.seconds_ago()
        finally:
            if back.ident is not None:
                back.join()
        assert got == reference.tokens(220), f"other tokens after {at}: {got}"
        check(model)  # and what comes next as well
    rig.revive()
    return {"whole_after_s": took}


def lost_late(rig: Rig, i: int, on_loss: str) -> Figures:
    """Kill a worker at some time into a call, measured in patiences: it goes on, or says so."""
    patience = 2.0
    at = (0.0, 1.0, patience - 1.0, patience + 1.0, 10.0 * patience)[i % 5]
    rig.revive()
    victim = i // 5 % len(rig.workers)
    kill = Once(lambda: rig.kill(victim))
    back = threading.Timer(0.3, rig.revive)
    got: list[int] = []
    with rig.load(on_loss=on_loss, wait_seconds=patience, n_ctx=65536) as model:
        began = time.monotonic()
        chunks = model.stream([3, 4, 5], max_tokens=None, temperature=0, ignore_eos=True)
        error = None
        n_before = 0
        try:
            for chunk in chunks:
                got += [int(token) for token in chunk.tokens]
                if not kill.done and time.monotonic() - began >= at:
                    kill()
                    back.start()
                    n_before = len(got)
                if kill.done and len(got) > n_before + 2000:
                    break
        except moesaic.WorkerLost as caught:
            error = caught
        finally:
            chunks.close()
            if back.ident is not None:
                back.join()
        took = kill.seconds_ago()
        assert (error is not None) == (on_loss == "raise"), error
        check(model)  # the worker is back: the same model goes on, whatever on_loss says
    rig.revive()
    return {f"over_after_s_{on_loss}": took}


def stopped(rig: Rig, i: int, seconds: float) -> Figures:
    """SIGSTOP for a while: short ones nobody sees, after long ones the sleeper is fenced off."""
    rig.revive()
    victim = i % len(rig.workers)
    transparent = seconds < 3.0
    got: list[int] = []
    stop = Once(lambda: rig.signal(victim, signal.SIGSTOP))
    wake = threading.Timer(seconds, lambda: rig.signal(victim, signal.SIGCONT))
    with rig.load() as model:
        try:
            try:
                for chunk in stream(model, 400):
                    got += chunk
                    if len(got) >= dice(i, "stop").randrange(1, 150) and not stop.done:
                        stop()
                        wake.start()
                error = None
            except moesaic.WorkerLost as caught:
                error = caught
            took = stop.seconds_ago()
            if transparent:
                assert error is None, error
                assert got == reference.tokens(400), "other tokens"
            else:
                assert error is not None, f"{seconds} s of silence were not seen"
                assert took < LOST_S + LATE_S, f"{took:.1f} s: {error}"
                assert rig.addresses[victim] in str(error), error
                assert [int(t) for t in error.tokens] == reference.tokens(400)[: len(error.tokens)]
        finally:
            if wake.ident is not None:
                wake.join()
    # Awake again: what it still did under the old epoch goes nowhere, and the next load takes it.
    assert all(rig.lives())
    rig.settle()
    with rig.load() as model:
        check(model)
        if not transparent:
            assert generate(model, 60, 3) == reference.tokens(60, 3), "other tokens after the sleep"
    return {"seconds": seconds, "said_after_s": took}


def slept_through(rig: Rig, i: int, seconds: float, on_loss: str) -> Figures:
    """SIGSTOP long enough to be lost, of a generation that goes on by itself: the same tokens."""
    rig.revive()
    victim = i % len(rig.workers)
    stop = Once(lambda: rig.signal(victim, signal.SIGSTOP))
    wake = threading.Timer(seconds, lambda: rig.signal(victim, signal.SIGCONT))
    got: list[int] = []
    with rig.load(on_loss=on_loss, wait_seconds=120) as model:
        try:
            for chunk in stream(model, 300):
                got += chunk
                if len(got) >= 20 + i and not stop.done:
                    stop()
                    wake.start()
            took = stop.seconds_ago()
        finally:
            if wake.ident is not None:
                wake.join()
        assert got == reference.tokens(300), "other tokens"
        check(model)  # with the sleeper awake again, whose frames are of a dead epoch
    rig.settle()
    return {"seconds": seconds, "whole_after_s": took}


def flapped(rig: Rig, i: int) -> Figures:
    """A worker that dies and comes back, twice in one generation, also while it is brought back."""
    rig.revive()
    victim = i % len(rig.workers)
    random = dice(i, "flap")
    over = threading.Event()

    def flap() -> None:
        for _ in range(2):
            time.sleep(random.uniform(0.0, 0.5))
            rig.kill(victim)
            time.sleep(random.uniform(0.0, 0.5))
            rig.revive()
        over.set()

    with rig.load(on_loss="wait", wait_seconds=60) as model:
        thread = threading.Thread(target=flap)
        thread.start()
        try:
            n = 0
            while not over.is_set() or n == 0:
                seed = n % 5
                got = generate(model, 120, seed)
                assert got == reference.tokens(120, seed), f"other tokens: {got}"
                n += 1
        finally:
            thread.join()
        check(model)
    return {"generations": n}


def interrupted(rig: Rig, i: int) -> Figures:
    """Ctrl-C in what a person waits for; the object is usable and the workers are idle soon."""
    kinds: list[tuple[str, Callable[[moesaic.Model], object]]] = [
        ("decode", lambda m: [generate(m, 400) for _ in range(1000)]),
        ("prefill", lambda m: [m.forward(fault_rig.long_prompt(500)) for _ in range(10000)]),
        ("score", lambda m: [m.score([[5] * 300] * 64, [[6, 7]] * 64) for _ in range(1000)]),
        ("load", lambda m: [rig.load().close() for _ in range(1000)]),
        ("wait", lambda m: generate(m, 400)),
    ]
    name, call = kinds[i % len(kinds)]
    rig.revive()
    victim = i % len(rig.workers)
    press = Once(lambda: os.kill(os.getpid(), signal.SIGINT))
    options = {"on_loss": "wait"} if name == "wait" else {}
    with rig.load(**options) as model:
        if name == "wait":
            rig.kill(victim)
        took = _pressed(press, dice(i, "ctrl-c").uniform(0.05, 0.6), lambda: call(model))
        late = 1.0 if name == "load" else 0.1
        assert took < late + 0.5, f"{name}: heard after {took:.3f} s"
        rig.revive()
        began = time.monotonic()
        check(model)
        assert name == "wait" or time.monotonic() - began < LOST_S
    return {f"heard_after_s_{name}": took, "in_time": float(took <= late)}


def _pressed(press: Once, seconds: float, call: Callable[[], object]) -> float:
    try:
        with after(seconds, press):
            call()
    except KeyboardInterrupt:
        return press.seconds_ago()
    raise AssertionError("Ctrl-C was not heard")


def next_coordinator(rig: Rig, i: int) -> Figures:
    """One coordinator after the other, some killed: what is held is not read again."""
    rig.revive()
    with rig.load() as model:
        check(model, 5)
    rig.settle()
    before = rig.cluster.nodes
    with coordinator(rig, once=i % 2 == 0) as process:
        assert process.stdout is not None
        if i % 2 == 0:
            said = process.stdout.read().splitlines()
            assert said[-1] == "over", said[-3:]
            tokens = next(line for line in said if line.startswith("tokens"))
            assert tokens == f"tokens {reference.tokens(200)}"
        else:
            time.sleep(dice(i, "next").uniform(0.2, 1.5))
            process.kill()
            process.stdout.read()
    rig.settle()
    now = rig.cluster.nodes
    assert [n.bytes_read for n in now] == [n.bytes_read for n in before], "weights were read again"
    assert [n.pid for n in now] == [n.pid for n in before]
    return {}


def opened_and_closed(rig: Rig, i: int) -> Figures:
    """Open, load, close: neither this process nor the workers grow."""
    rig.revive()
    with rig.connect() as cluster, rig.load(cluster) as model:
        assert generate(model, 3) == reference.tokens(3)
    rig.settle()
    return rig.grown("open and close", warm_up=10)


_CLIENTS = 8
_SOAK_S = 60.0


def soaked(rig: Rig, i: int, seconds: float = _SOAK_S) -> Figures:
    """Let eight clients share a model for a while: nothing hangs, changes or grows."""
    rig.revive()
    reference.tokens(48)  # the model of the reference is there before eight ask for it
    with rig.load(kv_tokens=_CLIENTS * fault_rig.N_CTX) as model:
        end = time.monotonic() + seconds
        with ThreadPoolExecutor(_CLIENTS) as pool:
            clients = [
                pool.submit(_client, model, end, dice(i, f"client {n}")) for n in range(_CLIENTS)
            ]
            n_calls = sum(client.result() for client in clients)
    rig.settle()
    assert n_calls >= _CLIENTS, f"{n_calls} calls in {seconds} s"
    return {"calls": n_calls} | rig.grown("soak", warm_up=2)


def _client(model: moesaic.Model, end: float, random: Random) -> int:
    """Call a model until the end; return how often."""
    n_calls = 0
    while time.monotonic() < end:
        n, seed = random.randrange(1, 48), random.randrange(8)
        begin = time.monotonic()
        random.choice(_CALLS)(model, n, seed)
        took = time.monotonic() - begin
        assert took < _CALL_S, f"one call took {took:.1f} s"
        n_calls += 1
    return n_calls


_CALL_S = 30.0


def _some_tokens(model: moesaic.Model, n: int, seed: int) -> None:
    assert generate(model, n, seed) == reference.tokens(48, seed)[:n]


def _some_rows(model: moesaic.Model, n: int, seed: int) -> None:
    assert model.forward(fault_rig.long_prompt(n)).tobytes() == reference.rows(n)


def _a_stream_left(model: moesaic.Model, n: int, seed: int) -> None:
    with contextlib.closing(
        model.stream(fault_rig.prompt(seed), max_tokens=200, temperature=0, ignore_eos=True)
    ) as chunks:
        for _ in itertools.islice(chunks, n % 5):
            pass


def _a_fork(model: moesaic.Model, n: int, seed: int) -> None:
    tokens = fault_rig.long_prompt(n + 1)
    with model.session() as session:
        session.forward(tokens[:n], logits=None)
        with session.fork() as other:
            last = other.forward(tokens[n:])
            assert last.tobytes() == session.forward(tokens[n:]).tobytes()


_CALLS = (_some_tokens, _some_tokens, _some_rows, _a_stream_left, _a_fork)


def coordinator_killed_in_a_pull(rig: Rig, i: int) -> Figures:
    """Kill the one from whom weights come: the next goes on with the half that is there."""
    rig.pull_slowly()
    fraction = dice(i, "pull").uniform(0.05, 0.95)
    with coordinator(rig, once=False) as process:
        assert process.stdout is not None
        for said in process.stdout:
            word, _, rest = said.strip().partition(" ")
            if word == "loaded" or (word == "load" and float(rest) >= fraction):
                break
        process.kill()
        process.stdout.read()
    for proxy in rig.proxies:
        proxy.heal()
    assert all(rig.lives()), "a worker died with its coordinator"
    rig.settle()
    with rig.load() as model:
        check(model)
    rig.settle()
    halves = rig.half_files()
    assert not halves, f"left behind: {halves}"
    slices = [node.weights for node in rig.plan.nodes]
    read = [node.bytes_read for node in rig.cluster.nodes]
    share = max(r / s for r, s in zip(read, slices, strict=True))
    assert share <= 1.02, f"{share:.3f} times the slice was read or fetched"
    return {"read_of_slice": share}


def all_killed_at_once(rig: Rig, i: int) -> Figures:
    """A power cut for all workers, of a generation that waits for them: the same tokens."""
    rig.revive()
    at = 1 + 73 * i % 200
    got: list[int] = []
    cut = Once(lambda: [rig.kill(k) for k in range(len(rig.workers))])
    back = threading.Thread(target=rig.revive)
    with rig.load(on_loss="wait", wait_seconds=60) as model:
        try:
            for chunk in stream(model, 220):
                got += chunk
                if len(got) >= at and not cut.done:
                    cut()
                    back.start()
            took = cut.seconds_ago()
        finally:
            if back.ident is not None:
                back.join()
        assert got == reference.tokens(220), f"other tokens after {at}: {got}"
    return {"whole_after_s": took}


def stopped_in_a_load(rig: Rig, i: int) -> Figures:
    """SIGSTOP while weights come: a short one is waited for, a long one is a named error."""
    rig.pull_slowly()
    victim = i % len(rig.workers)
    seconds = (1.0, 5.0)[i // 2 % 2]
    stop = Once(lambda: rig.signal(victim, signal.SIGSTOP))
    wake = threading.Timer(seconds, lambda: rig.signal(victim, signal.SIGCONT))

    def progress(stage: str, done: int, total: int) -> None:
        if stage.endswith(rig.addresses[victim]) and done >= total // 2 and not stop.done:
            stop()
            wake.start()

    error = None
    try:
        with rig.load(progress=progress) as model:
            check(model)
    except fault_rig.LOSS as caught:
        error = caught
    took = stop.seconds_ago()
    wake.join()
    if seconds < 3:
        assert error is None, error
    else:
        assert error is not None, "5 s of silence were not seen"
        assert took < LOST_S + LATE_S, f"{took:.1f} s: {error}"
        assert rig.addresses[victim] in str(error), error
    for proxy in rig.proxies:
        proxy.heal()
    rig.settle()
    with rig.load() as model:
        check(model)
    return {"seconds": seconds, "said_after_s": took}
