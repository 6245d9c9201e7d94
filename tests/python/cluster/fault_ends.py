"""Cases: a process ends, forks or drops its references with a cluster, stream or save open."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from fault_kills import Figures
from fault_rig import DEMO, LATE_S, Rig, check

SCRIPT = Path(__file__).with_name("fault_ending.py")
ENDINGS = ("fork", "sys.exit", "garbage", "end")
STATES = ("cluster", "stream", "save")
ENDS_S = 1.0  # promised


def ended(rig: Rig, i: int, ending: str) -> Figures:
    """End a coordinator with something open: soon, silently; workers are idle and serve."""
    state = STATES[i % len(STATES)]
    rig.revive()
    rig.settle()
    with subprocess.Popen(
        [sys.executable, SCRIPT, ",".join(rig.addresses), DEMO, rig.folder, state, ending],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:  # fmt: skip
        try:
            out, error = process.communicate(rig.key.decode() + "\n", timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{state}: it did not end within 60 s") from None
        over = time.monotonic()
    assert process.returncode == 0, f"{state}: {process.returncode}: {error}"
    assert error == "", f"{state}: {error}"
    word, _, number = out.splitlines()[-1].partition(" ")
    took = over - float(number) if word == "at" else float(number)
    assert took < ENDS_S + LATE_S, f"{state}: it took {took:.1f} s"
    assert all(rig.lives()), f"{state}: a worker ended with its coordinator"
    rig.settle()
    saved = rig.folder / "e.session"
    with rig.load() as model:
        check(model, 5)
        if saved.exists():  # whole or not at all
            with model.load_session(saved) as session:
                assert len(session) == 400
    for path in rig.folder.glob("e.session*"):
        path.unlink()
    return {f"ended_after_s_{state}": took}
