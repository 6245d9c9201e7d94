"""Cases: a second coordinator uses the workers while the first one loads, computes or loses one.

The second one's work is bounded in time, has no error, and has its own answers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import fault_rig
from fault_kills import Figures
from fault_rig import FREED_S, Rig, check, dice, eventually, generate, reference

import moesaic

SECOND_S = 10.0  # what a second user waits at most for work that takes below a second alone
MINE = ("load", "prefill", "loss")
THEIRS = ("load", "decode", "save")


class First:
    """A first user who does one thing again and again on a thread, until told to stop."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._over = threading.Event()
        self.n_done = 0
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                self._work()
                self.n_done += 1
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        """Wait for the end of what is under way."""
        self._over.set()
        self._thread.join(fault_rig.FREED_S)
        assert not self._thread.is_alive(), "the first user hangs"


@contextmanager
def first_user(rig: Rig, doing: str) -> Iterator[None]:
    """Keep a first user at something; with "loss", the last worker is dead for a while."""
    victim = len(rig.workers) - 1
    if doing == "load":
        first = First(lambda: rig.load().close())
        try:
            yield
        finally:
            first.stop()
        assert first.error is None, first.error
        return
    patient = {"on_loss": "wait", "wait_seconds": 60} if doing == "loss" else {}
    with rig.load(**patient) as model:
        if doing == "prefill":
            rows = reference.rows(490)
            first = First(lambda: _same(model.forward(fault_rig.long_prompt(490)).tobytes(), rows))
        else:
            first = First(lambda: _same(generate(model, 100, 1), reference.tokens(100, 1)))
        try:
            if doing == "loss":
                eventually(lambda: first.n_done > 0 or bool(first.error), FREED_S, "it works")
                rig.kill(victim)
            yield
        finally:
            rig.revive()
            first.stop()
        assert first.error is None, first.error


def _same(got: object, want: object) -> None:
    assert got == want, "the first user has other answers"


def second_user(rig: Rig, i: int, mine: str, theirs: str) -> Figures:
    """Load, decode or save as a second user, beside the first one's doing."""
    rig.revive()
    rig.settle()
    survivors = rig.addresses[:-1]
    path = rig.folder / "second.session"
    seed = i % 5
    reference.tokens(48, seed)
    with (
        moesaic.Cluster(survivors, key=rig.key) as cluster,
        rig.load(cluster, plan=None, kv_tokens=2048) as model,
        model.session() as session,
    ):
        session.feed(fault_rig.long_prompt(300))

        def load() -> None:
            with rig.load(cluster, plan=None) as another:
                check(another, 5)

        def decode() -> None:
            _mine(generate(model, 48, seed), reference.tokens(48, seed))

        def save() -> None:
            session.save(path)
            with model.load_session(path) as back:
                assert len(back) == 300

        work = {"load": load, "decode": decode, "save": save}[theirs]
        worst = 0.0
        with first_user(rig, mine):
            time.sleep(dice(i, f"{mine} {theirs}").uniform(0.0, 0.3))
            for _ in range(3):
                begin = time.monotonic()
                work()
                worst = max(worst, time.monotonic() - begin)
    path.unlink(missing_ok=True)
    assert worst < SECOND_S, f"{theirs} beside {mine}: {worst:.1f} s"
    return {"took_s": worst}


def _mine(got: list[int], want: list[int]) -> None:
    assert got == want, f"the second user has other tokens: {got}"
