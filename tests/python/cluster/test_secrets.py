"""The cluster's key stays where it belongs: out of the environment, out of core dumps."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from moesaic import _core
from moesaic.key_source import key_from_environment, read_key

HEX = "0123456789abcdef" * 4


def run(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env=os.environ | environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_taken_variable_is_in_no_environment():
    out = run(
        """
        import os, subprocess, sys
        from pathlib import Path
        from moesaic.key_source import key_from_environment
        held = os.environ["MOESAIC_KEY"].encode()
        before = Path("/proc/self/environ").read_bytes()
        key = key_from_environment()
        after = Path("/proc/self/environ").read_bytes()
        child = subprocess.run(["cat", "/proc/self/environ"], capture_output=True).stdout
        print(held in before, held in after, held in child, "MOESAIC_KEY" in os.environ)
        print(key.text().decode().strip() == held.decode())
        print(b"OTHER=stays" in after, key_from_environment())
        """,
        MOESAIC_KEY=HEX, OTHER="stays",
    )  # fmt: skip
    assert out.split() == ["True", "False", "False", "False", "True", "True", "None"]


@pytest.mark.parametrize("value", ["", None])
def test_no_key_in_the_environment(monkeypatch, value):
    if value is None:
        monkeypatch.delenv("MOESAIC_KEY", raising=False)
    else:
        monkeypatch.setenv("MOESAIC_KEY", value)
    assert key_from_environment() is None
    assert read_key(None) is None


def test_a_key_file_wins_and_the_variable_goes_all_the_same(monkeypatch, tmp_path):
    path = tmp_path / "cluster.key"
    path.write_text(HEX)
    path.chmod(0o600)
    monkeypatch.setenv("MOESAIC_KEY", "f" * 64)
    key = read_key(path)
    assert key is not None and key.text().decode().strip() == HEX
    assert "MOESAIC_KEY" not in os.environ


def test_keys_are_left_out_of_core_dumps():
    def undumped() -> int:
        flags = Path("/proc/self/smaps").read_text().splitlines()
        return sum(line.startswith("VmFlags:") and " dd" in line for line in flags)

    before = undumped()
    keys = [_core.ClusterKey.random() for _ in range(3)]
    # Neighbouring mappings with equal flags are one line.
    assert len(keys) == 3 and undumped() > before
    del keys
    assert undumped() == before


def test_a_worker_leaves_no_core_dump():
    with subprocess.Popen(
        [sys.executable, "-m", "moesaic", "worker", "--listen", "127.0.0.1:0", "--no-cache",
         "--json-ready", "--memory", "1G"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as worker:  # fmt: skip
        try:
            assert worker.stdout is not None and "ready" in worker.stdout.readline()
            limits = Path(f"/proc/{worker.pid}/limits").read_text()
            (line,) = (each for each in limits.splitlines() if each.startswith("Max core file"))
            assert line.split()[4:6] == ["0", "0"]
        finally:
            worker.terminate()
        assert worker.wait(60) == 0


def test_a_process_without_dumps():
    out = run(
        """
        import ctypes, resource
        from moesaic import _core
        _core.forbid_core_dumps()
        PR_GET_DUMPABLE = 3
        print(ctypes.CDLL(None).prctl(PR_GET_DUMPABLE, 0, 0, 0, 0))
        print(resource.getrlimit(resource.RLIMIT_CORE))
        """
    )
    assert out.splitlines() == ["0", "(0, 0)"]
