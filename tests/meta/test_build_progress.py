"""./dev shows ninja's [n/m] while it builds, and keeps all output in a log."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "cmake" / "build_progress.py"
BUILD = "".join(
    ["Using pip 23\n", *(f"  [{i}/40] Building CXX object a/b{i}.cpp.o\n" for i in range(1, 41))]
)


def test_a_line_for_each_tenth_where_nobody_looks(tmp_path):
    log = tmp_path / "build.log"
    done = subprocess.run(
        [sys.executable, SCRIPT, log], input=BUILD.encode() + b"\xff\n", capture_output=True
    )
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0 and 10 <= len(lines) <= 12
    assert lines[0].startswith("[1/40] ") and lines[0].endswith("b1.cpp.o")
    assert lines[-2].startswith("[40/40] ") and lines[-1].endswith(" s in all")
    assert log.read_text().startswith(BUILD)


def test_one_line_that_is_written_over_on_a_terminal(tmp_path):
    ours, theirs = pty.openpty()
    try:
        subprocess.run(
            [sys.executable, SCRIPT, tmp_path / "log"], input=BUILD.encode(), stdout=theirs,
            env=os.environ | {"COLUMNS": "30"}, check=True,
        )  # fmt: skip
        said = os.read(ours, 1 << 16).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    pieces = said.split("\r\x1b[K")
    assert len(pieces) == 42 and all(len(p) < 30 for p in pieces) and said.count("\n") == 1


def test_dev_pipes_the_build_through_it():
    text = (ROOT / "dev").read_text()
    assert "| python3 cmake/build_progress.py build/build.log ||" in text
    assert "set -euo pipefail" in text
