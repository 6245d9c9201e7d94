"""Cases: a model's file is cut off, gets a hole or cannot be read while it is in use."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fault_kills import Figures
from fault_rig import DEMO, LATE_S, LOST_S, Rig

SCRIPT = Path(__file__).with_name("fault_reading.py")
MOMENTS = ("load", "decode", "serving")
KINDS = ("cut", "hole", "read error")


@contextlib.contextmanager
def small_disk() -> Iterator[Path]:
    """A file system with room for the model and little else (needs CAP_SYS_ADMIN)."""
    with tempfile.TemporaryDirectory(prefix="moesaic_disk_") as folder:
        n_bytes = DEMO.stat().st_size + (1 << 20)
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "moesaic-test", folder],
            check=True, capture_output=True,
        )  # fmt: skip
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


@cache
def may_mount() -> bool:
    """Whether this process may make a small disk."""
    try:
        with small_disk():
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def harmed(rig: Rig | None, i: int, moment: str) -> Figures:
    """Run one case; a rig is not used: workers and processes are a case's own."""
    kind = KINDS[i % len(KINDS)]
    if moment == "serving" and i // len(KINDS) % 2 == 1:
        moment = "copy"
    if kind == "read error" and not may_mount():
        kind = "hole"
    disk = small_disk() if kind == "read error" else tempfile.TemporaryDirectory()
    with disk as folder:
        done = subprocess.run(
            [sys.executable, SCRIPT, folder, moment, kind, str(i)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    if done.returncode < 0:
        raise AssertionError(f"{moment}, {kind}: {signal.Signals(-done.returncode).name}")
    assert done.returncode == 0, f"{moment}, {kind}: {done.stderr[-1500:]}"
    took = float(done.stdout.split()[-1])
    assert took < LOST_S + LATE_S, f"{moment}, {kind}: the error came after {took:.1f} s"
    return {f"said_after_s_{kind.replace(' ', '_')}": took}
