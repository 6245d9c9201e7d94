"""Cases: files with equal headers and other weights, wherever weights are known again.

Each case makes a variant of the model's file in which some weights differ, and lets a cluster meet
both. Every answer must be that of the file that was asked for, bit for bit, or an error that names
what differs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
from fault_kills import Figures
from fault_rig import DEMO, Rig, dice

import moesaic
from moesaic.launcher import LocalLauncher

TOKENS = list(range(5, 21))
N_CTX = 64


@dataclass(frozen=True)
class Known:
    """A file and what one machine answers with it."""

    path: Path
    logits: npt.NDArray[np.float32]
    fingerprint: str


def must(held_true: bool, text: str) -> None:
    """Fail with a text."""
    assert held_true, text


def variant(source: Path, target: Path, random: Random) -> None:
    """Write a copy whose headers are equal and of whose tensors one or more differ."""
    raw = bytearray(source.read_bytes())
    with moesaic.GGUF(source) as file:
        names = list(file.tensors)
        for name in random.sample(names, random.choice([1, 3, len(names)])):
            tensor = file.tensors[name].raw.tobytes()
            at = raw.find(tensor)
            for _ in range(random.choice([1, 40])):
                raw[at + random.randrange(len(tensor))] ^= random.choice([1, 0x10])
    target.write_bytes(raw)


def known(path: Path) -> Known:
    """Ask one machine."""
    with moesaic.Model(path, n_ctx=N_CTX, deterministic=True, progress=False) as model:
        return Known(path, model.forward(TOKENS), model.fingerprint)


@dataclass
class Bench:
    """Two files, A and B, and workers with a folder of copies each."""

    folder: Path
    random: Random
    a: Known
    b: Known

    @contextmanager
    def cluster(self, *copies: Path | None) -> Iterator[moesaic.Cluster]:
        """Start a worker for each folder of copies; None: it has none."""
        launchers: list[LocalLauncher] = []
        try:
            addresses: list[str] = []
            for i, models in enumerate(copies):
                empty = self.folder / "empty"
                empty.mkdir(exist_ok=True)
                launcher = LocalLauncher(
                    models=models or empty, cache=self.folder / f"cache{i}", memory=10**9
                )
                if launchers:
                    launcher._key = launchers[0]._key
                launchers.append(launcher)
                addresses += launcher.start(1)
            with moesaic.Cluster(addresses, key=launchers[0].key.text()) as cluster:
                yield cluster
        finally:
            for launcher in launchers:
                launcher.close()

    def put(self, what: Known, *where: str) -> Path:
        """Lay a copy under the name that both have, as another inode."""
        target = self.folder.joinpath(*where, "m.gguf")
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_suffix(".new")
        shutil.copyfile(what.path, fresh)
        fresh.replace(target)
        return target

    def is_right(self, cluster: moesaic.Cluster, path: Path, want: Known, **options: str) -> None:
        """Load and compare with the one machine."""
        with cluster.load(
            path, n_ctx=N_CTX, deterministic=True, progress=False, **options
        ) as model:
            must(model.fingerprint == want.fingerprint, "the fingerprint is another one's")
            must(np.array_equal(model.forward(TOKENS), want.logits), "other weights answered")


def own_copies(bench: Bench) -> None:
    """Workers' copies differ: by name refused, by path right."""
    bench.put(bench.a, "one")
    bench.put(bench.b, "two")
    with bench.cluster(bench.folder / "one", bench.folder / "two") as cluster:
        try:
            cluster.load("m.gguf", n_ctx=N_CTX, progress=False).close()
        except moesaic.FormatError as error:
            must(all(node.address in str(error) for node in cluster.nodes), str(error))
        else:
            must(False, "copies that differ were loaded by name")
        path = bench.put(bench.random.choice([bench.a, bench.b]), "mine")
        want = bench.a if path.read_bytes() == bench.a.path.read_bytes() else bench.b
        bench.is_right(cluster, path, want)


def held(bench: Bench) -> None:
    """Workers hold A in memory when B is asked for."""
    with bench.cluster(None, None) as cluster:
        for what in bench.random.choices([bench.a, bench.b], k=3):
            verify = bench.random.choice(["first", "always", "never"])
            bench.is_right(cluster, bench.put(what, "mine"), what, verify=verify)


