"""Workers that are not what they were: another file, another version, started anew, of little
memory; and two coordinators at once."""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fault_proxy import FaultProxy
from fault_rig import DEMO, N_CTX, check, eventually, generate, reference, rig

import moesaic
from moesaic.launcher import LocalLauncher

ROOT = Path(__file__).parents[3]


def test_another_file_under_the_same_name(tmp_path):
    """A worker whose copy differs by one bit of a weight pulls the right slice instead of it."""
    good, bad = tmp_path / "good", tmp_path / "bad"
    for folder in (good, bad):
        folder.mkdir()
        shutil.copy(DEMO, folder / "demo.gguf")
    harmed = bytearray(DEMO.read_bytes())
    harmed[-100_000] ^= 4  # a weight of the last layers
    (bad / "demo.gguf").write_bytes(harmed)
    first = LocalLauncher(models=bad, memory=10**9)
    with moesaic.Cluster(first.start(2), key=first.key.text()) as c:
        try:
            with c.load(good / "demo.gguf", n_ctx=N_CTX, deterministic=True) as m:
                check(m)
        except moesaic.MoesaicError as error:  # or it says so, and who
            assert "demo.gguf" in str(error)
            assert any(address in str(error) for address in c.addresses), error
    first.close()


def test_another_model_under_the_same_name(tmp_path):
    """A worker that has another model of that name pulls."""
    folder = tmp_path / "models"
    folder.mkdir()
    harmed = DEMO.read_bytes().replace(b"rope.freq_base", b"rope.freq_bass", 1)
    (folder / "demo.gguf").write_bytes(harmed)
    launcher = LocalLauncher(models=folder, memory=10**9)
    with moesaic.Cluster(launcher.start(2), key=launcher.key.text()) as c:
        with c.load(DEMO, n_ctx=N_CTX, deterministic=True) as m:
            check(m)
        assert all(node.bytes_read > 0 for node in c.nodes)
    launcher.close()


def test_one_worker_under_two_addresses_is_refused(fresh):
    address = fresh.addresses[0]
    with FaultProxy(address) as other, pytest.raises(moesaic.ArgumentError) as raised:
        moesaic.Cluster([address, other.address], key=fresh.launcher.key.text())
    assert address in str(raised.value) and other.address in str(raised.value)
    assert "need each worker once" in str(raised.value)


class FakeWorker:
    """Answers the hello of a plain link with a Welcome of another version."""

    def __init__(self, major: int, minor: int) -> None:
        self._version = bytes([major, minor])
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._socket, self._socket.accept()[0] as peer:
            header = peer.recv(32, socket.MSG_WAITALL)
            n = struct.unpack_from("<I", header, 8)[0]
            peer.recv(n, socket.MSG_WAITALL)
            # Header and body as the frame of the real protocol, but for the version.
            peer.sendall(header[:4] + self._version + struct.pack("<H", 2) + header[8:32])
            peer.recv(1)

    def close(self) -> None:
        self._thread.join(5)


@pytest.mark.parametrize(("major", "minor"), [(0, 9), (2, 0), (9, 1)])
def test_another_major_version_is_refused_with_both_named(major, minor):
    fake = FakeWorker(major, minor)
    with pytest.raises(moesaic.ProtocolError) as raised:
        moesaic.Cluster([fake.address])
    fake.close()
    text = str(raised.value)
    assert fake.address in text
    assert f"{major}.{minor}" in text, text
    assert "this side speaks 1." in text, text
    assert "install the newer" in text, text


def test_a_worker_that_was_started_anew_between_two_calls(fresh, demo_path):
    with fresh.load(demo_path, n_ctx=N_CTX, deterministic=True) as m:
        check(m)
        fresh.launcher.kill(fresh.addresses[0])
        fresh.launcher.restart(fresh.addresses[0])
        with pytest.raises(moesaic.WorkerLost, match=fresh.addresses[0]):
            generate(m, 5)
    with fresh.load(demo_path, n_ctx=N_CTX, deterministic=True) as m:
        check(m)
    with fresh.load(demo_path, n_ctx=N_CTX, deterministic=True, on_loss="wait") as m:
        with m.session() as s:
            s.forward([5, 6, 7])
            for address in fresh.addresses:  # all of them, one after the other
                fresh.launcher.kill(address)
                fresh.launcher.restart(address)
            more = s.forward([8]).tobytes()
        check(m)
    with reference.model.session() as s:
        s.forward([5, 6, 7])
        assert s.forward([8]).tobytes() == more


