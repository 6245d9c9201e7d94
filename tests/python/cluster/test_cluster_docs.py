"""docs/cluster.md, line by line: every command runs as it stands there, on machines of their own.

The machines are network namespaces with the addresses of the text; what installs the package and
the service is not run.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from netns import Room, available, room
from processes import GONE_S

DOCS = Path(__file__).parents[3] / "docs"
TEXT = (DOCS / "cluster.md").read_text()
DESK = "10.0.0.1"
SETTING_UP = ("apt-get", "python3 -m venv", "ln -s", "useradd", "install -m", "cp docs/")  # of root

pytestmark = pytest.mark.skipif(not available(), reason="needs root and iproute2 for namespaces")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def commands() -> list[str]:
    """Every command of the text, without its comment."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.strip()]
    return [re.sub(r"\s+#.*", "", line) for line in lines]


@pytest.fixture(scope="module")
def bench(tmp_path_factory, demo_path):
    """A home, a folder with model.gguf to stand in, the machines' models, and PATH with moesaic."""
    base = tmp_path_factory.mktemp("docs")
    for name in ("home", "desk", "models", "bin"):
        (base / name).mkdir()
    shutil.copy(demo_path, base / "desk" / "model.gguf")
    shutil.copy(demo_path, base / "models" / "model.gguf")
    moesaic = base / "bin" / "moesaic"
    moesaic.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m moesaic "$@"\n')
    moesaic.chmod(0o755)
    return base


class Desk:
    """Runs lines of the text on a machine."""

    def __init__(self, net: Room, base: Path) -> None:
        self.net, self.base = net, base
        self.env = os.environ | {
            "PATH": f"{base / 'bin'}:{os.environ['PATH']}",
            "HOME": str(base / "home"),
            "XDG_CONFIG_HOME": "",
            "XDG_CACHE_HOME": "",
        }

    def start(self, line: str, at: str = DESK, folder: str = "desk") -> subprocess.Popen[str]:
        line = line.replace("/srv/models", str(self.base / "models"))
        return subprocess.Popen(
            self.net.on(at, "sh", "-c", f"exec {line}"),
            cwd=self.base / folder, env=self.env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, line: str, folder: str = "desk") -> str:
        process = self.start(line, folder=folder)
        out, said = process.communicate(timeout=60)
        assert process.returncode == 0, f"{line}\n{said}"
        return out


@pytest.fixture(scope="module")
def desk(bench):
    """Four machines with workers, started as the text says, and a desk that knows them by name."""
    workers = blocks("toml")[0]
    addresses = re.findall(r"([\d.]+):9777", workers)
    assert len(addresses) == 4
    with room([DESK, *addresses]) as net:
        made = Desk(net, bench)
        made.run("moesaic keygen cluster.key")
        key = bench / "desk" / "cluster.key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        config = bench / "home" / ".config" / "moesaic"
        config.mkdir(parents=True)
        (config / "clusters.toml").write_text(workers)
        shutil.copy2(key, config / "home.key")
        shutil.copy2(key, bench / "desk" / "home.key")
        line = next(c for c in commands() if c.startswith("moesaic worker"))
        running = [made.start(line, at=address) for address in addresses]
        try:
            for process in running:
                assert process.stderr is not None
                while "ready: " not in (line := process.stderr.readline()):
                    assert "warning: --memory" in line  # these machines are one, and small
            yield made
            for process in running:
                process.send_signal(signal.SIGTERM)
            begin = time.monotonic()
            assert [process.wait(GONE_S) for process in running] == [0] * 4
            assert time.monotonic() - begin < GONE_S
        finally:
            for process in running:
                process.kill()
                process.communicate()


def tried() -> list[str]:
    lines = [line for line in commands() if not line.startswith(SETTING_UP)]
    own_fixture = ("moesaic keygen", "moesaic worker")
    return [line for line in lines if not line.startswith(own_fixture)]


def test_nothing_of_the_text_is_left_out():
    assert len(tried()) >= 6
    assert all(line.startswith("moesaic ") for line in tried())


@pytest.mark.parametrize("line", tried())
def test_a_command_runs_as_it_stands_there(desk, line):
    out = desk.run(line)
    if "status" in line:
        assert out.count(":9777") == 4 and "lost" not in out and "NO KEY" not in out
    elif " -p " in line:
        assert out.startswith("Once upon a time") and len(out) > 30
    elif "plan" in line:
        assert "tok/s" in out or "tokens" in out


def test_addresses_do_where_names_do(desk):
    option = re.search(r"`(--cluster \S+ --key \S+)`", TEXT)
    assert option is not None
    assert desk.run(f"moesaic cluster status {option[1]}").count(":9777") == 2


def test_the_python_runs(desk):
    (desk.base / "desk" / "script.py").write_text("\n".join(blocks("python")))
    out = desk.run(f"{sys.executable} -W ignore script.py")
    assert "10.0.0.14:9777" in out


def test_without_a_file_here_the_name_is_enough(desk):
    (desk.base / "empty").mkdir()
    out = desk.run('moesaic run model.gguf --cluster home -n 8 -p "It was"', folder="empty")
    assert out.startswith("It was")


def test_a_pulled_cable_is_a_lost_worker_within_5_seconds(desk):
    """No FIN, no RST: silence, as a switch without power gives it."""
    script = """
import moesaic, sys, time
with moesaic.Cluster("home") as c, c.load("model.gguf", n_ctx=512, progress=False) as m:
    print("go", flush=True)
    sys.stdin.readline()
    begin = time.monotonic()
    try:
        while True:
            m.generate([3, 4, 5], max_tokens=400, ignore_eos=True)
    except moesaic.WorkerLost as error:
        print(error.node, time.monotonic() - begin)
"""
    victim = "10.0.0.13"
    process = subprocess.Popen(
        desk.net.on(DESK, sys.executable, "-c", script),
        cwd=desk.base / "desk", env=desk.env, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "go\n", process.stderr.read()
        desk.net.plug(victim, up=False)
        out, said = process.communicate("\n", timeout=30)
    finally:
        desk.net.plug(victim, up=True)
        process.kill()
    assert out, said
    node, seconds = out.split()
    assert float(seconds) < 6.0
    assert node == f"{victim}:9777"
