"""moesaic worker, keygen, cluster status, run --cluster and --local, demo: as people call them."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_process import start
from processes import GONE_S, alive, reachable, wait_gone
from typer.testing import CliRunner

import moesaic
from moesaic.cli import make_app
from moesaic.nodes import Rates

READY_S = 30.0
HEX = "cd" * 32


@pytest.fixture
def cli():
    """Run a command in this process: result.stdout, .stderr, .exit_code; a traceback fails."""

    def run(*args: object):
        result = CliRunner().invoke(make_app(), [str(a) for a in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def key(tmp_path) -> Path:
    path = tmp_path / "cluster.key"
    path.write_text(HEX + "\n")
    path.chmod(0o600)
    return path


class Worker:
    """``moesaic worker`` as a process."""

    def __init__(self, *args: object, **options) -> None:
        self.process = start("worker", "--json-ready", *map(str, args), **options)
        out = self.process.stdout
        assert select.select([out], [], [], READY_S)[0], "not ready"
        line = out.readline()
        assert line, self.process.stderr.read().decode()
        self.ready = json.loads(line)
        self.address = self.ready["address"]

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Exit code, what else was on stdout, and the log."""
        self.process.send_signal(number)
        out, log = self.process.communicate(timeout=GONE_S)
        return self.process.returncode, out.decode(), log.decode()

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.process.kill()
        self.process.communicate()


def ended(*args: str, **options) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that should end by itself."""
    process = start(*args, **options)
    try:
        out, said = process.communicate(timeout=READY_S)
    finally:
        process.kill()
    return process.returncode, out.decode(), said.decode()


# -- worker ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_says_that_it_is_ready_and_ends_cleanly(number):
    with Worker("--listen", "127.0.0.1:0", "--no-cache") as w:
        assert w.ready["event"] == "ready" and w.ready["pid"] == w.process.pid
        assert w.ready["release"] == moesaic.__version__
        assert reachable(w.address)
        code, rest, log = w.end(number)
    assert code == 0 and rest == ""
    assert w.address in log and "Traceback" not in log
    assert all(line.split(" ")[0][4] == "-" for line in log.splitlines())  # a time, then the event


def test_a_signal_is_heard_at_any_moment():
    """Also just before the process begins to wait for one: it was lost there once in some forty."""
    for i in range(40):
        with Worker("--listen", "127.0.0.1:0", "--no-cache") as w:
            time.sleep(i % 7 * 0.002)
            assert w.end()[0] == 0


def test_a_busy_worker_ends_cleanly(demo_path, key):
    options = ["--listen", "127.0.0.1:0", "--no-cache", "--key", key, "--threads", 1]
    with (
        Worker(*options, "--models", Path(demo_path).parent) as w,
        moesaic.Cluster([w.address], key=key) as c,
    ):
        m = c.load("demo.gguf", n_ctx=512)
        chunks = m.stream([3, 4], max_tokens=400, ignore_eos=True)
        next(chunks)
        begin = time.monotonic()
        code, _, log = w.end()
        assert code == 0 and time.monotonic() - begin < GONE_S
        with pytest.raises(moesaic.WorkerLost, match=w.address):
            list(chunks)
    assert "demo.gguf" in log and "Traceback" not in log


def test_the_log_as_json_is_one_object_a_line():
    with Worker("--listen", "127.0.0.1:0", "--no-cache", "--log-json") as w:
        _, _, log = w.end()
    events = [json.loads(line) for line in log.splitlines()]
    assert events
    for event in events:
        assert event["event"] and event["text"] and event["time"][10] == "T"


def test_more_memory_than_there_is_is_said():
    with Worker("--listen", "127.0.0.1:0", "--no-cache", "--memory", "900T", "--log-json") as w:
        _, _, log = w.end()
    first = json.loads(log.splitlines()[0])
    assert first["event"] == "warning" and "--memory 900T" in first["text"]


def test_loads_and_ends_of_coordinators_are_lines_of_the_log(demo_path):
    with Worker("--listen", "127.0.0.1:0", "--no-cache", "--log-json") as w:
        with moesaic.Cluster([w.address]) as c, c.load(demo_path, n_ctx=64):
            pass
        _, _, log = w.end()
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events[0] == "ready" and {"load", "loaded"} < set(events)


def test_the_key_comes_from_a_file_a_descriptor_or_the_environment(key, tmp_path):
    read, write = os.pipe()
    os.write(write, HEX.encode())
    os.close(write)
    ways = [
        (["--key", key], {}),
        (["--key-fd", read], {"pass_fds": (read,)}),
        ([], {"env": {"MOESAIC_KEY": HEX}}),
    ]
    for args, options in ways:
        with Worker("--listen", "127.0.0.1:0", "--no-cache", *args, **options) as w:
            with moesaic.Cluster([w.address], key=key) as c:
                assert c.nodes[0].encrypted
            with pytest.raises((moesaic.NetError, moesaic.ProtocolError)):
                moesaic.Cluster([w.address])
    os.close(read)


def test_a_worker_ends_when_its_lifeline_is_closed():
    read, write = os.pipe()
    with Worker(
        "--listen", "127.0.0.1:0", "--no-cache", "--lifeline-fd", read, pass_fds=(read,)
    ) as w:
        os.close(read)
        time.sleep(0.2)
        assert alive(w.process.pid)
        os.close(write)
        assert w.process.wait(GONE_S) == 0


def test_the_default_cache_is_the_users(tmp_path):
    env = {"XDG_CACHE_HOME": str(tmp_path / "c")}
    with Worker("--listen", "127.0.0.1:0", env=env):
        folder = tmp_path / "c" / "moesaic"
        assert folder.is_dir() and folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["--listen", "nonsense"], 2, "nonsense"),
        (["--listen", "127.0.0.1:99999"], 2, "99999"),
        (["--listen", "0.0.0.0:0"], 2, "key"),  # without a key: this machine only
        (["--memory", "lots"], 2, 'got "lots"'),
        (["--threads", "0"], 2, "--threads: got 0"),
        (["--models", "/no/such/folder"], 2, "is not a directory"),
        (["--cache", "/proc/no"], 1, "/proc/no"),
        (["--cache", "/tmp", "--no-cache"], 2, "one of them"),
        (["--key", "/no/such/key"], 1, "/no/such/key"),
        (["--key-fd", "99"], 1, "Bad file descriptor"),
        (["--listen", "192.0.2.1:1", "--plain-beyond-loopback"], 1, "192.0.2.1"),
    ],
)
def test_a_worker_that_cannot_start_says_why_in_one_line(args, code, message):
    got, out, said = ended("worker", *args)
    assert got == code and out == ""
    lines = said.splitlines()
    assert len(lines) == 1 and lines[0].startswith("moesaic: ") and message in lines[0]


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, _, said = ended("worker", "--listen", address, "--no-cache")
    assert code == 1 and address in said


def test_a_wrong_key_in_the_environment():
    code, _, said = ended("worker", "--listen", "127.0.0.1:0", env={"MOESAIC_KEY": "short"})
    assert code == 2 and "short" not in said  # a key is not to be logged


# -- keygen ----------------------------------------------------------------------------------------


def test_keygen(cli, tmp_path):
    path = tmp_path / "key"
    result = cli("keygen", path)
    assert result.exit_code == 0 and result.stdout == "" and str(path) in result.stderr
    text = path.read_text()
    assert text.strip() not in result.stderr and path.stat().st_mode & 0o777 == 0o600
    again = cli("keygen", path)
    assert again.exit_code == 1 and path.read_text() == text and "exists" in again.stderr
    assert cli("keygen", tmp_path / "no" / "key").exit_code == 1


# -- cluster status --------------------------------------------------------------------------------


@pytest.fixture
def named(pair, tmp_path, monkeypatch) -> Path:
    """clusters.toml with the pair as "home"."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "moesaic"
    folder.mkdir()
    (folder / "home.key").write_bytes(pair.launcher.key.text())
    (folder / "home.key").chmod(0o600)
    workers = json.dumps(list(pair.addresses))
    (folder / "clusters.toml").write_text(f'[home]\nworkers = {workers}\nkey = "home.key"\n')
    return folder


