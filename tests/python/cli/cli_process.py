"""Where the tiny models are, and the command line as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FAMILIES = Path(__file__).parents[2] / "data" / "families"


def start(*args: str, **options) -> subprocess.Popen:
    """Start `python -m moesaic`; stdout and stderr are pipes of bytes."""
    return subprocess.Popen(
        [sys.executable, "-m", "moesaic", *args],
        stdin=options.pop("stdin", subprocess.DEVNULL),
        stdout=options.pop("stdout", subprocess.PIPE),
        stderr=options.pop("stderr", subprocess.PIPE),
        env=os.environ | options.pop("env", {}),
        **options,
    )
