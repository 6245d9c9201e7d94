"""Whether processes run and listen, for tests of what starts and ends them."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable
from pathlib import Path

# Promised: gone within a second. The rest is room for a loaded machine.
GONE_S = 5.0


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_gone(pids: Iterable[int]) -> float:
    """Wait until all have ended; seconds it took."""
    pids = list(pids)
    begin = time.monotonic()
    while any(alive(pid) for pid in pids):
        assert time.monotonic() - begin < GONE_S, "still there"
        time.sleep(0.01)
    return time.monotonic() - begin


def reachable(address: str) -> bool:
    """Whether somebody accepts connections there."""
    host, port = address.rsplit(":", 1)
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=2):
        return True
    return False