def test_status(cli, pair, named, sharded):
    for args in ([], ["--cluster", "home"]):
        result = cli("cluster", "status", *args)
        assert result.exit_code == 0, result.stderr
        lines = result.stdout.splitlines()
        assert len(lines) == 3 and lines[0].split()[:2] == ["node", "state"]
        for line, address in zip(lines[1:], pair.addresses, strict=True):
            assert line.startswith(address) and "demo.gguf layers" in line
    addresses = ",".join(pair.addresses)
    result = cli("cluster", "status", "-c", addresses, "-k", named / "home.key", "--json")
    nodes = json.loads(result.stdout)["nodes"]
    assert [n["address"] for n in nodes] == list(pair.addresses)
    layers = [n["models"][0]["layers"] for n in nodes]
    assert layers[0][0] == 0 and layers[0][1] == layers[1][0] and layers[1][1] == 5
    measured = json.loads(cli("cluster", "status", "--measure", "--json").stdout)["nodes"]
    assert all(n["rates"]["read"] > 0 and n["link"] > 0 for n in measured)


def test_status_shows_who_is_lost(cli, pair, named):
    workers = json.dumps([pair.addresses[0], "127.0.0.1:1"])
    (named / "clusters.toml").write_text(f'[home]\nworkers = {workers}\nkey = "home.key"\n')
    result = cli("cluster", "status")
    assert result.exit_code == 1
    good, bad = result.stdout.splitlines()[1:]
    assert good.startswith(pair.addresses[0]) and "lost" not in good
    assert bad.startswith("127.0.0.1:1 ") and "lost" in bad
    states = [n["state"] for n in json.loads(cli("cluster", "status", "--json").stdout)["nodes"]]
    assert states[1] == "lost" and states[0] != "lost"