def test_two_coordinators_at_once(fresh, demo_path):
    """Each has sessions of its own; the end of one does not disturb the other."""
    with fresh.load(demo_path, n_ctx=N_CTX, deterministic=True) as mine:
        with moesaic.Cluster(fresh.addresses, key=fresh.launcher.key.text()) as other:
            read = [n.bytes_read for n in fresh.nodes]
            theirs = other.load(demo_path, n_ctx=N_CTX, deterministic=True)
            assert [n.bytes_read for n in fresh.nodes] == read  # the weights are shared
            said: dict[int, list[int]] = {}
            threads = [
                threading.Thread(target=lambda k=k, m=m: said.update({k: generate(m, 200, k)}))
                for k, m in enumerate((mine, theirs))
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert said == {0: reference.tokens(200, 0), 1: reference.tokens(200, 1)}
        check(mine)

    def nothing_is_held() -> bool:  # a worker frees them when it sees that the link is closed
        return not any(model.sessions for node in fresh.nodes for model in node.models)

    eventually(nothing_is_held, 5, "the workers still hold sessions")


def test_too_little_memory_is_said_before_it_is_taken(demo_path):
    launcher = LocalLauncher(models=Path(demo_path).parent, memory=10**9)
    tight = LocalLauncher(models=Path(demo_path).parent, memory=60 * 10**6)
    # One key for both, so that one cluster may have a large and a small worker.
    tight._key = launcher.key
    addresses = [*launcher.start(1), *tight.start(1)]
    try:
        with moesaic.Cluster(addresses, key=launcher.key.text()) as c:
            with pytest.raises(moesaic.OutOfMemoryError) as raised:
                c.load(demo_path, n_ctx=N_CTX, kv_tokens=50_000_000)
            assert raised.value.needed > raised.value.free > 0
            with c.load(demo_path, n_ctx=N_CTX, deterministic=True) as m:
                check(m)
    finally:
        tight.close()
        launcher.close()


CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
// A calendar that is a day ahead and a day behind in turns.
static long jump(void) {
  static int n;
  return __atomic_add_fetch(&n, 1, __ATOMIC_RELAXED) % 2 ? 86400 : -86400;
}
int clock_gettime(clockid_t id, struct timespec* out) {
  static int (*real)(clockid_t, struct timespec*);
  if (!real) real = (int (*)(clockid_t, struct timespec*))dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(id, out);
  if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) out->tv_sec += jump();
  return result;
}
int gettimeofday(struct timeval* out, void* zone) {
  struct timespec now;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &now);
  out->tv_sec = now.tv_sec;
  out->tv_usec = now.tv_nsec / 1000;
  return 0;
}
time_t time(time_t* out) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (out) *out = now.tv_sec;
  return now.tv_sec;
}
"""


def test_a_calendar_that_jumps_is_nothing_to_workers(tmp_path, monkeypatch):
    """Every reading of the calendar is a day off, in turns, in each worker: nobody notices."""
    (tmp_path / "clock.c").write_text(CLOCK)
    library = tmp_path / "clock.so"
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "clock.c", "-ldl"],
        check=True,
    )
    said = subprocess.run(
        [sys.executable, "-c", "import time; print(abs(time.time() - time.time()) > 86400)"],
        env=os.environ | {"LD_PRELOAD": str(library)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert said.stdout == "True\n"  # the library does what it is for
    monkeypatch.setenv("LD_PRELOAD", str(library))
    with rig(tmp_path, pull=True) as jumping:
        monkeypatch.delenv("LD_PRELOAD")
        with jumping.load() as m:
            check(m)
            time.sleep(2.5)  # pings, both ways
            check(m)
        jumping.kill(0)
        monkeypatch.setenv("LD_PRELOAD", str(library))
        jumping.revive()
        with jumping.load() as m:
            check(m)


def test_no_deadline_depends_on_the_calendar():
    """What computes and what waits never asks for it; one place compares stamps of files."""
    found = []
    for folder in ("base", "net", "wire", "cluster", "engine", "model"):
        for path in sorted((ROOT / "cpp" / folder).rglob("*.*")):
            text = path.read_text()
            if re.search(r"system_clock|high_resolution_clock|REALTIME|gettimeofday", text):
                found.append(path.name)
    assert found == ["digest_book.cpp"]
