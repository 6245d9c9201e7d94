"""docs/guides: every block of Python runs, page by page, and so does every line of commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import moesaic
from moesaic.cli import app

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
PAGES = sorted(p.name for p in GUIDES.glob("*.md"))
ASKED = {"probe", "multiple_choice", "lm_eval", "memory", "add_a_machine", "upgrade",
         "families_and_types"}  # fmt: skip


def blocks(page: str, language: str) -> list[str]:
    text = (GUIDES / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


COMMANDS = [
    (page, line.partition("#")[0].strip())
    for page in PAGES
    for block in blocks(page, "sh")
    for line in block.splitlines()
]


def test_every_page_is_there_and_listed():
    assert {p.removesuffix(".md") for p in PAGES} == ASKED | {"README"}
    listed = re.findall(r"\]\((\w+)\.md\)", (GUIDES / "README.md").read_text())
    assert sorted(listed) == sorted(ASKED)


@pytest.mark.parametrize("page", [p for p in PAGES if p != "README.md"])
def test_the_python_runs(page, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "guide"}
    assert blocks(page, "python")
    for block in blocks(page, "python"):  # each goes on where the one before has ended
        exec(compile(block, page, "exec"), names)
    out = capsys.readouterr().out
    assert out.strip()
    for value in list(names.values()):
        model = getattr(value, "model", value)
        if isinstance(model, moesaic.Model):
            model.close()


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_the_commands_run(page, line):
    words = shlex.split(line)
    assert words[0] == "moesaic"
    result = CliRunner().invoke(app, words[1:])
    assert result.exit_code == 0 and result.stdout, result.output


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", (GUIDES / page).read_text()):
        if not target.startswith("https://"):
            assert (GUIDES / target).resolve().exists(), target
