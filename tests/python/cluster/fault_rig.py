"""A small cluster to be harmed: worker processes that tests may kill, each behind a proxy.

The cases (``fault_cases``) are functions of a rig and a number; the tests run a few of each, the
campaign many. Workers live on from case to case and are started again where one was killed.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from fault_proxy import FaultProxy
from processes import alive

import moesaic
from moesaic.launcher import LocalLauncher

DEMO = Path(str(resources.files("moesaic") / "data" / "demo.gguf"))
N_CTX = 512
PROMPT = list(range(5, 45))
#: Promised: within it the caller knows. The promise is for a machine that has time; ``LATE_S``
#: is the room that tests leave a loaded one, and the campaign notes what was really taken.
LOST_S = 5.0
LATE_S = 3.0
FREED_S = 30.0  # promised: then a lost coordinator's cache is free again
DRIFT = 16_000_000  # bytes that a process may grow by in however many cases
#: What a caller may get from a cluster that is harmed: it names the node, and it is one of these.
LOSS = (moesaic.WorkerLost, moesaic.NetError, moesaic.DeadlineError, moesaic.ProtocolError)


@dataclass(frozen=True)
class Footprint:
    """What a process takes."""

    rss: int  # bytes
    descriptors: int

    @staticmethod
    def of(pid: int) -> Footprint:
        """Look at a process."""
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return Footprint(pages * os.sysconf("SC_PAGESIZE"), len(os.listdir(f"/proc/{pid}/fd")))


class Rig:
    """Workers of this machine, as processes, each behind a proxy of its own.

    Parameters
    ----------
    folder : pathlib.Path
        For the cache of pulled weights.
    n : int
        Workers.
    pull : bool
        Whether workers have no copy of the model and pull it.
    """

    def __init__(self, folder: Path, n: int = 2, *, pull: bool = False) -> None:
        self.folder = folder
        models = folder / "models"
        models.mkdir(exist_ok=True)
        if not pull:
            (models / DEMO.name).symlink_to(DEMO)
        self.cache = folder / "cache"
        self.launcher = LocalLauncher(models=models, cache=self.cache, memory=10**9)
        self.key = self.launcher.key.text()
        self.workers = self.launcher.start(n)
        self.proxies = [FaultProxy(address) for address in self.workers]
        #: A coordinator that lives as long as the rig: the object that must stay usable.
        self.cluster = self.connect()
        #: Who holds what in all loads: measured rates differ from time to time, and so would plans.
        self.plan = self.cluster.plan(DEMO, n_ctx=N_CTX)
        (folder / "plan.json").write_text(json.dumps(self.plan.to_dict()))
        self._first: dict[str, dict[int, Footprint]] = {}  # by kind of case
        self._n_cases: collections.Counter[str] = collections.Counter()

    @property
    def addresses(self) -> list[str]:
        """Of the proxies: what coordinators are told."""
        return [proxy.address for proxy in self.proxies]

    def connect(self) -> moesaic.Cluster:
        """Return a new coordinator; links go through the proxies."""
        return moesaic.Cluster(self.addresses, key=self.key)

    def load(self, cluster: moesaic.Cluster | None = None, **options: Any) -> moesaic.Model:
        """Load the demo model, deterministic."""
        options.setdefault("progress", False)
        options.setdefault("deterministic", True)
        options.setdefault("plan", self.plan)
        options.setdefault("n_ctx", N_CTX)
        return (cluster or self.cluster).load(DEMO, **options)

    def signal(self, i: int, number: int) -> None:
        """Send a signal to worker i."""
        self.launcher.kill(self.workers[i], number)

    def kill(self, i: int) -> None:
        """Cut the power of worker i. Gone when this returns: other threads may ask at once."""
        self.signal(i, signal.SIGKILL)
        eventually(lambda: not self.lives()[i], LOST_S, "it is dead")

    def pids(self) -> list[int]:
        """Of the workers."""
        return list(self.launcher.pids)

    def lives(self) -> list[bool]:
        """Whether each worker's process runs."""
        return [alive(pid) for pid in self.pids()]

    def revive(self, *, forget: bool = False) -> None:
        """Start dead workers again. forget: and remove what they had cached."""
        for i, lives in enumerate(self.lives()):
            if not lives:
                if forget:
                    self.forget()
                self.launcher.restart(self.workers[i])
        for proxy in self.proxies:
            proxy.heal()

    def pull_slowly(self) -> None:
        """Make workers that hold and have cached nothing, behind links that take their time."""
        for i, lives in enumerate(self.lives()):
            if lives:
                self.kill(i)
        self.revive(forget=True)
        self.cluster.measure()  # what a load does first; not over the slow links
        for proxy in self.proxies:
            proxy.rate = 4e6

    def forget(self) -> None:
        """Remove pulled weights from the disk."""
        for path in self.cache.glob("**/*"):
            if path.is_file():
                path.unlink(missing_ok=True)

    def half_files(self) -> list[str]:
        """Return files of pulls that did not end, and temporary ones."""
        return [
            path.name
            for path in self.cache.glob("**/*")
            if path.name.endswith((".part", ".journal")) or ".tmp-" in path.name
        ]

    def settle(self) -> None:
        """Wait until no worker has a session or a deployment."""
        eventually(
            lambda: all(n.state == "idle" for n in self.cluster.nodes), FREED_S, "workers idle"
        )

    def grown(self, kind: str, *, warm_up: int) -> dict[str, float]:
        """Return by how much a process has grown since cases of this kind began; fail when by much.

        The first ``warm_up`` cases fill allocators and pools. Workers that were started again
        meanwhile begin anew.
        """
        now = {pid: Footprint.of(pid) for pid in (os.getpid(), *self.pids())}
        self._n_cases[kind] += 1
        if self._n_cases[kind] <= warm_up or self._first.get(kind, {}).keys() != now.keys():
            self._first[kind] = now
            return {}
        first = self._first[kind]
        for pid, then in first.items():
            assert now[pid].rss < then.rss + DRIFT, f"{now[pid]}, at first {then}"
            assert now[pid].descriptors <= then.descriptors + 2, f"{now[pid]}, at first {then}"
        return {"drift_mb": max(now[pid].rss - then.rss for pid, then in first.items()) / 1e6}

    def close(self) -> None:
        """End everything."""
        self.cluster.close()
        for proxy in self.proxies:
            proxy.close()
        pids = self.pids()
        self.launcher.close()
        assert not any(alive(pid) for pid in pids), "a worker outlived its launcher"


