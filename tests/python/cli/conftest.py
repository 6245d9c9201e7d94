"""The command line, in this process and as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moesaic.cli import app

FAMILIES = Path(__file__).parents[2] / "data" / "families"


@pytest.fixture(scope="session")
def demo_path() -> str:
    return str(resources.files("moesaic") / "data" / "demo.gguf")


@pytest.fixture
def cli():
    """Run a command in this process: result.stdout, .stderr, .exit_code; a traceback fails."""

    def run(*args: str, stdin: str | bytes | None = None):
        result = CliRunner().invoke(app, [str(a) for a in args], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


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
