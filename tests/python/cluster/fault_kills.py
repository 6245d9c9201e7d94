"""Cases: the power of one worker is cut at some moment. Each is a function of a rig and a number.

What must hold each time: the caller has an error that names the node within 5 s; the others live;
the Cluster object is usable; when the worker is back the next load works and says what it must.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import fault_rig
from fault_proxy import FROM_WORKER, TO_WORKER
from fault_rig import (
    LATE_S,
    LOSS,
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

Figures = dict[str, float]
Case = Callable[[Rig, int], Figures]


class Loss:
    """What a caller was told, and how long after the power had gone."""

    def __init__(self, rig: Rig, victim: int, killed: Once, call: Callable[[], object]) -> None:
        """Run what must end with the loss of a worker, and look at what is left."""
        self.error = self._caught(call)
        took = killed.seconds_ago()
        error = self.error
        assert took < LOST_S + LATE_S, f"it took {took:.1f} s to say: {error}"
        assert named(rig, victim, error), f"it does not name {rig.addresses[victim]}: {error}"
        if isinstance(error, moesaic.WorkerLost):
            assert error.node in (rig.addresses[victim], rig.workers[victim]), error
            assert error.layers, error
            assert "load" in str(error), f"it does not say what to do: {error}"
        others = [i != victim for i in range(len(rig.workers))]
        eventually(lambda: rig.lives() == others, LATE_S, "it is dead and the others live")
        assert rig.lives() == others, "a survivor died"
        self.figures: Figures = {"said_after_s": took}

    @staticmethod
    def _caught(call: Callable[[], object]) -> Exception:
        try:
            call()
        except LOSS as error:
            return error
        raise AssertionError("nothing was lost")


def lost(rig: Rig, victim: int, killed: Once, call: Callable[[], object]) -> Figures:
    """Return the figures of a loss."""
    return Loss(rig, victim, killed, call).figures


def named(rig: Rig, victim: int, error: Exception) -> bool:
    """Whether an error says who it is about."""
    return any(address in str(error) for address in (rig.addresses[victim], rig.workers[victim]))


def usable_again(rig: Rig, victim: int, *, forget: bool = False) -> None:
    """Assert that the cluster object tells who is lost, and serves when the worker is back."""
    states = [node.state for node in rig.cluster.nodes]
    assert [state == "lost" for state in states] == [i == victim for i in range(len(states))], (
        f"worker {victim} was killed; the cluster says {states}"
    )
    rig.revive(forget=forget)
    with rig.load() as model:
        check(model)


def in_handshake(rig: Rig, i: int) -> Figures:
    """After a few bytes of the first connection: in TLS, in hello, in the first question."""
    rig.revive()
    victim = i % len(rig.workers)
    random = dice(i, "handshake")
    kill = Once(lambda: rig.kill(victim))
    direction = random.choice([TO_WORKER, FROM_WORKER])
    rig.proxies[victim].when(direction, random.randrange(900), kill)

    def connect() -> None:
        with rig.connect() as cluster:
            while True:  # hands were shaken before that many bytes had come
                lost_now = [n for n in cluster.nodes if n.state == "lost"]
                if lost_now:
                    raise moesaic.NetError(f"{lost_now[0].address}: {lost_now[0].error}")

    figures = lost(rig, victim, kill, connect)
    usable_again(rig, victim)
    return figures


def in_load(rig: Rig, i: int, fraction: float, late: float = 0.0) -> Figures:
    """While it pulls its slice, at a fraction of it; and ``late`` seconds at most after that."""
    victim = i % len(rig.workers)
    random = dice(i, "load")
    rig.pull_slowly()
    kill = Once(lambda: rig.kill(victim))
    wait = random.uniform(0, late)

    def progress(stage: str, done: int, total: int) -> None:
        if stage.endswith(rig.addresses[victim]) and done >= fraction * total and not kill.done:
            time.sleep(wait)
            kill()

    def load() -> None:
        with rig.load(progress=progress) as model:
            if not kill.done:  # too fast to be seen at that moment: right after it then
                kill()
            generate(model, 200)

    figures = lost(rig, victim, kill, load)
    usable_again(rig, victim)
    rig.settle()
    halves = rig.half_files()
    assert not halves, f"left behind: {halves}"
    return figures


def in_load_10(rig: Rig, i: int) -> Figures:
    """At a tenth of its slice."""
    return in_load(rig, i, 0.1)


def in_load_50(rig: Rig, i: int) -> Figures:
    """At half of its slice."""
    return in_load(rig, i, 0.5)


def in_load_90(rig: Rig, i: int) -> Figures:
    """At nine tenths of its slice."""
    return in_load(rig, i, 0.9)


def in_cache_write(rig: Rig, i: int) -> Figures:
    """About when the slice is whole: last writes, fsync, rename, digests."""
    return in_load(rig, i, 0.97, late=0.08)


def in_prefill(rig: Rig, i: int) -> Figures:
    """While prompts run through."""
    rig.revive()
    victim = i % len(rig.workers)
    kill = Once(lambda: rig.kill(victim))
    with rig.load() as model:

        def run() -> None:
            for k in range(100_000):
                model.forward([k % 700 + 5, *fault_rig.long_prompt(490)])

        with after(dice(i, "prefill").uniform(0.0, 0.4), kill):
            figures = lost(rig, victim, kill, run)
        still_lost(rig, victim, model)
    usable_again(rig, victim)
    return figures


def in_decode(rig: Rig, i: int) -> Figures:
    """After a certain token."""
    rig.revive()
    victim = i % len(rig.workers)
    random = dice(i, "decode")
    kill = Once(lambda: rig.kill(victim))
    at = random.randrange(1, 200)
    got: list[int] = []
    with rig.load() as model:

        def run() -> None:
            for chunk in stream(model, 400):
                got.extend(chunk)
                if len(got) >= at:
                    kill()

        loss = Loss(rig, victim, kill, run)
        assert isinstance(loss.error, moesaic.WorkerLost), loss.error
        said = [int(t) for t in loss.error.tokens]
        want = reference.tokens(400)
        assert len(said) >= at and said == want[: len(said)], f"other tokens: {said}"
        still_lost(rig, victim, model)
    usable_again(rig, victim)
    return loss.figures


def stream(model: moesaic.Model, n: int, **options: Any) -> Any:
    """Yield the token ids of the reference's greedy generation as they come."""
    for chunk in model.stream(
        fault_rig.prompt(0), max_tokens=n, temperature=0.0, ignore_eos=True, **options
    ):
        yield [int(t) for t in chunk.tokens]


