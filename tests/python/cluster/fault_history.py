"""Case: eight clients of two coordinators, three workers that are killed, stopped and cut off.

Everything that happens is written down as a history, line by line: the begin and the end of each
operation, and those of each fault. The history alone is judged afterwards: every operation has an
end and ended in time; its answer is that of one machine, byte for byte, or a typed error, and an
error has a fault beside it. A model that waits for its workers has no errors at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import fault_others
from fault_kills import Figures
from fault_proxy import FROM_WORKER, TO_WORKER
from fault_rig import DEMO, LOSS, Rig, dice, eventually

import moesaic

N_CTX = 8192
CLIENTS = 8
PATIENCE_S = 20.0  # of on_loss="wait": longer than any fault, shorter than the longest generation
GRACE_S = 8.0  # after a fault has ended, until nothing may be its consequence any more
BOUND_S = 45.0  # an operation ends so soon after its begin or the last fault beside it, but for
LONG_S = 60.0  # long generations
PLAIN: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "top_p": 0.97, "repeat_penalty": 1.2, "penalty_last_n": -1},
    {"temperature": 0.7, "min_p": 0.02, "presence_penalty": 0.5},
]


def prompt(k: int) -> list[int]:
    """Return the tokens of a prompt; some begin alike."""
    random = Random(f"prompt {k % 8}")
    begin = [random.randrange(5, 500) for _ in range(random.randrange(3, 180))]
    return begin if k < 8 else [*begin[:100], 7, 8, k]


def digest(*rows: Any) -> str:
    """Return the digest of arrays' bytes."""
    sha = hashlib.sha256()
    for row in rows:
        sha.update(row.tobytes())
    return sha.hexdigest()[:16]


def generated(m: moesaic.Model, k: int, o: int, n: int) -> list[int]:
    """Generate n tokens."""
    out = m.generate(prompt(k), max_tokens=n, seed=k, ignore_eos=True, **PLAIN[o])
    return [int(token) for token in out.tokens]


def begun(m: moesaic.Model, k: int, o: int, n: int) -> list[int]:
    """Generate as a stream and leave it after n tokens."""
    stream = m.stream(prompt(k), max_tokens=n + 50, seed=k, ignore_eos=True, **PLAIN[o])
    got: list[int] = []
    with contextlib.closing(stream) as chunks:
        for chunk in chunks:
            got += [int(token) for token in chunk.tokens]
            if len(got) >= n:
                break
    return got[:n]


def forwarded(m: moesaic.Model, k: int, o: int, n: int) -> str:
    """Return logits of all rows."""
    return digest(m.forward(prompt(k)))


