"""The README's Python runs as it stands, and so do its `moesaic` lines, on the demo model."""

from __future__ import annotations

import re
import shlex
from importlib import resources
from pathlib import Path

import pytest
from typer.testing import CliRunner

import moesaic
from moesaic.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


COMMANDS = [
    line.partition("#")[0].strip()
    for block in blocks("sh")
    for line in block.splitlines()
    if line.startswith("moesaic ")
]


def test_python(capsys):
    names: dict[str, object] = {}
    for block in blocks("python"):  # each goes on where the one before has ended
        exec(compile(block, "README.md", "exec"), names)
    assert capsys.readouterr().out.strip()
    for value in names.values():
        if isinstance(value, moesaic.Model | moesaic.Session):
            value.close()


def test_there_are_commands():
    assert len(COMMANDS) >= 4


@pytest.mark.parametrize("line", COMMANDS)
def test_command(line):
    demo = str(resources.files("moesaic") / "data" / "demo.gguf")
    args = [demo if word == "model.gguf" else word for word in shlex.split(line)[1:]]
    if args[0] == "run":
        args += ["--max-tokens", "4"]
    result = CliRunner().invoke(app, args, input="/help\n/quit\n")
    assert result.exit_code == 0, result.output
    assert result.stdout


def test_dev_commands_and_files_it_names_exist():
    dev = (ROOT / "dev").read_text()
    for command in re.findall(r"\./dev (\w+)", README):
        assert re.search(rf"\bcmd_{command}\b|^  {command}\)", dev, re.MULTILINE), command
    rooms = "cpp|python|tests|bench|notebooks|training|bindings"
    for path in re.findall(rf"`((?:{rooms})(?:/[\w/.]*)?)`", README):
        assert (ROOT / path).exists(), path