def still_lost(rig: Rig, victim: int, model: moesaic.Model) -> None:
    """A model whose worker was lost says so again, at once, and does not hang."""
    begin = time.monotonic()
    try:
        generate(model, 5)
    except moesaic.WorkerLost as error:
        assert named(rig, victim, error)
    else:
        raise AssertionError("it works without its worker")
    assert time.monotonic() - begin < LOST_S + LATE_S


def in_session_save(rig: Rig, i: int) -> Figures:
    """While rows of the cache come back for a file: the old file stays as it was."""
    rig.revive()
    victim = i % len(rig.workers)
    folder = rig.folder / "sessions"
    folder.mkdir(exist_ok=True)
    path = folder / "kept.session"
    kill = Once(lambda: rig.kill(victim))
    with rig.load() as model, model.session() as session:
        session.forward(fault_rig.long_prompt(400))
        before = rig.proxies[victim].passed[FROM_WORKER]
        session.save(path)
        n_bytes = rig.proxies[victim].passed[FROM_WORKER] - before
        good = path.read_bytes()
        at = dice(i, "save").randrange(n_bytes)
        rig.proxies[victim].when(FROM_WORKER, at, kill)

        def save() -> None:
            while True:
                session.save(path)

        figures = lost(rig, victim, kill, save)
    assert path.read_bytes() == good, "the file of the session was harmed"
    left = [p.name for p in folder.iterdir() if p != path]
    assert not left, f"left behind: {left}"
    usable_again(rig, victim)
    with rig.load() as model, model.load_session(path) as session:
        more = session.forward([7, 8]).tobytes()
        with reference.model.session() as other:
            other.forward(fault_rig.long_prompt(400))
            assert other.forward([7, 8]).tobytes() == more, "the saved session goes on otherwise"
    return figures


def in_shutdown(rig: Rig, i: int) -> Figures:
    """While it ends, or while the model on it is closed: close() is never held up."""
    rig.revive()
    victim = i % len(rig.workers)
    random = dice(i, "shutdown")
    model = rig.load()
    kill = Once(lambda: rig.kill(victim))
    generate(model, 10)
    if i % 2 == 0:  # the worker had been told to end
        rig.signal(victim, signal.SIGTERM)
        time.sleep(random.uniform(0, 0.05))
        kill()
        figures = lost(rig, victim, kill, lambda: [generate(model, 50) for _ in range(1000)])
        begin = time.monotonic()
        model.close()
    else:
        with after(random.uniform(0, 0.01), kill):
            begin = time.monotonic()
            model.close()
        figures = {}
    took = time.monotonic() - begin
    assert took < LOST_S, f"close() took {took:.1f} s"
    usable_again(rig, victim)
    return figures


KILLS: dict[str, Case] = {
    "handshake": in_handshake,
    "load 10 %": in_load_10,
    "load 50 %": in_load_50,
    "load 90 %": in_load_90,
    "cache write": in_cache_write,
    "prefill": in_prefill,
    "decode": in_decode,
    "session save": in_session_save,
    "shutdown": in_shutdown,
}
#: Those in which weights are pulled: their rig is made with pull=True.
PULLED = ("load 10 %", "load 50 %", "load 90 %", "cache write")
