"""The command line, in this process and as a process of its own."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moesaic.cli import app


@pytest.fixture(scope="session")
def demo_path() -> str:
    return str(resources.files("moesaic") / "data" / "demo.gguf")


@pytest.fixture(scope="session")
def endless_path(demo_path, tmp_path_factory) -> str:
    """The demo model without a token that ends a text: it still runs when a test stops it."""
    path = tmp_path_factory.mktemp("endless") / "endless.gguf"
    model = Path(demo_path).read_bytes()
    for old, new in ((b"ggml.eos_token_id", b"ggml.xxx_token_id"), (b"<|end|>", b"<|qqq|>")):
        assert old in model
        model = model.replace(old, new)
    path.write_bytes(model)
    return str(path)


@pytest.fixture
def cli():
    """Run a command in this process: result.stdout, .stderr, .exit_code; a traceback fails."""

    def run(*args: str, stdin: str | bytes | None = None):
        result = CliRunner().invoke(app, [str(a) for a in args], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