def cached(bench: Bench) -> None:
    """The folders of pulled weights have A's when B is asked for by new workers."""
    for what in (bench.a, bench.b, bench.a):
        with bench.cluster(None, None) as cluster:
            bench.is_right(cluster, bench.put(what, "mine"), what)


def pulled(bench: Bench) -> None:
    """One worker has B, the coordinator A: what the other pulls is A's."""
    bench.put(bench.b, "one")
    path = bench.put(bench.a, "mine")
    with bench.cluster(bench.folder / "one", None) as cluster:
        bench.is_right(cluster, path, bench.a, verify=bench.random.choice(["first", "never"]))


def session(bench: Bench) -> None:
    """A session that was saved with A is refused by B, on one machine and on workers."""
    saved = bench.folder / "s.session"
    with moesaic.Model(bench.a.path, n_ctx=N_CTX, progress=False) as model, model.session() as s:
        s.forward(TOKENS)
        s.save(saved)
    path = bench.put(bench.b, "mine")
    with bench.cluster(None) as cluster:
        on_workers = cluster.load(path, n_ctx=N_CTX, progress=False)
        for model in (moesaic.Model(path, n_ctx=N_CTX, progress=False), on_workers):
            try:
                model.load_session(saved)
            except moesaic.FormatError as error:
                must(bench.a.fingerprint in str(error), str(error))
            else:
                must(False, "a session of other weights was taken")
            model.close()


def in_place(bench: Bench) -> None:
    """A worker's copy is written over while it is loaded, with its times put back or not."""
    copy = bench.put(bench.a, "one")
    path = bench.put(bench.a, "mine")
    with bench.cluster(bench.folder / "one") as cluster:
        model = cluster.load(path, n_ctx=N_CTX, deterministic=True, progress=False)
        must(np.array_equal(model.forward(TOKENS), bench.a.logits), "other weights answered")
        times = os.stat(copy)
        with copy.open("r+b") as file:
            file.write(bench.b.path.read_bytes())
        if bench.random.random() < 0.5:
            os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
        try:
            model.forward([*TOKENS, 1])
        except moesaic.MoesaicError as error:
            must("m.gguf" in str(error), str(error))
        else:
            must(False, "a file that had changed answered")
        model.close()
        bench.is_right(cluster, path, bench.a)
        bench.is_right(cluster, bench.put(bench.b, "mine"), bench.b)


def renamed(bench: Bench) -> None:
    """A worker's copy is replaced by another file while it is held."""
    bench.put(bench.a, "one")
    with bench.cluster(bench.folder / "one") as cluster:
        bench.is_right(cluster, Path("m.gguf"), bench.a)
        bench.put(bench.b, "one")
        bench.is_right(cluster, Path("m.gguf"), bench.b)
        bench.is_right(cluster, bench.put(bench.a, "mine"), bench.a)


def half_written(bench: Bench) -> None:
    """A worker's copy is still being written: A's length and beginning, the rest not there yet."""
    raw = bench.a.path.read_bytes()
    target = bench.folder / "one" / "m.gguf"
    target.parent.mkdir()
    end = bench.random.randrange(len(raw) // 2, len(raw) - 1)
    target.write_bytes(raw[:end])
    if bench.random.random() < 0.7:
        os.truncate(target, len(raw))
    path = bench.put(bench.a, "mine")
    with bench.cluster(bench.folder / "one", None) as cluster:
        bench.is_right(cluster, path, bench.a)


KINDS: dict[str, Callable[[Bench], None]] = {
    "own copies": own_copies,
    "held": held,
    "cached": cached,
    "pulled": pulled,
    "session": session,
    "changed in place": in_place,
    "renamed": renamed,
    "half written": half_written,
}


def other_weights(rig: Rig | None, i: int, kind: str) -> Figures:
    """Run one case; a rig is not used: workers with two models are a case's own."""
    random = dice(i, f"identity {kind}")
    with tempfile.TemporaryDirectory(prefix="moesaic_identity_") as folder:
        variant(DEMO, Path(folder) / "b.gguf", random)
        a = known(DEMO)
        b = known(Path(folder) / "b.gguf")
        must(a.fingerprint != b.fingerprint, "one fingerprint for two models")
        KINDS[kind](Bench(Path(folder), random, a, b))
    return {}
