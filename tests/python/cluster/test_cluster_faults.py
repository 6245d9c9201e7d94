"""Workers that die, stop and come back, and Ctrl-C, seen from Python. The campaign has the rest."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from processes import GONE_S, alive, wait_gone

import moesaic

PROMPT = "It is a truth universally"
LOST_S = 5.0  # promised: within it the caller knows
LATE_S = 0.5  # Ctrl-C: 100 ms are promised; the rest is room for a loaded machine
LOAD_LATE_S = 1.5  # of a load: 1 s


class After:
    """Does something on another thread after a while, and says when it did."""

    def __init__(self, seconds: float, action) -> None:
        self.seconds, self.action = seconds, action

    def __enter__(self):
        def run():
            time.sleep(self.seconds)
            self.done = time.monotonic()
            self.action()

        self._thread = threading.Thread(target=run)
        self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._thread.join()


def long(model: moesaic.Model, n: int = 480) -> moesaic.Generation:
    return model.generate(PROMPT, max_tokens=n, temperature=0, ignore_eos=True)


def forever(model: moesaic.Model) -> None:
    while True:
        model.generate([3, 4, 5], max_tokens=450, temperature=0, ignore_eos=True)


def test_who_does_not_answer_is_named_once(fresh, demo_path):
    address = fresh.addresses[1]
    fresh.launcher.kill(address)
    wait_gone([fresh.launcher.pids[1]])
    with pytest.raises(moesaic.NetError, match="not all workers answer") as raised:
        fresh.plan(demo_path)
    assert str(raised.value).count(address) == 1 and "[net]" not in str(raised.value)


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_worker_is_an_error_with_its_name_and_the_tokens_so_far(
    fresh, demo_path, exact, victim
):
    address = fresh.addresses[victim]
    pids = fresh.launcher.pids
    with fresh.load(demo_path, n_ctx=512, deterministic=True) as m:
        layers = list(fresh.nodes[victim].models[0].layers)
        with After(0.2, lambda: fresh.launcher.kill(address)) as kill:
            with pytest.raises(moesaic.WorkerLost, match=address) as raised:
                forever(m)
            assert time.monotonic() - kill.done < LOST_S
        error = raised.value
        assert error.node == address and error.layers == layers
        want = exact.generate(
            [3, 4, 5], max_tokens=450, temperature=0, ignore_eos=True
        ).tokens.tolist()
        assert list(error.tokens) == want[: len(error.tokens)]
        with pytest.raises(moesaic.MoesaicError, match=address):  # it stays lost, and says so
            long(m, 5)
    assert [alive(pid) for pid in pids] == [i != victim for i in range(3)]
    fresh.launcher.restart(address)
    with fresh.load(demo_path, n_ctx=512, deterministic=True) as m:  # the object is usable
        assert long(m, 20).tokens.tolist() == long(exact, 20).tokens.tolist()


def test_wait_goes_on_when_the_worker_is_back(fresh, demo_path, exact):
    address = fresh.addresses[1]
    want = long(exact).tokens.tolist()

    def power_cut():
        fresh.launcher.kill(address)
        time.sleep(0.5)
        fresh.launcher.restart(address)

    with fresh.load(demo_path, n_ctx=512, deterministic=True, on_loss="wait") as m:
        assert long(m).tokens.tolist() == want
        with After(0.03, power_cut) as cut:
            tokens = long(m).tokens.tolist()
            ended = time.monotonic()
        assert tokens == want
        assert ended > cut.done
        with m.session() as s:
            s.forward(m.tokenize(PROMPT))
            power_cut()
            more = s.forward([7, 8]).tobytes()
    with exact.session() as s:
        s.forward(exact.tokenize(PROMPT))
        assert s.forward([7, 8]).tobytes() == more


def test_waiting_ends(fresh, demo_path):
    address = fresh.addresses[2]
    with fresh.load(demo_path, n_ctx=512, on_loss="wait", wait_seconds=0.5) as m:
        fresh.launcher.kill(address)
        begin = time.monotonic()
        with pytest.raises(moesaic.WorkerLost, match=address):
            long(m)
        assert time.monotonic() - begin < LOST_S + 0.5


def test_replan_goes_on_without_the_worker(fresh, demo_path, exact):
    want = long(exact).tokens.tolist()
    with fresh.load(demo_path, n_ctx=512, deterministic=True, on_loss="replan") as m:
        with After(0.03, lambda: fresh.launcher.kill(fresh.addresses[0])):
            assert long(m).tokens.tolist() == want
        assert long(m).tokens.tolist() == want
        held = [model for node in fresh.nodes if node.state != "lost" for model in node.models]
        # Also those of before the loss, which are kept in memory as long as there is room.
        assert {i for h in held for i in h.layers} == set(range(m.config.n_layers))


@pytest.mark.parametrize("seconds", [1.0, 2.0])
def test_a_worker_that_stops_for_a_moment_is_waited_for(fresh, demo_path, exact, seconds):
    address = fresh.addresses[1]

    def stop():
        fresh.launcher.kill(address, signal.SIGSTOP)
        time.sleep(seconds)
        fresh.launcher.kill(address, signal.SIGCONT)

    with (
        fresh.load(demo_path, n_ctx=512, deterministic=True) as m,
        After(0.02, stop),
    ):
        assert long(m).tokens.tolist() == long(exact).tokens.tolist()


def test_a_worker_that_stops_for_long_is_lost(fresh, demo_path):
    address = fresh.addresses[1]
    with fresh.load(demo_path, n_ctx=512) as m:
        with (
            After(0.1, lambda: fresh.launcher.kill(address, signal.SIGSTOP)) as stop,
            pytest.raises(moesaic.WorkerLost, match=address),
        ):
            forever(m)
        assert time.monotonic() - stop.done < LOST_S
        fresh.launcher.kill(address, signal.SIGCONT)
    begin = time.monotonic()
    while fresh.nodes[1].state == "lost":  # awake, and of the old deployment nothing is left
        assert time.monotonic() - begin < 2 * GONE_S
        time.sleep(0.1)
    with fresh.load(demo_path, n_ctx=512) as m:
        assert len(long(m, 5).tokens) == 5


def interrupted(after: float, call) -> float:
    """Run call(), press Ctrl-C after a while, and return how long it took to be heard."""
    with After(after, lambda: os.kill(os.getpid(), signal.SIGINT)) as press:
        with pytest.raises(KeyboardInterrupt):
            call()
        return time.monotonic() - press.done


@pytest.mark.parametrize(
    "call",
    [
        forever,
        lambda m: [m.forward([7] * 500) for _ in range(10000)],
        lambda m: [list(m.stream([3] * 10, max_tokens=450)) for _ in range(1000)],
        lambda m: [m.score([[5] * 300] * 64, [[6, 7]] * 64) for _ in range(1000)],
    ],
    ids=["decode", "prefill", "stream", "score"],
)
def test_ctrl_c_is_heard_and_leaves_the_model_usable(sharded, exact, call):
    want = long(exact, 20).tokens.tolist()
    assert interrupted(0.3, lambda: call(sharded)) < LATE_S
    assert long(sharded, 20).tokens.tolist() == want


def test_ctrl_c_while_waiting_for_a_worker(fresh, demo_path):
    with fresh.load(demo_path, n_ctx=512, on_loss="wait") as m:
        fresh.launcher.kill(fresh.addresses[1])
        assert interrupted(1.0, lambda: forever(m)) < LATE_S
        fresh.launcher.restart(fresh.addresses[1])
    with fresh.load(demo_path, n_ctx=512) as m:
        assert len(long(m, 5).tokens) == 5


def test_ctrl_c_while_loading(fresh, demo_path):
    def load():
        while True:
            fresh.load(demo_path, n_ctx=512).close()

    for after in (0.05, 0.2, 0.35):
        assert interrupted(after, load) < LOAD_LATE_S
    with fresh.load(demo_path, n_ctx=512) as m:
        assert len(long(m, 5).tokens) == 5


@pytest.mark.parametrize("after", [0.01, 0.03, 0.1, 0.2])
def test_ctrl_c_while_workers_end(after):
    c = moesaic.Cluster.local(2, memory=10**9)
    pids = c.launcher.pids

    def end():
        c.close()
        while True:
            time.sleep(0.01)

    interrupted(after, end)
    wait_gone(pids)
    assert c.closed


def test_ctrl_c_while_workers_start():
    seen: list[int] = []

    def start():
        while True:
            with moesaic.Cluster.local(3, memory=10**9) as c:
                seen.extend(c.launcher.pids)

    interrupted(0.7, start)
    wait_gone(seen)
