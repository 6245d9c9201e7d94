"""Cases: bad links. The same tokens or a typed error in time, and never silently others.

Most are made by the proxies of a rig. Rates, small packets and pulled cables are the kernel's: for
them workers and coordinator live in network namespaces (``NetRig``).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import netns
from fault_kills import Figures, stream
from fault_others import SCRIPT
from fault_proxy import FROM_WORKER, TO_WORKER, FaultProxy
from fault_rig import DEMO, LATE_S, LOSS, LOST_S, Rig, check, dice, reference

from moesaic import _core

N_TOKENS = 120
_SOON = 3000  # bytes: fewer than what is left of a generation when its links are harmed
Harm = Callable[[list[FaultProxy], FaultProxy, random.Random], None]


def _delay(seconds: float) -> Harm:
    def harm(all_: list[FaultProxy], one: FaultProxy, dice: random.Random) -> None:
        for proxy in all_:
            proxy.delay = seconds

    return harm


def _rate(bytes_per_s: float) -> Harm:
    def harm(all_: list[FaultProxy], one: FaultProxy, dice: random.Random) -> None:
        for proxy in all_:
            proxy.rate = bytes_per_s

    return harm


def _mute(*directions: str) -> Harm:
    def harm(all_: list[FaultProxy], one: FaultProxy, dice: random.Random) -> None:
        one.mute = set(directions)

    return harm


def _flip(direction: str) -> Harm:
    def harm(all_: list[FaultProxy], one: FaultProxy, dice: random.Random) -> None:
        one.flip(direction, dice.randrange(1, _SOON))

    return harm


def _cut(*, rude: bool, comes_back: bool) -> Harm:
    def harm(all_: list[FaultProxy], one: FaultProxy, dice: random.Random) -> None:
        def act() -> None:
            one.refuse = not comes_back
            one.cut(rude=rude)

        direction = dice.choice([TO_WORKER, FROM_WORKER])
        one.when(direction, dice.randrange(1, _SOON), act)

    return harm


#: What happens to links while tokens come, and whether they must come whole all the same.
PROFILES: dict[str, tuple[Harm, bool]] = {
    "delay 10 ms": (_delay(0.010), True),
    "delay 100 ms": (_delay(0.100), True),
    "2 Mb/s": (_rate(250e3), True),
    "reset, back at once": (_cut(rude=True, comes_back=True), False),
    "reset, nobody there": (_cut(rude=True, comes_back=False), False),
    "closed politely": (_cut(rude=False, comes_back=True), False),
    "silence to the worker": (_mute(TO_WORKER), False),
    "silence from the worker": (_mute(FROM_WORKER), False),
    "silence both ways": (_mute(TO_WORKER, FROM_WORKER), False),
    "a flipped bit to the worker": (_flip(TO_WORKER), False),
    "a flipped bit from the worker": (_flip(FROM_WORKER), False),
}


def bad_link(rig: Rig, i: int, profile: str) -> Figures:
    """Harm links in a generation, with on_loss="raise": tokens up to the error are the right."""
    harm, must_be_whole = PROFILES[profile]
    rig.revive()
    random = dice(i, profile)
    one = rig.proxies[i % len(rig.proxies)]
    n = 30 if profile == "delay 100 ms" else N_TOKENS  # three hops of it a token
    at = random.randrange(1, n // 2)
    want = reference.tokens(n)
    got: list[int] = []
    error: Exception | None = None
    harmed_at: float | None = None
    with rig.load() as model:
        try:
            for chunk in stream(model, n):
                got += chunk
                if len(got) >= at and harmed_at is None:
                    harmed_at = time.monotonic()
                    harm(rig.proxies, one, random)
        except LOSS as caught:
            error = caught
        assert harmed_at is not None
        took = time.monotonic() - harmed_at
        assert got == want[: len(got)], f"silently other tokens: {got}"
        if error is None:
            assert got == want, f"only {len(got)} tokens and no error"
        else:
            assert not must_be_whole, error
            assert any(address in str(error) for address in rig.addresses), error
            assert took < LOST_S + LATE_S, f"{took:.1f} s: {error}"
    _whole_again(rig)
    return {"took_s": took, "went_on": float(error is None)}


def bad_link_survived(rig: Rig, i: int, profile: str) -> Figures:
    """Harm links for a second, with on_loss="wait": the same tokens in the end."""
    harm, _ = PROFILES[profile]
    rig.revive()
    random = dice(i, profile)
    one = rig.proxies[i % len(rig.proxies)]
    at = random.randrange(1, 60)
    got: list[int] = []
    with rig.load(on_loss="wait", wait_seconds=60) as model, contextlib.ExitStack() as undo:
        for chunk in stream(model, N_TOKENS):
            got += chunk
            if len(got) >= at and at > 0:
                at = 0
                begin = time.monotonic()
                harm(rig.proxies, one, random)
                timer = _healer(rig, 1.0 if "silence" not in profile else 4.0)
                undo.callback(timer.join)
        took = time.monotonic() - begin
        assert got == reference.tokens(N_TOKENS), f"other tokens: {got}"
    _whole_again(rig)
    return {"whole_after_s": took}


def _healer(rig: Rig, seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, lambda: [proxy.heal() for proxy in rig.proxies])
    timer.start()
    return timer


def harmed_load(rig: Rig, i: int) -> Figures:
    """Harm the links on which weights come: a typed error or a good load, and then a good load."""
    rig.revive()
    for k in range(len(rig.workers)):
        rig.kill(k)
    rig.revive(forget=True)
    name = ["a flipped bit to the worker", "reset, back at once", "closed politely"][i % 3]
    random = dice(i, "load")
    one = rig.proxies[i % len(rig.proxies)]
    at = random.randrange(1000, 3_000_000)
    if "flipped" in name:
        one.flip(TO_WORKER, at)
    else:
        one.when(TO_WORKER, at, lambda: one.cut(rude="reset" in name))
    said = ""
    try:
        with rig.load() as model:
            check(model)
    except LOSS as error:
        said = str(error)
        assert any(address in said for address in rig.addresses), said
    _whole_again(rig)
    assert not rig.half_files(), rig.half_files()
    return {"went_on": float(not said)}


def _whole_again(rig: Rig) -> None:
    for proxy in rig.proxies:
        proxy.heal()
    assert all(rig.lives()), "a worker died of it"
    rig.settle()
    with rig.load() as model:
        check(model)


# -- links of the kernel


class NetRig:
    """Two workers and a desk, each in a network namespace, on a switch."""

    DESK = "10.91.0.1"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        models = folder / "models"
        models.mkdir(exist_ok=True)
        if not (models / DEMO.name).exists():
            (models / DEMO.name).symlink_to(DEMO)
        self.hosts = ["10.91.0.11", "10.91.0.12"]
        self.room = netns.Room([self.DESK, *self.hosts])
        self.key = _core.ClusterKey.random().text()
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "MOESAIC_KEY": self.key.decode(),
        }
        self.addresses = [f"{host}:9777" for host in self.hosts]
        self.processes = [self._start(host, models) for host in self.hosts]
        try:
            for process in self.processes:
                assert process.stdout is not None
                assert "ready" in process.stdout.readline()
        except BaseException:
            self.close()
            raise

    def _start(self, host: str, models: Path) -> subprocess.Popen[str]:
        worker = [sys.executable, "-P", "-m", "moesaic", "worker", "--listen", f"{host}:9777"]
        worker += ["--json-ready", "--threads", "1", "--memory", "1G", "--models", str(models)]
        return subprocess.Popen(
            self.room.on(host, *worker, "--no-cache"),
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def mtu(self, host: str, n_bytes: int) -> None:
        """Set the size of packets that a machine sends and takes."""
        subprocess.run(
            self.room.on(host, "ip", "link", "set", "eth0", "mtu", str(n_bytes)),
            check=True,
            capture_output=True,
        )

    def heal(self) -> None:
        """Undo what was done to links."""
        for host in (self.DESK, *self.hosts):
            self.mtu(host, 1500)
            self.room.plug(host, up=True)
            subprocess.run(
                self.room.on(host, "tc", "qdisc", "del", "dev", "eth0", "root"),
                capture_output=True,
            )

    def coordinator(self) -> subprocess.Popen[str]:
        """Start a coordinator at the desk that goes through everything once."""
        process = subprocess.Popen(
            self.room.on(
                self.DESK, sys.executable, str(SCRIPT), ",".join(self.addresses), str(DEMO),
                str(self.folder), "once",
            ),
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(self.key.decode() + "\n")
        process.stdin.flush()
        return process

    def close(self) -> None:
        """End processes and namespaces."""
        for process in self.processes:
            process.kill()
            process.communicate()
        self.room.close()


@contextlib.contextmanager
def net_rig(folder: Path) -> Iterator[NetRig]:
    """Make a room with workers for a block."""
    made = NetRig(folder)
    try:
        yield made
    finally:
        made.close()


NET_PROFILES: dict[str, bool] = {  # whether all must come whole
    "1 Gb/s": True,
    "5 Gb/s": True,
    "10 Mb/s": True,
    "small packets": True,
    "cable out for 1 s": True,
    "cable out": False,
}


def bad_net(rig: NetRig, i: int, profile: str) -> Figures:
    """A coordinator goes through everything once over links of a kind."""
    rig.heal()
    random = dice(i, profile)
    host = rig.hosts[i % len(rig.hosts)]
    if profile.endswith("b/s"):
        rate = profile.replace(" ", "").replace("Gb/s", "gbit").replace("Mb/s", "mbit")
        for each in (rig.DESK, *rig.hosts):
            rig.room.limit(each, rate)
    elif profile == "small packets":
        for each in (rig.DESK, *rig.hosts):
            rig.mtu(each, 576)
    begin = time.monotonic()
    pull_at = random.randrange(1, 150)
    said: list[str] = []
    error = tokens = None
    with rig.coordinator() as process:
        assert process.stdout is not None
        for line in process.stdout:
            word, _, rest = line.strip().partition(" ")
            said.append(word)
            if word == "error":
                error = json.loads(rest)
                error_at = time.monotonic()
            elif word == "tokens":
                tokens = json.loads(rest)
            elif word == "decode" and int(rest) >= pull_at > 0 and profile.startswith("cable"):
                pull_at = 0
                out_at = time.monotonic()
                rig.room.plug(host, up=False)
                if "1 s" in profile:
                    time.sleep(1.0)
                    rig.room.plug(host, up=True)
    took = time.monotonic() - begin
    if NET_PROFILES[profile]:
        assert error is None, error
        assert said[-1] == "over", said[-5:]
    if error is not None:
        assert error["type"] in {kind.__name__ for kind in LOSS}, error
        assert host in error["text"], error
        assert error_at - out_at < LOST_S + LATE_S, f"{error_at - out_at:.1f} s: {error}"
    if tokens is not None:
        assert tokens == reference.tokens(200)[: len(tokens)], f"silently other tokens: {tokens}"
    if said[-1] == "over":
        assert tokens is not None and len(tokens) == 200
    rig.heal()
    assert all(process.poll() is None for process in rig.processes), "a worker died of it"
    return {"took_s": took, "went_on": float(error is None)}
