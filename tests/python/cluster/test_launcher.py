"""LocalLauncher: workers that come at once and are gone when nobody needs them, however that is."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from processes import GONE_S, alive, reachable, wait_gone

import moesaic
from moesaic import launcher as launcher_module
from moesaic.launcher import LocalLauncher


@pytest.fixture
def launcher():
    made = LocalLauncher(memory=10**9)
    yield made
    made.close()


def test_workers_listen_when_start_returns_and_end_with_close(launcher):
    begin = time.monotonic()
    addresses = launcher.start(3)
    took = time.monotonic() - begin
    assert took < 10  # here 0.3 s; a worker that imported all of the package would take that alone
    assert len(set(addresses)) == 3 and launcher.addresses == tuple(addresses)
    assert all(a.startswith("127.0.0.1:") and reachable(a) for a in addresses)
    pids = launcher.pids
    assert all(alive(pid) for pid in pids)
    begin = time.monotonic()
    launcher.close()
    assert time.monotonic() - begin < GONE_S
    assert not any(alive(pid) for pid in pids)
    assert not any(reachable(a) for a in addresses)
    launcher.close()
    with pytest.raises(moesaic.ClosedError):
        launcher.start(1)


def test_a_worker_imports_little(launcher):
    launcher.start(1)
    maps = Path(f"/proc/{launcher.pids[0]}/maps").read_text()
    assert "moesaic/_core" in maps or "_core.cpython" in maps
    assert "numpy" not in maps and "tokenizers" not in maps


def test_none_is_left_as_a_zombie(launcher):
    address = launcher.start(2)[0]
    pid = launcher.pids[0]
    launcher.kill(address)
    begin = time.monotonic()
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() - begin < GONE_S
        time.sleep(0.01)
    assert alive(launcher.pids[1])


def test_a_stopped_worker_is_ended_too(launcher):
    address = launcher.start(1)[0]
    pids = launcher.pids
    launcher.kill(address, signal.SIGSTOP)
    launcher.close()
    wait_gone(pids)


def test_a_worker_comes_back_on_its_address(launcher):
    addresses = launcher.start(2)
    before = launcher.pids
    with pytest.raises(moesaic.ArgumentError, match="lives"):
        launcher.restart(addresses[0])
    launcher.kill(addresses[0])
    wait_gone(before[:1])
    launcher.restart(addresses[0])
    assert list(launcher.addresses) == addresses
    assert launcher.pids[0] != before[0] and launcher.pids[1] == before[1]
    assert all(reachable(a) for a in addresses)
    with pytest.raises(moesaic.ArgumentError, match="need one of"):
        launcher.restart("127.0.0.1:1")


def test_the_log_can_be_read(launcher):
    address = launcher.start(1)[0]
    begin = time.monotonic()
    while address not in launcher.log(address):
        assert time.monotonic() - begin < GONE_S
        time.sleep(0.01)
    assert launcher.key.text().decode().strip() not in launcher.log(address)


def test_they_are_gone_with_the_last_reference():
    launcher = LocalLauncher(memory=10**9)
    launcher.start(2)
    pids = launcher.pids
    del launcher
    gc.collect()
    wait_gone(pids)


def test_a_worker_that_cannot_start_is_an_error_with_its_words(monkeypatch, tmp_path):
    launcher = LocalLauncher(models=tmp_path / "nowhere", memory=10**9)
    with pytest.raises(moesaic.NetError, match=r"ended with code 2 .*nowhere is not a directory"):
        launcher.start(2)
    with pytest.raises(moesaic.ClosedError):  # none is left
        launcher.start(1)


def test_a_worker_that_does_not_get_ready_is_an_error(monkeypatch, launcher):
    monkeypatch.setattr(
        launcher, "_command", lambda *a: [sys.executable, "-c", "import time; time.sleep(60)"]
    )
    monkeypatch.setattr(launcher_module, "_READY_S", 0.3)
    with pytest.raises(moesaic.NetError, match="was not ready within"):
        launcher.start(1)
    assert not any(alive(pid) for pid in launcher.pids)


def test_the_key_is_in_no_argument_and_no_environment(launcher):
    launcher.start(1)
    secret = launcher.key.text().strip()
    for name in ("cmdline", "environ"):
        assert secret not in Path(f"/proc/{launcher.pids[0]}/{name}").read_bytes()


def test_each_launcher_has_a_key_of_its_own():
    with contextlib.ExitStack() as stack:
        keys = set()
        for _ in range(3):
            launcher = LocalLauncher()
            stack.callback(launcher.close)
            keys.add(launcher.key.text())
        assert len(keys) == 3


def test_offered_files_are_links_that_go_with_the_launcher(launcher, tmp_path):
    one, other = tmp_path / "a" / "m.gguf", tmp_path / "b" / "m.gguf"
    for path in (one, other):
        path.parent.mkdir()
        path.write_text(str(path))
    launcher.start(1)
    folder = launcher._group.folder
    launcher.offer([one])
    assert (folder / "m.gguf").read_text() == str(one)
    launcher.offer([other, one, other])
    assert [p.name for p in folder.iterdir()] == ["m.gguf"]
    assert (folder / "m.gguf").read_text() == str(other)
    launcher.kill(launcher.addresses[0], signal.SIGTERM)  # one of several may end before the rest
    wait_gone(launcher.pids)
    assert folder.exists()
    launcher.close()
    assert not folder.exists() and one.exists() and other.exists()


def test_started_from_a_thread_that_ends(launcher):
    thread = threading.Thread(target=launcher.start, args=(2,))
    thread.start()
    thread.join()
    time.sleep(0.3)  # a worker tied to the thread would be gone by now
    assert len(launcher.pids) == 2 and all(alive(pid) for pid in launcher.pids)


def test_many_threads_start_and_close():
    pids: list[int] = []

    def one():
        launcher = LocalLauncher(memory=10**9)
        launcher.start(1)
        pids.extend(launcher.pids)
        launcher.close()

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(pids)) == 8
    wait_gone(pids)


def test_a_forked_child_neither_ends_nor_keeps_them(launcher):
    address = launcher.start(1)[0]
    pid = os.fork()
    if pid == 0:  # the child: closes what it inherited, waits, is gone
        code = 1
        with contextlib.suppress(BaseException):
            launcher.close()
            code = 0
        time.sleep(1.5)
        os._exit(code)
    time.sleep(0.3)
    assert reachable(address)  # the child's close() was not for it
    worker = launcher.pids
    launcher._finalizer()
    wait_gone(worker)  # while the child, which had the lifeline too, is still there
    assert os.waitpid(pid, 0)[1] == 0


SCRIPT = """
    import json, os, signal, sys, threading, time
    from moesaic.launcher import LocalLauncher
    launcher = LocalLauncher(memory=10**9)
    launcher.start(2)
    print(json.dumps({{"pids": launcher.pids, "folder": str(launcher._group.folder)}}), flush=True)
    {end}