@contextlib.contextmanager
def rig(folder: Path, n: int = 2, *, pull: bool = False) -> Iterator[Rig]:
    """Make a rig for a block."""
    made = Rig(folder, n, pull=pull)
    try:
        yield made
    finally:
        made.close()


class Reference:
    """What the demo model says on one process, undisturbed; computed once."""

    def __init__(self) -> None:
        self._tokens: dict[tuple[int, int], list[int]] = {}
        self._rows: dict[int, bytes] = {}
        self._model: moesaic.Model | None = None

    @property
    def model(self) -> moesaic.Model:
        """The model itself, on this process."""
        if self._model is None:
            self._model = moesaic.Model(DEMO, n_ctx=N_CTX, deterministic=True, progress=False)
        return self._model

    def tokens(self, n: int, seed: int = 0) -> list[int]:
        """Return n tokens after the prompt of a seed."""
        key = (n, seed)
        if key not in self._tokens:
            self._tokens[key] = generate(self.model, n, seed)
        return self._tokens[key]

    def rows(self, n: int) -> bytes:
        """Return logits of the last of n rows."""
        if n not in self._rows:
            self._rows[n] = self.model.forward(long_prompt(n)).tobytes()
        return self._rows[n]


reference = Reference()


def prompt(seed: int) -> list[int]:
    """Return 40 tokens."""
    return [(7 * seed + 13 * i) % 500 + 5 for i in range(40)]


def long_prompt(n: int) -> list[int]:
    """Return n tokens."""
    return [(11 * i) % 700 + 5 for i in range(n)]


def generate(model: moesaic.Model, n: int, seed: int = 0) -> list[int]:
    """Return n sampled tokens: greedy for seed 0, else drawn."""
    kind = {"temperature": 0.0} if seed == 0 else {"temperature": 0.8, "seed": seed}
    out = model.generate(prompt(seed), max_tokens=n, ignore_eos=True, **kind)
    return [int(t) for t in out.tokens]


def check(model: moesaic.Model, n: int = 24) -> None:
    """Assert that a model says what the reference says."""
    got = generate(model, n)
    assert got == reference.tokens(n), f"other tokens: {got} instead of {reference.tokens(n)}"


def eventually(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait until something is so; return how long it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - begin


class Once:
    """Does something once, from whatever thread, and remembers when."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._action = action
        self._lock = threading.Lock()
        self.at: float | None = None

    def __call__(self, *_: object) -> None:
        with self._lock:
            if self.at is not None:
                return
            self.at = time.monotonic()
        self._action()

    @property
    def done(self) -> bool:
        """Whether it was done."""
        return self.at is not None

    def seconds_ago(self) -> float:
        """Return how long ago it was done."""
        assert self.at is not None, "it has not been done"
        return time.monotonic() - self.at


@contextlib.contextmanager
def after(seconds: float, action: Callable[[], object]) -> Iterator[None]:
    """Do something on another thread after a while; the block ends after that."""
    timer = threading.Timer(seconds, action)
    timer.start()
    try:
        yield
    finally:
        timer.join()


def dice(i: int, name: str) -> random.Random:
    """Return the random numbers of a case: the same in every run."""
    return random.Random(f"{name} {i}")