def forked(m: moesaic.Model, k: int, o: int, n: int) -> str:
    """Go on in a session and in a fork of it."""
    tokens = prompt(k)
    with m.session() as s:
        s.forward(tokens, logits=None)
        with s.fork(len(tokens) // 2) as f:
            other = f.forward([9, 10, 11], logits="last")
        return digest(other, s.forward([9, 10, 11], logits="last"))


def scored(m: moesaic.Model, k: int, o: int, n: int) -> str:
    """Score a continuation."""
    (score,) = m.score([prompt(k)], [[6, 7, 8]])
    return repr(score)


OPERATIONS: dict[str, Callable[[moesaic.Model, int, int, int], Any]] = {
    each.__name__: each for each in (generated, begun, forwarded, forked, scored)
}
GENERATIONS = ("generated", "begun")


class History:
    """Lines of JSON, each written before anything else happens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file = path.open("w")
        self._begin = time.monotonic()
        self._n = 0

    def write(self, **what: Any) -> None:
        """Add a line with its time."""
        with self._lock:
            line = {"at": round(time.monotonic() - self._begin, 4), **what}
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()

    @contextlib.contextmanager
    def fault(self, kind: str, who: int = -1) -> Any:
        """Write a fault's begin and end around a block."""
        self.write(event="fault", kind=kind, who=who)
        try:
            yield
        finally:
            self.write(event="healed", kind=kind, who=who)

    def operate(self, client: int, mode: str, m: moesaic.Model, call: list[Any]) -> None:
        """Run an operation of a client between two lines."""
        self.write(event="begin", client=client, mode=mode, call=call)
        name, *arguments = call
        try:
            answer = OPERATIONS[name](m, *arguments)
        except Exception as error:
            kind = "typed" if isinstance(error, LOSS) else "other"
            self.write(event="end", client=client, error=kind, text=f"{error!r}"[:300])
            time.sleep(0.05)  # a program would not ask again at once either
        else:
            self.write(event="end", client=client, answer=answer)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def client(history: History, n: int, mode: str, m: moesaic.Model, end: float, seed: int) -> None:
    """Call a model until the end. The first client of each coordinator generates at length."""
    random = Random(f"client {n} {seed}")
    most = int(min(N_CTX - 500, 50 * (end - time.monotonic())))
    while (left := end - time.monotonic()) > 0:
        if n < 2 and left > 5:
            call = ["generated", seed % 8, seed % len(PLAIN), most]
        else:
            name = random.choice(list(OPERATIONS))
            call = [name, random.randrange(12), 0, 1]
            if name in GENERATIONS:
                call[2:] = [random.randrange(len(PLAIN)), random.randrange(1, 60)]
        history.operate(n, mode, m, call)


class Faults:
    """What befalls the workers, one thing after the other, and a coordinator that is killed."""

    def __init__(self, rig: Rig, history: History, random: Random) -> None:
        self._rig, self._history, self._random = rig, history, random

    def one(self) -> None:
        """Do one, and make it good again."""
        kinds = [self.kill, self.kill, self.stop, self.cut, self.mute, self.all, self.coordinator]
        self._random.choice(kinds)(self._random.randrange(len(self._rig.workers)))

    def kill(self, who: int) -> None:
        """Kill a worker; it is back soon."""
        with self._history.fault("kill", who):
            self._rig.kill(who)
            time.sleep(self._random.uniform(0, 1.5))
            self._rig.revive()

    def stop(self, who: int) -> None:
        """Stop a worker for a while, noticed or not."""
        with self._history.fault("stop", who):
            self._rig.signal(who, signal.SIGSTOP)
            time.sleep(self._random.choice([0.5, 2, 4, 5]))
            self._rig.signal(who, signal.SIGCONT)

    def cut(self, who: int) -> None:
        """Cut the links to a worker, rudely or not."""
        with self._history.fault("cut", who):
            self._rig.proxies[who].cut(rude=self._random.random() < 0.5)

    def mute(self, who: int) -> None:
        """Let nothing come from a worker for a while."""
        with self._history.fault("mute", who):
            self._rig.proxies[who].mute = {self._random.choice([TO_WORKER, FROM_WORKER])}
            time.sleep(self._random.uniform(0.5, 4))
            self._rig.proxies[who].heal()

    def all(self, who: int) -> None:
        """Kill all workers."""
        with self._history.fault("all"):
            for k in range(len(self._rig.workers)):
                self._rig.kill(k)
            time.sleep(0.3)
            self._rig.revive()

    def coordinator(self, who: int) -> None:
        """Let a third coordinator load and compute, and kill it: no fault to the others."""
        self._history.write(event="coordinator")
        with fault_others.coordinator(self._rig, once=False) as process:
            time.sleep(self._random.uniform(0.5, 2.5))
            process.kill()
            assert process.stdout is not None
            process.stdout.read()


def recorded(rig: Rig, i: int, seconds: float, path: Path) -> None:
    """Write a history of so many seconds."""
    random = dice(i, "history")
    history = History(path)
    options: dict[str, Any] = {"n_ctx": N_CTX, "kv_tokens": 2 * N_CTX, "plan": None}
    modes = ("wait", ("raise", "replan")[i % 2])
    with contextlib.ExitStack() as stack:
        models = []
        for mode in modes:
            cluster = stack.enter_context(rig.connect())
            loaded = rig.load(cluster, on_loss=mode, wait_seconds=PATIENCE_S, **options)
            models.append(stack.enter_context(loaded))
        end = time.monotonic() + seconds
        clients = [
            threading.Thread(
                target=client, args=(history, n, modes[n % 2], models[n % 2], end, i), daemon=True
            )
            for n in range(CLIENTS)
        ]
        for thread in clients:
            thread.start()
        faults = Faults(rig, history, random)
        while time.monotonic() < end - 2:
            time.sleep(random.uniform(0.3, 3))
            faults.one()
        for thread in clients:
            thread.join(max(0.0, end + LONG_S - time.monotonic()))
        history.write(event="over", hung=sum(thread.is_alive() for thread in clients))
        history.close()


@dataclass
class Operation:
    """One line of begin with its line of end."""

    begin: dict[str, Any]
    end: dict[str, Any] | None = None


class Judge:
    """One machine's answers, and what it thinks of a history."""

    def __init__(self) -> None:
        self._model: moesaic.Model | None = None
        self._answers: dict[str, Any] = {}

    def answer(self, call: list[Any]) -> Any:
        """Return what one machine answers; a generation's beginning is that of a longer one."""
        if self._model is None:
            self._model = moesaic.Model(DEMO, n_ctx=N_CTX, deterministic=True, progress=False)
        name, *arguments = call
        if name in GENERATIONS:
            k, o, n = arguments
            known = self._answers.get(f"{k} {o}", [])
            if len(known) < n:
                known = generated(self._model, k, o, n)
                self._answers[f"{k} {o}"] = known
            return known[:n]
        key = json.dumps(call)
        if key not in self._answers:
            self._answers[key] = OPERATIONS[name](self._model, *arguments)
        return self._answers[key]

    def check(self, path: Path) -> Figures:
        """Assert that a history is as it must be; return how much there is of it."""
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        open_: dict[int, Operation] = {}
        operations: list[Operation] = []
        faults: list[tuple[float, float]] = []
        for line in lines:
            if line["event"] == "begin":
                open_[line["client"]] = Operation(line)
                operations.append(open_[line["client"]])
            elif line["event"] == "end":
                open_.pop(line["client"]).end = line
            elif line["event"] == "fault":
                faults.append((line["at"], float("inf")))
            elif line["event"] == "healed":
                faults[-1] = (faults[-1][0], line["at"])
        assert lines[-1]["event"] == "over", "the history has no end"
        hung = [operation.begin for operation in open_.values()]
        assert not hung, f"never ended: {hung}"
        for operation in sorted(operations, key=lambda each: -each.begin["call"][3]):
            self._one(operation, faults)  # the longest generations first
        took = [operation.end["at"] - operation.begin["at"] for operation in operations]
        errors = sum("error" in operation.end for operation in operations)
        return {
            "operations": len(operations), "faults": len(faults), "errors": errors,
            "longest_s": max(took),
        }  # fmt: skip

    def _one(self, operation: Operation, faults: list[tuple[float, float]]) -> None:
        begin, end = operation.begin, operation.end
        assert end is not None
        beside = [f for f in faults if f[0] <= end["at"] and begin["at"] <= f[1] + GRACE_S]
        last = max([begin["at"], *(min(f[1], end["at"]) for f in beside)])
        bound = LONG_S if begin["client"] < 2 else BOUND_S
        assert end["at"] - last < bound, f"{end['at'] - last:.1f} s: {begin}"
        if "error" in end:
            assert end["error"] == "typed", f"{begin}: {end}"
            assert begin["mode"] != "wait", f"a patient model has an error: {begin}: {end}"
            assert beside, f"an error without a fault: {begin}: {end}"
        else:
            want = self.answer(begin["call"])
            assert end["answer"] == want, f"another answer: {begin}: {end}, not {want}"


judge = Judge()


def consistent(rig: Rig, i: int, seconds: float = 60.0) -> Figures:
    """Make a history and judge it; a wrong one is kept beside the rig's folder and named."""
    rig.revive()
    path = rig.folder / f"history-{i}.jsonl"
    recorded(rig, i, seconds, path)
    try:
        figures = judge.check(path)
    except AssertionError as error:
        kept = Path(tempfile.gettempdir()) / f"moesaic-history-{i}.jsonl"
        kept.write_text(path.read_text())
        raise AssertionError(f"{error} (history: {kept})") from None
    path.unlink()
    eventually(lambda: all(rig.lives()), 10.0, "all workers are back")
    rig.settle()
    return figures