"""


def run_script(end: str, wait: bool = True, **options):
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT).format(end=end)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip
    assert child.stdout is not None
    said = json.loads(child.stdout.readline())
    if wait:
        child.wait(20)
    return child, said


@pytest.mark.parametrize(
    "end",
    [
        "pass",
        "sys.exit(3)",
        "raise RuntimeError",
        "os._exit(0)",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os.abort()",
        "threading.Thread(target=lambda: time.sleep(0.5)).start()",
    ],
)
def test_they_are_gone_when_the_process_is_however_it_ends(end):
    child, said = run_script(end)
    child.communicate()
    wait_gone(said["pids"])
    begin = time.monotonic()
    while Path(said["folder"]).exists():
        assert time.monotonic() - begin < GONE_S
        time.sleep(0.01)


def test_a_process_that_is_killed_while_it_starts_them_leaves_none(tmp_path):
    code = "from moesaic.launcher import LocalLauncher; LocalLauncher(memory=10**9).start(4)"
    for after in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3):
        child = subprocess.Popen(
            [sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)}
        )
        time.sleep(after)
        started = children(child.pid)
        child.kill()
        child.wait()
        wait_gone(started)
        begin = time.monotonic()
        while left := os.listdir(tmp_path):  # also those that it started in its last moment
            assert time.monotonic() - begin < GONE_S, left
            time.sleep(0.05)


def children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def test_ctrl_c_at_the_terminal_does_not_reach_them():
    child, said = run_script("time.sleep(20)", wait=False, process_group=0)
    os.killpg(child.pid, signal.SIGSTOP)  # so that it does not end, and them with it
    os.killpg(child.pid, signal.SIGINT)
    time.sleep(0.3)
    assert all(alive(pid) for pid in said["pids"])
    child.kill()
    child.communicate()
    wait_gone(said["pids"])


def test_a_module_of_the_current_folder_is_not_taken_for_pythons(tmp_path, monkeypatch):
    (tmp_path / "typing.py").write_text("raise SystemExit('the wrong module')")
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong module')")
    monkeypatch.chdir(tmp_path)
    launcher = LocalLauncher(memory=10**9)
    assert len(launcher.start(1)) == 1
    launcher.close()


def test_descriptors_and_threads_stay_flat():
    def once():
        launcher = LocalLauncher(memory=10**9)
        launcher.start(1)
        launcher.close()

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    once()
    before, threads = descriptors(), threading.active_count()
    for _ in range(10):
        once()
    gc.collect()
    begin = time.monotonic()
    while threading.active_count() > threads:
        assert time.monotonic() - begin < GONE_S
        time.sleep(0.01)
    assert descriptors() == before