def test_status_needs_to_know_of_whom(cli, tmp_path, monkeypatch):
    result = cli("cluster", "status")
    assert result.exit_code == 2 and "--cluster" in result.stderr
    assert cli("cluster", "status", "-c", "home").exit_code == 2
    assert cli("cluster", "status", "-c", "127.0.0.1:1").exit_code == 1


# -- run, chat, demo -------------------------------------------------------------------------------


def test_run_on_a_cluster_says_the_same(cli, pair, named, demo_path, exact):
    want = exact.generate("It was", max_tokens=12, seed=5).text
    options = ["-p", "It was", "-n", "12", "--seed", "5", "--deterministic"]
    for where in (
        ["--cluster", "home"],
        ["--cluster", ",".join(pair.addresses), "--key", named / "home.key"],
        ["--local", "2"],
    ):
        result = cli("run", demo_path, *options, *where)
        assert result.exit_code == 0, result.stderr
        assert result.stdout == f"It was{want}\n"


def test_chat_on_a_cluster_is_the_same_code(cli, demo_path):
    result = cli("chat", demo_path, "--local", "1")
    assert "no chat template" in result.stderr or result.exit_code == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--local", "2", "--cluster", "a:1"], "one of them"),
        (["--local", "0"], "n: got 0"),
        (["--key", "k"], "--key without --cluster"),
        (["--cluster", "a:1", "--threads", "2"], "moesaic worker --threads"),
        (["--cluster", "nobody"], "nobody"),
    ],
)
def test_run_with_options_that_do_not_go_together(cli, demo_path, args, message):
    result = cli("run", demo_path, "-p", "x", *args)
    assert result.exit_code == 2 and message in result.stderr


def test_local_workers_are_gone_with_the_command(demo_path):
    process = start("run", demo_path, "-p", "It", "-n", "400", "--local", "2", "--temp", "0")
    begin, workers = time.monotonic(), []
    while len(workers) < 2 and time.monotonic() - begin < READY_S:
        path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = path.read_text().split() if path.exists() else []
    process.kill()
    process.communicate()
    wait_gone(map(int, workers))


def test_demo_ends_on_two_workers(cli):
    result = cli("demo", "-n", "6")
    assert result.exit_code == 0, result.stderr
    first, second = result.stdout.splitlines()
    assert first == second and first.startswith("It is a truth universally")
    assert "[the same tokens as on one machine]" in result.stderr
    said = json.loads(cli("demo", "-n", "6", "--json").stdout)
    assert said["cluster"]["same_tokens"] is True and said["cluster"]["workers"] == 2


def test_a_worker_starts_without_what_only_models_need():
    code = (
        "import sys; sys.argv[1:] = ['worker', '--help']\n"
        "try:\n import moesaic.cli; moesaic.cli.main()\nexcept SystemExit: pass\n"
        "print(sorted({'numpy', 'tokenizers', 'jinja2', 'tqdm'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert result.stdout.decode().splitlines()[-1] == "[]"


@pytest.mark.parametrize("text", ["", "25G", "25G,600G,1", "0,600G", "fast,600G"])
def test_rates_that_are_none_are_refused(text):
    done = subprocess.run(
        [sys.executable, "-m", "moesaic", "worker", "--listen", "127.0.0.1:0", f"--rates={text}"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr


def test_rates_that_are_told_are_not_measured():
    with moesaic.Cluster.local(1) as cluster:
        (node,) = cluster.measure()
    assert node.rates == Rates(25e9, 600e9)


def test_rates_are_remembered_in_the_cache(tmp_path, monkeypatch):
    told = os.environ["MOESAIC_RATES"]
    monkeypatch.delenv("MOESAIC_RATES")
    with moesaic.Cluster.local(2, cache=tmp_path) as cluster:
        assert [n.rates for n in cluster.nodes] == [None, None]
        first, second = (n.rates for n in cluster.measure())
    assert first is not None and first == second  # one machine: the second one need not measure
    (file,) = tmp_path.glob("*.rates")
    with moesaic.Cluster.local(1, cache=tmp_path) as cluster:
        assert cluster.nodes[0].rates == first  # before anybody asks for a measurement
    with moesaic.Cluster.local(1, threads=2, cache=tmp_path) as cluster:
        assert cluster.nodes[0].rates is None  # another number of threads, other rates
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with moesaic.Cluster.local(1, cache=tmp_path) as cluster:
        assert cluster.nodes[0].rates is None
        (again,) = cluster.measure()
        assert again.rates is not None
    with moesaic.Cluster.local(1, cache=tmp_path) as cluster:
        assert cluster.nodes[0].rates == again.rates
    monkeypatch.setenv("MOESAIC_RATES", told)
    with moesaic.Cluster.local(1, cache=tmp_path) as cluster:
        assert cluster.nodes[0].rates == Rates(25e9, 600e9)
    assert [path.name for path in tmp_path.glob("*.rates")] == [file.name]
