"""A process whose model's file is harmed while it reads it; ``fault_files`` starts it.

    python fault_reading.py FOLDER MOMENT KIND SEED

MOMENT: "load" and "decode" of a model on this process, "serving" of the file to a worker that
pulls its weights, or "copy": a worker decodes with a copy of its own. KIND: "cut" off, a "hole"
punched, or a "read error": a hole in a file system that has no page left to show for it (FOLDER
is a small one then). The process must live, have an IoError (of its worker, at most a loss) soon,
and answer as before when the file is whole again. The last line on stdout is "took" and seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import moesaic
from moesaic.launcher import LocalLauncher

KEEP_SIZE_PUNCH_HOLE = 3
PROMPT = list(range(5, 45))
OPTIONS = {"n_ctx": 512, "deterministic": True}


def punch(path: Path, at: int, n: int) -> None:
    """Give pages of a file back: they read as zeros from now on."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    with path.open("r+b") as file:
        if libc.fallocate(file.fileno(), KEEP_SIZE_PUNCH_HOLE, at, n) != 0:
            sys.exit(f"no hole: {os.strerror(ctypes.get_errno())}")


def fill(folder: Path) -> None:
    """Take the last page of a file system."""
    with (folder / "ballast").open("wb", buffering=0) as ballast:
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while True:
                    ballast.write(bytes(size))


class File:
    """The model's file, which is harmed once and made whole again."""

    def __init__(self, path: Path, good: Path, kind: str, random: Random) -> None:
        self.path, self._good, self._kind, self._random = path, good, kind, random
        self.at: float | None = None
        path.parent.mkdir(exist_ok=True)
        shutil.copyfile(good, path)

    def harm(self) -> None:
        """Do it."""
        if self.at is not None:
            return
        size = self.path.stat().st_size
        at = int(self._random.uniform(0.05, 0.9) * size) & ~4095
        if self._kind == "cut":
            os.truncate(self.path, at)
        else:
            punch(self.path, at, size - at if self._random.random() < 0.5 else 1 << 16)
        if self._kind == "read error":
            fill(self.path.parent)
        self.at = time.monotonic()

    def heal(self) -> None:
        """Lay a whole one there: another inode of the same name."""
        self.path.unlink()
        (self.path.parent / "ballast").unlink(missing_ok=True)
        shutil.copyfile(self._good, self.path)


def tokens(model: moesaic.Model, each: Callable[[int], object] = lambda n: None) -> list[int]:
    """Return 200 greedy tokens; ``each`` is told how many there are."""
    got: list[int] = []
    for chunk in model.stream(PROMPT, max_tokens=200, temperature=0, ignore_eos=True):
        got += [int(token) for token in chunk.tokens]
        each(len(got))
    return got


def at_once(path: Path) -> list[int]:
    """Return the tokens of a whole file; it is not mapped any more then."""
    with moesaic.Model(path, progress=False, **OPTIONS) as model:
        return tokens(model)


def must_fail(file: File, call: Callable[[], object], *, worker: bool) -> float:
    """Run what harms the file; return how long after that the error came."""
    kinds = (moesaic.IoError, moesaic.WorkerLost) if worker else moesaic.IoError
    try:
        call()
    except kinds as error:
        if file.path.name not in str(error):
            sys.exit(f"it does not name the file: {error}")
    else:
        sys.exit("no error came" if file.at else "the file was not harmed")
    if file.at is None:
        sys.exit("an error before the file was harmed")
    return time.monotonic() - file.at


def alone(file: File, moment: str, random: Random) -> float:
    """Load and decode on this process."""
    want = at_once(file.path)
    fraction, at = random.random(), random.randrange(1, 150)

    def progress(_: str, done: int, total: int) -> None:
        if done >= fraction * total:
            file.harm()

    def run() -> None:
        loading = moment == "load"
        with moesaic.Model(file.path, progress=progress if loading else False, **OPTIONS) as model:
            if loading:
                model.forward(PROMPT)
            tokens(model, lambda n: file.harm() if n >= at else None)

    took = must_fail(file, run, worker=False)
    file.heal()
    if at_once(file.path) != want:
        sys.exit("other tokens from the whole file")
    return took


def with_worker(file: File, moment: str, random: Random) -> float:
    """Pull the file to a worker, or decode on one that has a copy."""
    want = at_once(file.path)
    fraction, at = random.uniform(0.0, 0.9), random.randrange(1, 150)
    copies = moment == "copy"
    empty = file.path.parent / "none"
    empty.mkdir()
    launcher = LocalLauncher(models=file.path.parent if copies else empty, memory=10**9)
    with moesaic.Cluster(launcher.start(1), key=launcher.key.text()) as cluster:
        pid = cluster.nodes[0].pid

        def progress(stage: str, done: int, total: int) -> None:
            if not copies and done >= fraction * total:
                file.harm()

        def run() -> None:
            name = file.path.name if copies else file.path
            with cluster.load(name, progress=progress, **OPTIONS) as model:
                tokens(model, lambda n: file.harm() if copies and n >= at else None)

        took = must_fail(file, run, worker=True)
        file.heal()
        with cluster.load(file.path, progress=False, **OPTIONS) as model:
            if tokens(model) != want:
                sys.exit("other tokens from the whole file")
        if cluster.nodes[0].pid != pid:
            sys.exit("the worker's process ended")
    launcher.close()
    return took


def main(folder: str, moment: str, kind: str, seed: str) -> None:
    """Run one case."""
    random = Random(f"{moment} {kind} {seed}")
    good = Path(moesaic.Model.demo(progress=False, threads=1).path)
    file = File(Path(folder) / "models" / "model.gguf", good, kind, random)
    took = (alone if moment in ("load", "decode") else with_worker)(file, moment, random)
    print("took", took)


if __name__ == "__main__":
    main(*sys.argv[1:])
