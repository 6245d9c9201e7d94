"""What a cluster tells while its callers wait: the log, the progress callback, the command line."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time

import pytest

import moesaic

PROMPT = [3, 4, 5]


def tokens(m: moesaic.Model) -> list[int]:
    return m.generate(PROMPT, max_tokens=8, temperature=0, ignore_eos=True).tokens.tolist()


class Heard:
    """A progress callback that remembers."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.calls.append((stage, done, total))

    @property
    def stages(self) -> list[str]:
        return [stage for stage, _, _ in self.calls]

    def wait_for(self, stage: str) -> None:
        deadline = time.monotonic() + 20
        while stage not in self.stages:
            assert time.monotonic() < deadline, f"{stage} not among {self.stages}"
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("on_loss", "stage"), [("wait", "waiting (30 s)"), ("replan", "re-planning")]
)
def test_a_loss_is_told_to_the_log_and_the_callback(fresh, demo_path, caplog, on_loss, stage):
    heard = Heard()
    caplog.set_level(logging.INFO, logger="moesaic")
    with fresh.load(demo_path, n_ctx=256, on_loss=on_loss, wait_seconds=30, progress=heard) as m:
        tokens(m)
        heard.calls.clear()
        victim = fresh.addresses[1]
        fresh.launcher.kill(victim)
        if on_loss == "wait":
            threading.Timer(1.5, lambda: fresh.launcher.restart(victim)).start()
        tokens(m)
        heard.wait_for(f"back {victim}")
        told = [s for s in heard.stages if s in (f"lost {victim}", stage, f"back {victim}")]
        assert told[:2] == [f"lost {victim}", stage] and told[-1] == f"back {victim}"
        assert told.count(stage) < 20  # once a second
    losses = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(losses) == 1 and victim in losses[0].getMessage()
    assert ("waiting for it" if on_loss == "wait" else "others") in losses[0].getMessage()
    assert any("whole again" in r.getMessage() for r in caplog.records)


def test_an_error_is_no_warning_as_well(fresh, demo_path, caplog):
    caplog.set_level(logging.WARNING, logger="moesaic")
    with fresh.load(demo_path, n_ctx=256) as m:
        fresh.launcher.kill(fresh.addresses[1])
        with pytest.raises(moesaic.WorkerLost):
            tokens(m)
    assert not caplog.records


def test_starting_and_measuring_are_told(demo_path, caplog, monkeypatch):
    monkeypatch.delenv("MOESAIC_RATES", raising=False)
    caplog.set_level(logging.INFO, logger="moesaic")
    heard = Heard()
    with moesaic.Cluster.local(1, memory=10**9) as c:
        c.load(demo_path, n_ctx=64, progress=heard).close()
        caplog_texts = [r.getMessage() for r in caplog.records]
        assert caplog_texts[:2] == ["starting 1 worker", "measuring 1 worker"]
        assert heard.stages[0] == "measuring 1 worker"
        c.load(demo_path, n_ctx=64, progress=heard).close()  # they are known by now
        assert heard.stages.count("measuring 1 worker") == 1


def test_a_callback_that_fails_harms_nobody(fresh, demo_path, caplog):
    def fail(stage: str, done: int, total: int) -> None:
        if stage.startswith("lost"):
            raise ValueError("no")

    with fresh.load(demo_path, n_ctx=256, on_loss="replan", progress=fail) as m:
        want = tokens(m)
        fresh.launcher.kill(fresh.addresses[2])
        assert tokens(m) == want
        deadline = time.monotonic() + 10
        while "callback failed" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "callback failed" in caplog.text


def test_the_command_line_says_what_it_waits_for(fresh, demo_path, tmp_path):
    """A worker is killed in the middle; the text goes on, and stderr has one line of it."""
    key = tmp_path / "key"
    key.write_bytes(fresh.launcher.key.text())
    key.chmod(0o600)
    command = [
        sys.executable, "-m", "moesaic", "run", demo_path, "-p", "In the", "-n", "400",
        "--temp", "0", "--cluster", ",".join(fresh.addresses), "--key", str(key),
        "--on-loss", "replan", "--kv-type", "f32", "--kv-tokens", "512", "--n-ctx", "512",
        "--deterministic",
    ]  # fmt: skip
    want = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    with process:
        assert process.stdout is not None
        begun = process.stdout.read(10)
        fresh.launcher.kill(fresh.addresses[1])
        rest = process.stdout.read()
    said = log.read_text()
    assert process.returncode == 0, said
    assert begun + rest == want.stdout
    lines = [line for line in said.splitlines() if "lost" in line]
    assert len(lines) <= 1  # none when the text was through before
    if lines:
        assert lines[0].startswith("moesaic: worker ") and "the others take" in lines[0]


def test_plan_files_and_options_of_the_command_line(pair, demo_path, tmp_path):
    key = tmp_path / "key"
    key.write_bytes(pair.launcher.key.text())
    key.chmod(0o600)
    plan = pair.plan(demo_path, n_ctx=128, layers=[1, 4], kv_type="f32", deterministic=True)
    assert [len(node.layers) for node in plan.nodes] == [1, 4]
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan.to_dict()))

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "moesaic", "run", demo_path, "-p", "It", "-n", "2", *options],
            capture_output=True,
            text=True,
            timeout=60,
        )

    there = ["--cluster", ",".join(pair.addresses), "--key", str(key)]
    done = run(*there, "--plan", str(file))
    assert done.returncode == 0, done.stderr
    for option in (["--plan", str(file)], ["--on-loss", "wait"]):
        refused = run(*option)
        assert refused.returncode == 2 and option[0] in refused.stderr
    assert run("--kv-type", "f32", "--kv-tokens", "64", "--n-ctx", "64").returncode == 0
    file.write_text("[1]")
    refused = run(*there, "--plan", str(file))
    assert refused.returncode == 1 and "moesaic plan --json" in refused.stderr
